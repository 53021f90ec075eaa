"""The charts that figures are put together from.

A chart takes a table and the names of its columns: means over the bands of their intervals, error
bars, and rows of panels, one for each run of a corpus. Heat maps are in `heat_map`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from strace_lens.measures.intervals import interval_text
from strace_lens.plot.style import (
    COLOURS,
    ESTIMATOR_COLOURS,
    ESTIMATOR_DASHES,
    INK,
    SCALE,
    dressed,
    note,
    size_axis,
    text_of,
)

ABOVE = {"orientation": "h", "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"}
"""A legend above the plotting area, at its right."""

BELOW = {"orientation": "h", "x": 0, "y": -0.12, "yanchor": "top", "traceorder": "normal"}
"""A legend below the plotting area."""

SHOWN_SIZES = (0.001, 0.01, 0.1, 0.4)
"""Sizes drawn where all would be too many: the measured ones nearest to these, in log."""

SIZE_TITLE = "relative size s (log)"

_ROW, _ONLY_ROW = 230, 320  # pixels of a row of panels: one of several, and the only one
_GAP = 100  # from one row to the next
_CLEAR = 40  # of the legend, above the two lines that name a panel
_TOP, _BOTTOM = 112, 60
_LINE = 18  # of a panel's name, beyond two

Looks = Mapping[Any, tuple[str, dict[str, Any]]]
"""What each line is called and how it looks, by the value that tells it from the others."""


def by_run(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, int]]:
    """Name, rows and number (from 1) of each run, in the order in which they come."""
    for number, (name, own) in enumerate(table.groupby("run", sort=False), start=1):
        yield str(name), own, number


def of_run(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of one run."""
    return table.loc[table["run"].eq(name)]


def run_lines(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """How the line of each run of a table looks, a colour a run.

    A run that has the name of an estimator looks as this does, and the others take what is left, in
    their order. `of_runs` makes the looks those of more runs than the table has rows of.
    """
    names = [str(name) for name in table.attrs.get("runs", table["run"].unique())]
    free = [look for look in ESTIMATOR_COLOURS if look not in names] or list(ESTIMATOR_COLOURS)
    others = [name for name in names if name not in ESTIMATOR_COLOURS]
    looks = {name: free[place % len(free)] for place, name in enumerate(others)}
    looks |= {name: name for name in names if name in ESTIMATOR_COLOURS}
    return {
        name: {"color": ESTIMATOR_COLOURS[looks[name]], "dash": ESTIMATOR_DASHES[looks[name]]}
        for name in names
    }


def run_marks(table: pd.DataFrame) -> dict[str, str]:
    """The colour of what is drawn once a run: that of its line, or of traces where it is alone."""
    lines = run_lines(table)
    alone = len(lines) == 1
    return {name: COLOURS["trace"] if alone else line["color"] for name, line in lines.items()}


def of_runs(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The same table, coloured in figures as one of some runs, any of which it may lack."""
    marked = table.copy(deep=False)
    marked.attrs["runs"] = tuple(names)
    return marked


def empty(title: str) -> go.Figure:
    """A figure of a table without rows, which says so."""
    fig = dressed(make_subplots(), title, height=240)
    note(fig, "there is no row to draw")
    return fig.update_xaxes(visible=False).update_yaxes(visible=False)


def run_panels(
    table: pd.DataFrame,
    title: str,
    panels: Sequence[str] | Callable[[str], Sequence[str]],
    y_titles: Sequence[str],
    row_height: int = 0,
) -> go.Figure:
    """Empty panels, a row a run, named after the run and after what each shows.

    With several runs, a square in the run's colour stands before its name.

    Args:
        table: with a column `run`; without rows, the figure says so and has no panels.
        title: of the figure, as text.
        panels: what each column shows, or a function of the run's name to that; an empty name
            leaves the run's alone. As HTML.
        y_titles: of the columns from the left; those without one share the scale of the last.
        row_height: of the panels of a run, in pixels; 0 for the usual.
    """
    if table.empty:
        return empty(title)
    names = [str(name) for name in table["run"].unique()]
    shown = [list(panels(name) if callable(panels) else panels) for name in names]
    rows, lines = len(names), run_lines(table)
    squares = {
        name: f'<span style="color:{line["color"]}">■</span> '
        for name, line in lines.items()
        if len(lines) > 1
    }
    more = _LINE * max(panel.count("<br>") for of in shown for panel in of)
    gap = _GAP + more
    inner = (row_height or (_ROW if rows > 1 else _ONLY_ROW)) * rows + gap * (rows - 1)
    fig = make_subplots(
        rows=rows,
        cols=len(shown[0]),
        subplot_titles=[
            f"{squares.get(name, '')}<b>{text_of(name)}</b>{'<br>' * bool(panel)}{panel}"
            for name, of in zip(names, shown, strict=True)
            for panel in of
        ],
        horizontal_spacing=0.1 if len(y_titles) > 1 else 0.06,
        vertical_spacing=gap / inner if rows > 1 else 0,
    )
    fig.update_annotations(font={"size": 13})
    top = _TOP + more
    legend = {**ABOVE, "y": 1 + (_CLEAR + more) / inner, "traceorder": "normal"}
    dressed(fig, title, inner + top + _BOTTOM, margin={"t": top, "b": _BOTTOM}, legend=legend)
    for col, y_title in enumerate(y_titles, start=1):
        fig.update_yaxes(title_text=y_title, col=col)
    return fig


def add_points(
    fig: go.Figure,
    table: pd.DataFrame,
    x: str,
    y: str,
    hover: Callable[[dict[Any, Any]], str],
    **look: Any,
) -> None:
    """Two columns of a table as lines or markers, under a name that stands in the legend once.

    Args:
        fig: to draw into.
        table: a row a point.
        x: column along the first axis.
        y: column along the second.
        hover: a row to the text under the pointer.
        look: of the line or the markers: name, mode, row, column.
    """
    look.setdefault("legendgroup", look["name"])
    drawn = cast(Sequence[Any], fig.data)
    known = any(one.legendgroup == look["legendgroup"] and one.showlegend for one in drawn)
    fig.add_scatter(
        x=table[x],
        y=table[y],
        hoverinfo="text",
        hovertext=["" if pd.isna(row[y]) else hover(row) for row in table.to_dict("records")],
        **{"showlegend": not known, **look},
    )


def add_mean(
    fig: go.Figure,
    curve: pd.DataFrame,
    columns: tuple[str, str, str, str],
    line: dict[str, Any],
    hover: Callable[[dict[Any, Any], str], str],
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
    look.setdefault("legendgroup", look["name"])
    if low not in curve:
        curve = curve.assign(**{low: np.nan, high: np.nan})
    band = curve[[along, low, high]].dropna()
    if len(band):
        fig.add_scatter(
            x=[*band[along], *band[along][::-1]],
            y=[*band[low], *band[high][::-1]],
            fill="toself",
            fillcolor=line["color"],
            opacity=0.13,
            mode="lines",
            line={"width": 0},
            showlegend=False,
            hoverinfo="skip",
            **{k: look[k] for k in ("row", "col", "legendgroup") if k in look},
        )
    add_points(
        fig,
        curve,
        along,
        value,
        lambda row: hover(row, interval_text(row[value], row[low], row[high])),
        line={"width": 2.5, **line},
        **{"mode": "lines+markers" if len(curve) == 1 else "lines", **look},
    )


def add_means(
    fig: go.Figure,
    table: pd.DataFrame,
    columns: Sequence[str],
    looks: Looks,
    hover: Callable[[dict[Any, Any], str, str], str],
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
                    row=row,
                    col=col,
                )
        if along == "size":
            axis = size_axis(own["size"].to_numpy(dtype=np.float64))
            fig.update_xaxes(axis, title_text=SIZE_TITLE, row=row)


def at_size(row: Mapping[Any, Any], prompts: str = "prompts") -> str:
    """The first line of a hover text: the size of a row, and the prompts that a column counts."""
    return f"<b>s = {row['size']:.6g}</b>, {row[prompts]} prompt{'s' * (row[prompts] != 1)}<br>"


def add_level(
    fig: go.Figure, x: Float[np.ndarray, " point"], y: float, colour: str, hover: str, **look: Any
) -> None:
    """A dotted level line from the least to the greatest x, not in the legend."""
    ends = pd.DataFrame({"x": [x.min(), x.max()], "y": y})
    line = {"color": colour, "dash": "dot", "width": 1.5}
    add_points(
        fig, ends, "x", "y", lambda _: hover, mode="lines", line=line, showlegend=False, **look
    )


def named_ticks(names: Sequence[str]) -> dict[str, Any]:
    """An axis of things by their names, at 0, 1, 2 and so on."""
    return {
        "tickmode": "array",
        "tickvals": list(range(len(names))),
        "ticktext": [text_of(name) for name in names],
        "showgrid": False,
    }


def add_menu(
    fig: go.Figure, shows: Mapping[str, list[bool]], titles: Mapping[str, str] | None = None
) -> go.Figure:
    """Show what the first entry shows, and a menu if there are more.

    Args:
        fig: with everything drawn.
        shows: which of its traces are visible, by the name of the entry.
        titles: of the figure, as HTML, by the same names.
    """
    for number, visible in enumerate(next(iter(shows.values()))):
        fig.update_traces({"visible": visible}, selector=number)
    buttons = [
        {
            "label": text_of(name),
            "method": "update",
            "args": [{"visible": visible}, {"title.text": titles[name]} if titles else {}],
        }
        for name, visible in shows.items()
    ]
    place = {"x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom", "pad": {"b": 6}}
    menus = [{"type": "dropdown", "buttons": buttons, **place}] if len(shows) > 1 else []
    return fig.update_layout(updatemenus=menus)


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
    found = sample_colorscale(SCALE, np.linspace(0.3, 1, count).tolist())
    return [str(colour) for colour in found]
