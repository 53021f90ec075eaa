"""The charts that figures are put together from.

A chart takes a table and the names of its columns: means over the bands of their intervals, heat
maps, error bars, and rows of panels, one for each run of a corpus.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.colors import hex_to_rgb, sample_colorscale
from plotly.subplots import make_subplots

from strace_lens.measures.intervals import interval_text
from strace_lens.plot.style import (
    INK,
    LINE,
    SCALE,
    SYMBOLS,
    cell_bounds,
    dressed,
    figure,
    note,
    percent,
    size_axis,
    text_of,
)

ABOVE = {"orientation": "h", "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"}
"""A legend above the plotting area, at its right."""

SHOWN_SIZES = (0.001, 0.01, 0.1, 0.4)
"""Sizes drawn where all would be too many: the measured ones nearest to these, in log."""

SIZE_TITLE = "relative size s (log)"

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_ROW, _ONLY_ROW = 230, 320  # pixels of a row of panels: one of several, and the only one
_GAP = 100  # from one row to the next
_CLEAR = 40  # of the legend, above the two lines that name a panel
_TOP, _BOTTOM = 112, 60
_TITLE, _LEGEND = 52, 26  # pixels that a title and a line of the legend take
_ENTRIES = 4  # of the legend that stand in one line of it, with names of any length

Looks = Mapping[Any, tuple[str, dict[str, Any]]]
"""What each line is called and how it looks, by the value that tells it from the others."""


def by_run(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, int]]:
    """Name, rows and number (from 1) of each run, in the order in which they come."""
    for number, (name, own) in enumerate(table.groupby("run", sort=False), start=1):
        yield str(name), own, number


def of_run(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of one run."""
    return table.loc[table["run"].eq(name)]


def dash_of(number: int) -> str:
    """The dash of the lines of a run, by its number from 1; after the last they begin again."""
    return _DASHES[(number - 1) % len(_DASHES)]


def symbol_of(number: int) -> str:
    """The marker of a run, by its number from 1."""
    return SYMBOLS[(number - 1) % len(SYMBOLS)]


def name_runs(fig: go.Figure, names: Sequence[str], markers: bool = False) -> None:
    """Name several runs in the legend, by dash or by marker."""
    for number, name in enumerate(names if len(names) > 1 else (), start=1):
        look: dict[str, Any] = {"mode": "lines", "line": {"color": INK, "dash": dash_of(number)}}
        if markers:
            look = {"mode": "markers", "marker": {"color": INK, "symbol": symbol_of(number)}}
        fig.add_scatter(x=[None], y=[None], name=text_of(name), hoverinfo="skip", **look)


def make_room(fig: go.Figure, inner: int, lines: int = 0) -> go.Figure:
    """Set the height, so that some lines of text and the legend fit between title and panels.

    Args:
        fig: any figure.
        inner: pixels from the top of the uppermost panel to the bottom of the lowest.
        lines: of small text, such as `style.remark`, right above the panels.
    """
    drawn = cast(Sequence[Any], fig.data)
    entries = {one.legendgroup or one.name for one in drawn if one.showlegend is not False}
    text = LINE * lines + 6
    top = _TITLE + _LEGEND * max(1, math.ceil(len(entries) / _ENTRIES)) + text
    legend = {**ABOVE, "y": 1 + text / inner, "traceorder": "normal"}
    margin = {"t": top, "b": _BOTTOM, "l": 72}
    return fig.update_layout(height=inner + top + _BOTTOM, margin=margin, legend=legend)


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
) -> go.Figure:
    """Empty panels, a row a run, named after the run and after what each shows.

    Args:
        table: with a column `run`.
        title: of the figure, as text.
        panels: what each column shows, or a function of the run's name to that; an empty name
            leaves the run's alone. As HTML.
        y_titles: of the columns from the left; those without one share the scale of the last.
        row_height: of the panels of a run, in pixels; 0 for the usual.
    """
    names = [str(name) for name in table["run"].unique()]
    shown = [list(panels(name) if callable(panels) else panels) for name in names]
    rows = len(names)
    inner = (row_height or (_ROW if rows > 1 else _ONLY_ROW)) * rows + _GAP * (rows - 1)
    fig = make_subplots(
        rows=rows,
        cols=len(shown[0]),
        subplot_titles=[
            f"<b>{text_of(name)}</b>{'<br>' * bool(panel)}{panel}"
            for name, of in zip(names, shown, strict=True)
            for panel in of
        ],
        horizontal_spacing=0.1 if len(y_titles) > 1 else 0.06,
        vertical_spacing=_GAP / inner if rows > 1 else 0,
    )
    fig.update_annotations(font={"size": 13})
    legend = {**ABOVE, "y": 1 + _CLEAR / inner, "traceorder": "normal"}
    dressed(fig, title, inner + _TOP + _BOTTOM, margin={"t": _TOP, "b": _BOTTOM}, legend=legend)
    for col, y_title in enumerate(y_titles, start=1):
        fig.update_yaxes(title_text=y_title, col=col)
    return fig


def add_band(fig: go.Figure, curve: pd.DataFrame, colour: str, **place: object) -> None:
    """The area between `low` and `high` of a curve by `size`, where none of its columns is NaN."""
    there = curve.dropna()
    if len(there):
        red, green, blue = hex_to_rgb(colour)
        fig.add_scatter(
            x=[*there["size"], *there["size"][::-1]],
            y=[*there["low"], *there["high"][::-1]],
            fill="toself",
            fillcolor=f"rgba({red},{green},{blue},0.13)",
            mode="lines",
            line={"width": 0},
            showlegend=False,
            hoverinfo="skip",
            **place,
        )


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
        columns: of what it runs along, of the value, and of the interval's two ends; a table
            without such ends has no band.
        line: its look, with `color`.
        hover: a row and its value with the interval, as text, to the hover text.
        look: of the line's trace: name, legend group, row and column.
    """
    along, value, low, high = columns
    if low not in curve:
        curve = curve.assign(**{low: np.nan, high: np.nan})
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


def add_means(
    fig: go.Figure,
    table: pd.DataFrame,
    columns: Sequence[str],
    looks: Looks,
    hover: Callable[[dict[str, Any], str, str], str],
    *,
    by: str = "",
    along: str = "size",
    gaps: bool = True,
) -> None:
    """Lines over bands in the panels of `run_panels`: a row a run, a panel a column of the table.

    The interval of a column `x` goes from `x_low` to `x_high` or, if there are none, from `low` to
    `high`. A line that is NaN throughout is left out. Axes along sizes are set to them.

    Args:
        fig: of `run_panels`, of the same table.
        table: with a column `run`.
        columns: of the values, from the left panel to the right.
        looks: of each line; in the legend it stands once.
        hover: a row, its value with the interval as text, and the column, to the hover text.
        by: column of the keys of `looks`; without it there is one line, `looks[""]`.
        along: column of what the lines run along.
        gaps: whether a line has gaps where it is NaN; else it goes on to its next point.
    """
    named: set[Any] = set()
    for _, own, row in by_run(table):
        for col, column in enumerate(columns, start=1):
            start = f"{column}_" if f"{column}_low" in table else ""
            for key, curve in own.groupby(by, sort=False) if by else [("", own)]:
                if curve[column].isna().to_numpy().all():
                    continue
                name, line = looks[key]
                add_mean(
                    fig,
                    curve if gaps else curve.dropna(subset=[column]),
                    (along, column, f"{start}low", f"{start}high"),
                    line,
                    lambda r, value, column=column: hover(r, value, column),
                    name=name,
                    legendgroup=str(key),
                    showlegend=key not in named,
                    row=row,
                    col=col,
                )
                named.add(key)
        if along == "size":
            axis = size_axis(own["size"].to_numpy(dtype=np.float64))
            fig.update_xaxes(axis, title_text=SIZE_TITLE, row=row)


def at_size(row: Mapping[str, Any], prompts: str = "prompts") -> str:
    """The first line of a hover text: the size of a row, and the prompts that a column counts."""
    return f"<b>s = {row['size']:.4g}</b>, {row[prompts]} prompts<br>"


def add_level(
    fig: go.Figure, x: Float[np.ndarray, " point"], y: float, colour: str, hover: str, **look: Any
) -> None:
    """A dotted level line from the least to the greatest x, not in the legend."""
    fig.add_scatter(
        x=[x.min(), x.max()],
        y=[y, y],
        showlegend=False,
        mode="lines",
        line={"color": colour, "dash": "dot", "width": 1.5},
        hoverinfo="text",
        hovertext=[hover] * 2,
        **look,
    )


def add_heat(
    fig: go.Figure,
    rows: pd.DataFrame,
    column: str,
    hover: Callable[[dict[str, Any]], str],
    drawn: Callable[[np.ndarray], np.ndarray] = lambda values: values,
    *,
    across: str = "size",
    up: str = "layer",
    row: int | None = None,
    col: int | None = None,
    **look: Any,
) -> None:
    """A column of a table as a heat map, by size and layer or by two sizes.

    Cells of sizes meet half way between them on a logarithmic axis; layers are rows of one height.

    Args:
        fig: to draw into.
        rows: a row a cell.
        column: its value.
        hover: a row to its hover text.
        drawn: values to what is coloured; NaN is left blank.
        across: column along x, a size.
        up: column along y, a size or a layer.
        row: of the panel.
        col: of the panel.
        look: of the heat map: its colours.
    """
    said = rows.assign(_said=[hover(r) for r in rows.to_dict("records")])
    values = rows.pivot(index=up, columns=across, values=column)
    place: dict[str, Any] = {} if row is None else {"row": row, "col": col}
    layers = up == "layer"
    fig.add_heatmap(
        x=cell_bounds(values.columns.to_numpy(dtype=np.float64)),
        y=values.index.tolist() if layers else cell_bounds(values.index.to_numpy(dtype=np.float64)),
        z=drawn(values.to_numpy(dtype=np.float64)),
        hoverinfo="text",
        text=said.pivot(index=up, columns=across, values="_said").to_numpy().tolist(),
        **look,
        **place,
    )
    fig.update_xaxes(showgrid=False, **place)
    fig.update_yaxes(showgrid=False, **place)
    if layers:
        last = int(rows[up].to_numpy().max())
        # Few layers would get ticks between them, with the labels of their neighbours.
        ticks = {"tick0": 0, "dtick": 1} if last < 8 else {}
        fig.update_yaxes(range=[-0.5, last + 0.5], tickformat="d", **ticks, **place)


def log_shares(shares: Float[np.ndarray, "row column"]) -> Float[np.ndarray, "row column"]:
    """Logarithms of shares to base ten; NaN, which a heat map leaves blank, for none."""
    return np.log10(shares, out=np.full_like(shares, np.nan), where=shares > 0)


def share_colours(lowest: float | int, cut: bool = False) -> dict[str, Any]:
    """The axis of colours of `log_shares`, with the ticks of its bar.

    Args:
        lowest: logarithm of the share at which the colours start.
        cut: whether lower shares have the first colour too, which the bar then says.
    """
    ticks = list(range(math.ceil(lowest), 1))
    texts = [("≤ " if cut and t == ticks[0] else "") + percent(10.0**t) for t in ticks]
    bar = {"title": {"text": "share of<br>the layer"}, "tickvals": ticks, "ticktext": texts}
    return {"colorscale": SCALE, "cmin": lowest, "cmax": 0, "colorbar": bar}


def error_bars(
    mean: np.ndarray | float, low: np.ndarray | float, high: np.ndarray | float
) -> dict[str, object]:
    """Intervals as error bars; none where they are NaN."""
    over, under = np.nan_to_num(np.subtract(high, mean)), np.nan_to_num(np.subtract(mean, low))
    return {
        "type": "data",
        "symmetric": False,
        "array": np.atleast_1d(over),
        "arrayminus": np.atleast_1d(under),
        "color": INK,
        "thickness": 1.5,
        "width": 5,
    }


def shown_sizes(sizes: Sequence[float] | Float[np.ndarray, " size"]) -> list[float]:
    """The measured sizes nearest to `SHOWN_SIZES` in log, each once."""
    measured = np.unique(np.asarray(sizes, dtype=np.float64))
    far = np.abs(np.log10(measured)[:, None] - np.log10(SHOWN_SIZES))
    return measured[np.unique(far.argmin(0))].tolist()


def size_colours(count: int) -> list[str]:
    """One hue from pale to dark, for what has an order: sizes, quarters of the depth."""
    found = sample_colorscale(SCALE, np.linspace(0.3, 1, count).tolist(), colortype="tuple")
    return ["#" + "".join(f"{round(255 * float(part)):02x}" for part in colour) for colour in found]
