"""Where a density curve deserves another size: at its steep steps, and where head and tail return.

A fixed grid says where a curve falls only as closely as it is spaced there. Halving the steps over
which the curve moves, in the logarithm of the size, makes the boundaries of phases independent of
the grid that the curve was first measured on.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd

from strace_lens.measures.sizes import smallest_size_from_which

REFINE = 12
"""How many sizes are added to the grid at the most, unless said otherwise."""

STEP = 0.1
"""Total variation may move by this much from one size to the next before the step is halved."""

FINEST = 1.03
"""A step whose ends differ by less than this factor is not halved."""

THRESHOLD = 0.1
"""Share of the head's (tail's) mass under which its error counts as restored."""


def sizes_to_add(
    table: pd.DataFrame, head_mass: float, edge_count: Callable[[float], int], most: int
) -> list[float]:
    """The sizes of the next round of refinement, rising; none where the curve is fine enough.

    A step between neighbouring sizes is halved (at the geometric mean, to four digits) if total
    variation moves by more than `STEP` over it, or if the error of head or tail passes its
    threshold for good within it. Where there are more steps than `most`, those over which total
    variation moves furthest come first, then the head's, then the tail's. A step is left alone if
    its ends differ by less than `FINEST`, or if the size between them has the edges of one of them.

    Args:
        table: columns `size` (rising), `tv`, `head_error` and `tail_error`.
        head_mass: probability that the full model gives the head.
        edge_count: number of edges of a relative size.
        most: return no more sizes than this.
    """
    sizes = table["size"].to_numpy()
    moves = np.abs(np.diff(table["tv"].to_numpy()))
    steps = [int(i) for i in np.argsort(-moves, kind="stable") if moves[i] > STEP]
    for restored in restored_from(table, head_mass):
        above = np.flatnonzero(sizes == restored)  # none for NaN
        steps += [int(i) - 1 for i in above if i > 0]
    middles = [_middle(float(sizes[i]), float(sizes[i + 1]), edge_count) for i in steps]
    return sorted(list(dict.fromkeys(m for m in middles if m is not None))[:most])


def _middle(below: float, above: float, edge_count: Callable[[float], int]) -> float | None:
    middle = float(f"{math.sqrt(below * above):.4g}")  # a size that can be typed again
    if above < below * FINEST or edge_count(middle) in (edge_count(below), edge_count(above)):
        return None
    return middle


def restored_from(
    table: pd.DataFrame, head_mass: float, threshold: float = THRESHOLD
) -> tuple[float, float]:
    """Sizes from which on the head's and the tail's error stay under a share of their mass.

    NaN where the largest size does not get there. The table has `size`, `head_error` and
    `tail_error`, as `DensityCurve.table`.

    Raises:
        ValueError: a threshold outside (0, 1).
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie in (0, 1); got {threshold}")
    sizes = table["size"].to_numpy()
    head, tail = (
        smallest_size_from_which(sizes, (table[f"{part}_error"] < threshold * mass).to_numpy())
        for part, mass in (("head", head_mass), ("tail", 1 - head_mass))
    )
    return head, tail
