"""Names beside dots, placed so that they do not cover each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

_WIDE, _HIGH = 620, 370  # pixels of the plotting area on a narrow page
_LETTER, _LINE = 6.6, 15
# Pixels from a dot to its name: close by first, then further off with a line to it.
_PLACES = [
    *[(10, 0, "left"), (-10, 0, "right"), (0, -15, "center"), (0, 15, "center")],
    *[
        (x, y, side)
        for far in (1, 2, 3, 4)
        for y in (-18 * far, 18 * far)
        for x, side in ((16, "left"), (-16, "right"), (60, "left"), (-60, "right"))
    ],
]

_Place = tuple[int, int, str]
_Box = tuple[float, float, float, float]


def add_labels(
    fig: go.Figure,
    x: Float[np.ndarray, " dot"],
    y: Float[np.ndarray, " dot"],
    labels: Sequence[str],
    across: tuple[float, float],
    up: tuple[float, float],
) -> None:
    """Write a name beside each dot.

    Args:
        fig: to add annotations to.
        x, y: where the dots are; logarithms on a logarithmic axis.
        labels: safe as HTML.
        across, up: ranges of the axes.
    """
    at = np.stack(
        [
            (x - across[0]) / (across[1] - across[0]) * _WIDE,
            (up[1] - y) / (up[1] - up[0]) * _HIGH,
        ],
        1,
    )
    taken: list[_Box] = [(cx - 6, cy - 6, cx + 6, cy + 6) for cx, cy in at.tolist()]
    for i in np.lexsort((y, x)).tolist():
        others = taken[:i] + taken[i + 1 :]
        (dx, dy, side), box = _place(at[i].tolist(), len(labels[i]) * _LETTER, others)
        taken.append(box)
        fig.add_annotation(
            x=float(x[i]),
            y=float(y[i]),
            text=labels[i],
            ax=dx,
            ay=dy,
            xanchor=side,
            showarrow=True,
            arrowhead=0,
            arrowwidth=1,
            arrowcolor="#aaaaaa" if abs(dy) > 15 else "rgba(0,0,0,0)",
            standoff=4,
            font={"size": 12},
            bgcolor="rgba(255,255,255,0.8)",
            borderpad=0,
        )


def _place(dot: list[float], wide: float, taken: list[_Box]) -> tuple[_Place, _Box]:
    """The first place whose box is inside the plotting area and free; else the one freest."""
    best: tuple[_Place, _Box] | None = None
    least = float("inf")
    for dx, dy, side in _PLACES:
        left = dot[0] + dx - {"left": 0.0, "center": wide / 2, "right": wide}[side]
        box = (left, dot[1] + dy - _LINE / 2, left + wide, dot[1] + dy + _LINE / 2)
        outside = box[0] < 0 or box[2] > _WIDE or box[1] < 0 or box[3] > _HIGH
        covered = sum(_common(box, other) for other in taken) + 1e4 * outside
        if covered < least:
            best, least = ((dx, dy, side), box), covered
        if not covered:
            break
    assert best is not None
    return best


def _common(a: _Box, b: _Box) -> float:
    """Area that two boxes share."""
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, wide) * max(0.0, high)
