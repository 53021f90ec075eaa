"""What figures of one or more runs share: a row of panels a run, lines over bands, heat maps."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from strace_lens.measures.intervals import interval_text
from strace_lens.plot.means import ABOVE, add_band
from strace_lens.plot.style import SCALE, cell_bounds, dressed, figure, note

SHOWN_SIZES = (0.001, 0.01, 0.1, 0.4)
"""Sizes drawn where all would be too many: the measured ones nearest to these, in log."""

_ROW, _ONLY_ROW = 230, 320  # pixels of a row of panels: one of several, and the only one
_GAP = 100  # from one row to the next
_CLEAR = 40  # of the legend, above the two lines that name a panel
_TOP, _BOTTOM = 112, 60


def by_run(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, int]]:
    """Name, rows and row of panels of each run, in the order in which they come."""
    for row, (name, own) in enumerate(table.groupby("run", sort=False), start=1):
        yield str(name), own, row


def of_run(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of one run."""
    return table.loc[table["run"].eq(name)]


def empty(title: str, why: str) -> go.Figure:
    """A figure that says why it shows nothing."""
    fig = figure(title, height=240)
    note(fig, why)
    return fig.update_xaxes(visible=False).update_yaxes(visible=False)


def run_panels(
    table: pd.DataFrame,
    title: str,
    panels: Sequence[str] | Callable[[str], Sequence[str]],
    y_titles: Sequence[str],
    row_height: int = 0,
    **layout: Any,
) -> go.Figure:
    """Empty panels, a row a run, named after the run and after what each shows.

    Args:
        table: with a column `run`.
        title: of the figure, as text.
        panels: what each column shows, or a function of the run's name to that; an empty name
            leaves the run's alone. As HTML.
        y_titles: of the columns from the left; those without one share the scale of the last.
        row_height: of the panels of a run, in pixels; 0 for the usual.
        layout: of the figure.
    """
    names = [str(name) for name in table["run"].unique()]
    shown = [list(panels(name) if callable(panels) else panels) for name in names]
    rows = len(names)
    inner = (row_height or (_ROW if rows > 1 else _ONLY_ROW)) * rows + _GAP * (rows - 1)
    fig = make_subplots(
        rows=rows,
        cols=len(shown[0]),
        subplot_titles=[
            f"<b>{html.escape(name, quote=False)}</b>{'<br>' * bool(panel)}{panel}"
            for name, of in zip(names, shown, strict=True)
            for panel in of
        ],
        horizontal_spacing=0.1 if len(y_titles) > 1 else 0.06,
        vertical_spacing=_GAP / inner if rows > 1 else 0,
    )
    fig.update_annotations(font={"size": 13})
    legend = {**ABOVE, "y": 1 + _CLEAR / inner, "traceorder": "normal"}
    margin = {"t": _TOP, "b": _BOTTOM}
    dressed(fig, title, inner + _TOP + _BOTTOM, margin=margin, legend=legend, **layout)
    for col, y_title in enumerate(y_titles, start=1):
        fig.update_yaxes(title_text=y_title, col=col)
    return fig


def add_mean(
    fig: go.Figure,
    curve: pd.DataFrame,
    columns: tuple[str, str, str, str],
    line: dict[str, Any],
    hover: Callable[[dict[str, Any], str], str],
    **look: Any,
) -> None:
    """A line over the band of its interval; no band where the interval is NaN.

    Args:
        fig: to draw into.
        curve: a row a point.
        columns: of what it runs along, of the value, and of the interval's two ends.
        line: its look, with `color`.
        hover: a row and its value with the interval, as text, to the hover text.
        look: of the line's trace: name, legend group, row and column.
    """
    along, value, low, high = columns
    place = {k: look[k] for k in ("row", "col", "legendgroup") if k in look}
    ends = pd.DataFrame({"size": curve[along], "low": curve[low], "high": curve[high]})
    add_band(fig, ends.astype("float64"), line["color"], **place)
    fig.add_scatter(
        x=curve[along],
        y=curve[value],
        mode="lines+markers" if len(curve) == 1 else "lines",
        line={"width": 2.5, **line},
        hoverinfo="text",
        hovertext=[
            ""
            if np.isnan(row[value])
            else hover(row, interval_text(*(row[c] for c in columns[1:])))
            for row in curve.to_dict("records")
        ],
        **look,
    )


def add_heat(
    fig: go.Figure,
    rows: pd.DataFrame,
    column: str,
    hover: Callable[[dict[str, Any]], str],
    coloraxis: str,
    drawn: Callable[[np.ndarray], np.ndarray] = lambda values: values,
    **place: Any,
) -> None:
    """A column of a table by size and layer as a heat map.

    Args:
        fig: to draw into.
        rows: `size`, `layer` and the column; of one run.
        column: its name.
        hover: a row to its hover text.
        coloraxis: whose colours.
        drawn: values to what is coloured; NaN is left blank.
        place: row and column.
    """
    values = rows.pivot(index="layer", columns="size", values=column)
    said = rows.assign(said=[hover(row) for row in rows.to_dict("records")])
    sizes = values.columns.to_numpy(dtype=np.float64)
    fig.add_heatmap(
        x=cell_bounds(sizes),
        y=values.index.tolist(),
        z=drawn(values.to_numpy(dtype=np.float64)),
        name=column,
        coloraxis=coloraxis,
        hoverinfo="text",
        text=said.pivot(index="layer", columns="size", values="said").to_numpy().tolist(),
        **place,
    )
    last = int(rows["layer"].to_numpy().max())
    fig.update_yaxes(range=[-0.5, last + 0.5], tickformat="d", showgrid=False, **place)
    fig.update_xaxes(showgrid=False, **place)


def shown_sizes(sizes: Sequence[float]) -> list[float]:
    """The measured sizes nearest to `SHOWN_SIZES` in log, each once."""
    measured = np.unique(np.asarray(sizes, dtype=np.float64))
    far = np.abs(np.log10(measured)[:, None] - np.log10(SHOWN_SIZES))
    return measured[np.unique(far.argmin(0))].tolist()


def size_colours(count: int) -> list[str]:
    """One hue from pale to dark, for what has an order: sizes, quarters of the depth."""
    found = sample_colorscale(SCALE, np.linspace(0.3, 1, count).tolist(), colortype="tuple")
    return ["#" + "".join(f"{round(255 * float(part)):02x}" for part in colour) for colour in found]
