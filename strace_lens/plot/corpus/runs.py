"""How figures of one or more runs tell the runs apart, and how they make room for what they say."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pandas as pd
import plotly.graph_objects as go

from strace_lens.plot.means import ABOVE, add_band
from strace_lens.plot.style import INK, LINE, SYMBOLS

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
"""Of the runs, in the order in which they come; past the last they begin again."""

_BOTTOM = 60
_TITLE, _LEGEND = 52, 26  # pixels that a title and a line of the legend take
_ENTRIES = 4  # of the legend that stand in one line of it, with names of any length


def by_run(table: pd.DataFrame) -> Iterator[tuple[int, str, pd.DataFrame]]:
    """Number, name (safe as HTML) and rows of each run, in the order in which they come."""
    for number, (name, own) in enumerate(table.groupby("run", sort=False)):
        yield number, html.escape(str(name), quote=False), own


def names_of(table: pd.DataFrame) -> list[str]:
    """The names of the runs, safe as HTML."""
    return [name for _, name, _ in by_run(table)]


def dash_of(number: int) -> str:
    """The dash of the run of a number."""
    return DASHES[number % len(DASHES)]


def symbol_of(number: int) -> str:
    """The marker of the run of a number."""
    return SYMBOLS[number % len(SYMBOLS)]


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


def name_runs(fig: go.Figure, names: Sequence[str], markers: bool = False) -> None:
    """Name several runs in the legend, by dash or by marker."""
    for number, name in enumerate(names if len(names) > 1 else ()):
        look: dict[str, Any] = {"mode": "lines", "line": {"color": INK, "dash": dash_of(number)}}
        if markers:
            look = {"mode": "markers", "marker": {"color": INK, "symbol": symbol_of(number)}}
        fig.add_scatter(x=[None], y=[None], name=name, hoverinfo="skip", **look)


def add_interval(
    fig: go.Figure, curve: pd.DataFrame, low: str, high: str, colour: str, **place: object
) -> None:
    """The band between two columns of a curve by `size`, where they are not NaN."""
    ends = pd.DataFrame({"size": curve["size"], "low": curve[low], "high": curve[high]})
    add_band(fig, ends.astype("float64"), colour, **place)
