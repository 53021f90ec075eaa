"""One look for each discovery method, and the matrix of every method against every other."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from strace_lens.plot.style import INK


class Look(NamedTuple):
    """How the line and the dots of a method look."""

    colour: str
    dash: str = "solid"
    symbol: str = "circle"


# Hue by family: black patches exactly, blues and pinks take gradients, red and orange search or
# learn a mask, green follows the flow, grey asks neither the model nor the task.
LOOKS = {
    "edge-patching": Look("#000000"),
    "node-patching": Look("#000000", "dash", "square"),
    "attribution-patching": Look("#56B4E9", "dash", "square"),
    "eap": Look("#56B4E9"),
    "eap-ig": Look("#0072B2"),
    "eap-ig-activations": Look("#332288", "dashdot", "diamond"),
    "clean-corrupted": Look("#0072B2", "dot", "triangle-up"),
    "eap-ig-kl": Look("#CC79A7", "solid", "diamond"),
    "acdc": Look("#CC3311", "solid", "triangle-up"),
    "edge-pruning": Look("#E69F00"),
    "node-pruning": Look("#E69F00", "dash", "square"),
    "ifr": Look("#009E73", "dash", "square"),
    "strace": Look("#009E73"),
    "weight-magnitude": Look("#808080", "dash", "square"),
    "random": Look("#808080", "dot", "x"),
}
_OTHER = Look(INK, "longdash", "star")


def look_of(method: str) -> Look:
    """The look of a method; one for all that have none of their own."""
    return LOOKS.get(method, _OTHER)


def line_of(method: str) -> dict[str, object]:
    """How a method's line looks."""
    look = look_of(method)
    return {"color": look.colour, "dash": look.dash, "width": 2}


def marker_of(method: str, size: int = 7) -> dict[str, object]:
    """How a method's dots look."""
    look = look_of(method)
    return {"color": look.colour, "symbol": look.symbol, "size": size}


def text_of(name: str) -> str:
    """A name as text of a figure, safe as HTML: `a0.h1<q>` is no tag."""
    return html.escape(name, quote=False)


def matrix_height(names: Sequence[str]) -> int:
    """Pixels that a matrix of these needs."""
    return 250 + 27 * len(names)


def add_matrix(
    fig: go.Figure,
    names: Sequence[str],
    values: Float[np.ndarray, "row column"],
    texts: list[list[str]],
    **look: object,
) -> None:
    """A symmetric matrix as a heat map with its numbers; its diagonal is blank, and so is NaN.

    Args:
        fig: to add to.
        names: of rows and columns.
        values: in the range of the colours.
        texts: hover texts.
        look: of the heat map: colours, their range, title of the colour bar.
    """
    shown = np.where(np.eye(len(names), dtype=bool), np.nan, values)
    fig.add_heatmap(
        x=list(range(len(names))),
        y=list(range(len(names))),
        z=shown,
        texttemplate="%{z:.2f}",
        textfont={"size": 10},
        hoverinfo="text",
        hoverongaps=False,
        hovertext=texts,
        xgap=1,
        ygap=1,
        **look,
    )


def label_matrix(fig: go.Figure, names: Sequence[str]) -> None:
    """The axes of a matrix: rows downwards, in the order given."""
    ticks = {
        "tickmode": "array",
        "tickvals": list(range(len(names))),
        "ticktext": [text_of(name) for name in names],
        "showgrid": False,
    }
    fig.update_xaxes(tickangle=-40, range=[-0.5, len(names) - 0.5], **ticks)
    fig.update_yaxes(range=[len(names) - 0.5, -0.5], **ticks)
