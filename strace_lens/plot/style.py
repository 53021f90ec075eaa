"""One look for every figure: colours, template, the axis of sizes, names and tokens as labels."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from strace_lens.circuits.discover.methods import METHODS, Look
from strace_lens.utils.html_repr import isolated, short

INK = "#222222"
LINE = 16  # pixels from one row of small text to the next
GRID = "#e4e4e4"

# Okabe and Ito's palette, told apart under every common colour blindness; one colour per thing.
COLOURS = {
    "residual": "#0072B2",
    "attention": "#D55E00",
    "mlp": "#009E73",
    "trace": "#000000",
    "random": "#808080",
    "inverse": "#CC79A7",
    "random_inverse": "#B3B3B3",
    "head": "#E69F00",
    "tail": "#56B4E9",
}
# Hues, dashes and markers of the estimators: greys and teal need no gradients, blues take them once
# or while pruning, red and orange learn. Told apart under every common colour blindness.
ESTIMATOR_COLOURS = {
    "greedy": "#666666",
    "scheduled": "#44AA99",
    "fisher": "#0077BB",
    "pruned": "#332288",
    "regularized": "#CC3311",
    "learned": "#EE7733",
}
ESTIMATOR_DASHES = {
    "greedy": "solid",
    "scheduled": "dot",
    "fisher": "dash",
    "pruned": "solid",
    "regularized": "longdash",
    "learned": "dashdot",
}
# Dash and marker of what is said of the head and of the tail.
PARTS = {"head": ("solid", "circle"), "tail": ("dash", "square")}
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down", "star")
LABELS = {"residual": "residual", "attention": "attention", "mlp": "MLP"}
# Greys, which leave the hue of what lies over them alone.
BANDS = {
    "plateau": "rgba(0,0,0,0)",
    "construction": "rgba(0,0,0,0.16)",
    "refinement": "rgba(0,0,0,0.06)",
}
# One hue, from pale to dark: more is more ink, with or without colour vision. Blank is none at all.
SCALE = [[0.0, "#ebecf6"], [0.3, "#b9bddd"], [0.65, "#686ea8"], [1.0, "#17183f"]]
# Two hues that every common colour blindness tells apart, for what lies on either side of zero.
DIVERGING = [
    [0.0, "#8a3200"],
    [0.25, "#e08a4b"],
    [0.5, "#f3f3f3"],
    [0.75, "#6fa8d6"],
    [1.0, "#08417a"],
]

_AXIS = {
    "gridcolor": GRID,
    "linecolor": INK,
    "ticks": "outside",
    "zeroline": False,
    "automargin": True,
    "title": {"standoff": 8},
}
_TITLE = {
    "x": 0,
    "xref": "paper",
    "xanchor": "left",
    "y": 1,
    "yref": "container",
    "yanchor": "top",
    "pad": {"t": 12},
    "font": {"size": 16},
}
_FONT = "system-ui, 'Segoe UI', 'DejaVu Sans', Arial, sans-serif"
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": _FONT, "size": 13, "color": INK},
        "title": _TITLE,
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": [c for name, c in COLOURS.items() if name != "trace"],
        "hoverlabel": {"align": "left", "bgcolor": "white", "font": {"color": INK, "size": 13}},
        "margin": {"l": 64, "r": 24, "t": 56, "b": 56},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
)

_SPACES = {" ": "·", "\n": "↵", "\r": "␍", "\t": "⇥"}


def visible(token: str, longest: int = 14) -> str:
    """A token as an axis label: white space as signs, cut to a length, safe as HTML."""
    shown = "".join(_SPACES.get(c, c) for c in token)
    return html.escape(isolated(short(shown, longest)), quote=False)


def quoted(token: str) -> str:
    """A token between quotation marks, as hover text and tables show it, safe as HTML."""
    return html.escape(isolated(json.dumps(token, ensure_ascii=False)), quote=False)


def text_of(name: str) -> str:
    """A name as text of a figure, safe as HTML: `a0.h1<q>` is no tag."""
    return html.escape(name, quote=False)


def look_of(method: str) -> Look:
    """The look of a method; one for all that are not in `METHODS`."""
    return METHODS[method].look if method in METHODS else Look()


def method_line(method: str) -> dict[str, object]:
    """How a method's line looks."""
    look = look_of(method)
    return {"color": look.colour, "dash": look.dash, "width": 2}


def method_marker(method: str, size: int = 7) -> dict[str, object]:
    """How a method's dots look."""
    look = look_of(method)
    return {"color": look.colour, "symbol": look.symbol, "size": size}


def percent(share: float | int) -> str:
    """A share as a percentage with three significant digits."""
    return f"{100 * share:.3g} %"


def size_text(size: float, edges: int) -> str:
    """The line that starts every hover text: exact relative size and edges."""
    return f"<b>s = {size:.10g}</b>, {edges:,} edge{'s' * (edges != 1)}"


def size_axis(sizes: Sequence[float] | Float[np.ndarray, " size"]) -> dict[str, object]:
    """A logarithmic axis from 1e-5 (or the smallest size, if smaller) to 1, a label a decade."""
    first = min(-5, int(np.floor(np.log10(np.min(sizes)))))
    decades = np.arange(first, 1)
    minor = np.outer(10.0 ** decades[:-1], np.arange(2, 10)).ravel()
    return {
        "type": "log",
        "range": [first - 0.08, 0.08],
        "tickmode": "array",
        "tickvals": [10.0 ** int(d) for d in decades],
        "ticktext": ["1" if d == 0 else f"10<sup>−{-d}</sup>" for d in decades],
        "minor": {"tickmode": "array", "tickvals": minor.tolist(), "ticks": "outside"},
        "title": {"text": "relative size s = edges of the trace / edges of the graph (log)"},
    }


def measured_axis(sizes: Sequence[float] | Float[np.ndarray, " size"]) -> dict[str, object]:
    """The axis of sizes from the smallest measured one, whatever it is, and without its title."""
    first = float(np.log10(np.min(sizes)))
    return {**size_axis(sizes), "range": [first - 0.08, 0.08], "title": None}


def cell_bounds(
    sizes: Sequence[float] | Float[np.ndarray, " size"],
) -> Float[np.ndarray, " bound"]:
    """Borders of heat map columns on a log axis: half way, in log, between measured sizes.

    The outermost columns reach as far out as in, and never beyond s = 1.1, where the axis ends.
    """
    log = np.log10(np.asarray(sizes, dtype=np.float64))
    middles = (log[1:] + log[:-1]) / 2
    first = log[0] - (middles[0] - log[0] if len(middles) else 0.05)
    last = log[-1] + (log[-1] - middles[-1] if len(middles) else 0.05)
    return 10 ** np.concatenate([[first], middles, [min(last, np.log10(1.1))]])


def figure(title: str, height: int, **layout: Any) -> go.Figure:
    """An empty figure in this look."""
    return dressed(go.Figure(), title, height, **layout)


def dressed(fig: go.Figure, title: str, height: int, **layout: Any) -> go.Figure:
    """A figure of any panels, put into this look."""
    return fig.update_layout(template=TEMPLATE, title_text=title, height=height, **layout)


def note(fig: go.Figure, *lines: str, y: float = 0.5) -> None:
    """Say in the middle of a figure (at height y, 0 to 1) why it shows less than it might."""
    fig.add_annotation(
        text="<br>".join(text_of(line) for line in lines),
        x=0.5,
        y=y,
        xref="paper",
        yref="paper",
        showarrow=False,
        bgcolor="white",
        bordercolor=INK,
        borderpad=6,
    )


def remark(fig: go.Figure, text: str, row: int = 0) -> None:
    """Say above the plotting area, at its left, what is missing; rows count upwards."""
    fig.add_annotation(
        text=text_of(text),
        x=0,
        y=1,
        xref="paper",
        yref="paper",
        xanchor="left",
        yanchor="bottom",
        yshift=2 + LINE * row,
        showarrow=False,
        font={"size": 12},
    )
