"""Functions of a curve over relative sizes: the grid of the paper, density, sizes to add.

A fixed grid says where a curve falls only as closely as it is spaced there. Halving the steps over
which the curve moves, in the logarithm of the size, makes the boundaries of phases independent of
the grid that the curve was first measured on.

Source: s-Trace (arXiv 2605.27033), sections "extraction" (the grid) and "measures"; its authors'
code for `auc_paper` and for the first size of `first_size_at_which`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from torch import Tensor

from strace_lens.measures.distributions import MASS_TOLERANCE

DENSITY_SIZES = tuple(float(s) for s in np.geomspace(1e-4, 0.8, 25))
"""Evenly spaced in the logarithm: the sizes over which estimators are compared by density."""

ESTIMATOR_SIZES = tuple(sorted({*DENSITY_SIZES, 0.01, 0.05, 0.1, 0.2, 0.4}))
"""The sizes at which estimators are compared: those of density, and round ones for tables."""

SMALLEST = 1e-8
"""The relative size at which `auc_paper` places a trace without edges."""

Curve = Float[Tensor, " size"] | Float[np.ndarray, " size"]
"""One value a size, by rising size."""

Holds = Bool[Tensor, " size"] | Bool[np.ndarray, " size"]
"""Whether a condition holds, by rising size."""


def density(sizes: Curve, tv: Curve) -> float:
    """Density of a prompt: area under TV over log10 s, over the range of log10 s; in [0, 1].

    The trapezoid rule between the measured sizes (s-Trace, arXiv 2605.27033).

    Args:
        sizes: relative sizes in (0, 1], strictly rising, at least two.
        tv: total variation at each size.

    Raises:
        ValueError: fewer than two sizes, sizes that do not rise or lie outside (0, 1], values of
            `tv` that are NaN or outside [0, 1], or unequal lengths.
    """
    s, y = check_sizes(sizes), _check_tv(tv, len(sizes))
    if len(s) < 2:
        raise ValueError(f"density needs at least two sizes; got {len(s)}")
    x = np.log10(s)
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def auc_paper(achieved: Curve, tv: Curve) -> float:
    """Area under TV over log10 of the achieved sizes, as in the authors' code; in [0, 8].

    It differs from `density` in three ways. It is not divided by the range of log10 s, so it grows
    with the number of decades that the sizes span. The sizes are those that whole numbers of edges
    give, k / |E|. A trace without any edge stands at 1e-8, so a graph too small for the smallest
    size of the grid has a longer curve. The authors use the sizes of the grid alone.

    Args:
        achieved: edges of each trace over the edges of the graph, in [0, 1], not falling, at least
            two.
        tv: total variation at each size.

    Raises:
        ValueError: fewer than two sizes, sizes that fall or lie outside [0, 1], values of `tv`
            that are NaN or outside [0, 1], or unequal lengths.
    """
    s, y = _curve(achieved, "achieved"), _check_tv(tv, len(achieved))
    if len(s) < 2:
        raise ValueError(f"auc_paper needs at least two sizes; got {len(s)}")
    outside = s[~((s >= 0) & (s <= 1))]  # NaN too
    if outside.size:
        raise ValueError(f"achieved sizes must lie in [0, 1]; got {outside[0]}")
    falls = np.flatnonzero(np.diff(s) < 0)
    if falls.size:
        raise ValueError(
            f"achieved sizes must not fall; got {s[falls[0] + 1]} after {s[falls[0]]}; sort them"
        )
    return float(np.trapezoid(y, np.log10(s.clip(SMALLEST))))


def smallest_size_from_which(sizes: Curve, holds: Holds) -> float:
    """Smallest size from which a condition holds at every larger size; nan if not at the largest.

    Args:
        sizes: relative sizes in (0, 1], strictly rising.
        holds: whether the condition holds at each size.

    Raises:
        ValueError: sizes that do not rise or lie outside (0, 1], `holds` that is not boolean, or
            unequal lengths.
    """
    s, flags = check_sizes(sizes), _flags(holds, len(sizes))
    failures = np.flatnonzero(~flags)
    first = int(failures[-1]) + 1 if failures.size else 0
    return float(s[first]) if first < len(s) else math.nan


def first_size_at_which(sizes: Curve, holds: Holds) -> float:
    """Smallest size at which a condition holds, whatever happens at larger sizes; nan if at none.

    A condition that comes and goes may hold at a small size by accident, the more likely the more
    sizes are looked at; `smallest_size_from_which`, which takes and raises the same, does not count
    such a size.
    """
    s, flags = check_sizes(sizes), _flags(holds, len(sizes))
    return float(s[flags.argmax()]) if flags.any() else math.nan


RULES: dict[str, Callable[[Curve, Holds], float]] = {
    "stable": smallest_size_from_which,
    "first": first_size_at_which,
}
"""What makes a size enough: that a condition holds from there on, or that it holds there."""


def size_for_nucleus(sizes: Curve, nuclei: Curve, p: float, rule: str = "stable") -> float:
    """Smallest size that is enough for a shared nucleus of at least p; nan if none is.

    Args:
        sizes: relative sizes in (0, 1], strictly rising.
        nuclei: `shared_nucleus` at each size.
        p: the level asked for, in (0, 1).
        rule: a key of `RULES`. "stable" wants the nucleus shared at every larger size too; "first",
            the rule of the authors' code, takes the first size that shares it.

    Raises:
        ValueError: p outside (0, 1), NaN in `nuclei`, an unknown rule, bad sizes, or unequal
            lengths.
    """
    if rule not in RULES:
        raise ValueError(f"rule must be {' or '.join(map(repr, RULES))}; got {rule!r}")
    if not 0 < p < 1:
        raise ValueError(f"p must lie in (0, 1); got {p}")
    levels = _curve(nuclei, "nuclei", len(sizes))
    if np.isnan(levels).any():
        raise ValueError("nuclei hold NaN; pass the values of shared_nucleus")
    return RULES[rule](sizes, levels >= p - MASS_TOLERANCE)


def _check_tv(tv: Curve, length: int) -> Float[np.ndarray, " size"]:
    y = _curve(tv, "tv", length)
    wrong = y[~((y >= -1e-6) & (y <= 1 + 1e-6))]
    if wrong.size:
        raise ValueError(f"tv must lie in [0, 1]; got {wrong[0]}")
    return y


def _flags(holds: Holds, length: int) -> Bool[np.ndarray, " size"]:
    flags = np.asarray(holds)
    if flags.dtype != np.bool_ or flags.shape != (length,):
        raise ValueError(
            f"holds must be {length} booleans, one a size; got {flags.dtype} of shape {flags.shape}"
        )
    return flags


def _curve(values: Curve, name: str, length: int | None = None) -> Float[np.ndarray, " size"]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or (length is not None and len(array) != length):
        wanted = "one-dimensional" if length is None else f"{length} values, one a size"
        raise ValueError(f"{name} must be {wanted}; got shape {array.shape}")
    return array


def check_sizes(sizes: Curve) -> Float[np.ndarray, " size"]:
    """Relative sizes as a float64 array.

    Raises:
        ValueError: none at all, one outside (0, 1], or sizes that do not rise strictly.
    """
    s = _curve(sizes, "sizes")
    if s.size == 0:
        raise ValueError("sizes are empty; pass at least one")
    outside = s[~((s > 0) & (s <= 1))]  # NaN too
    if outside.size:
        raise ValueError(f"sizes must lie in (0, 1]; got {outside[0]}")
    falls = np.flatnonzero(np.diff(s) <= 0)
    if falls.size:
        raise ValueError(
            f"sizes must rise strictly; got {s[falls[0] + 1]} after {s[falls[0]]}; sort them"
        )
    return s


def edge_count(size: int | float, edges: int) -> int:
    """How many edges a size stands for: a number of edges, or a fraction of all of them.

    A fraction s of E edges is floor(s * E), as in s-Trace and in the MIB benchmark, and may be none
    of a small graph.

    Args:
        size: a number of edges (int) in 1..E, or a fraction of them (float) in (0, 1].
        edges: all there are, E.

    Raises:
        TypeError: a size that is a boolean or no number.
        ValueError: a size out of range.

    Example:
        >>> edge_count(0.29, 100), edge_count(29, 100)
        (29, 29)
    """
    if isinstance(size, bool) or not isinstance(size, Real):
        raise TypeError(
            f"a size is a number of edges (int) or a fraction of them (float); got {size!r}"
        )
    if isinstance(size, Integral):
        if not 1 <= size <= edges:
            raise ValueError(
                f"a size given as a number of edges must lie in 1..{edges}; got {size}"
            )
        return int(size)
    if not 0 < size <= 1:  # NaN too
        raise ValueError(
            f"a size given as a fraction of the edges must lie in (0, 1]; got {size} (a number of "
            "edges is an int)"
        )
    # 0.29 * 100 is 28.999...: a product one rounding error below a whole number is that number.
    return math.floor(float(size) * edges * (1 + 1e-12))


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
    added: list[float] = []
    for below, above in ((float(sizes[i]), float(sizes[i + 1])) for i in dict.fromkeys(steps)):
        middle = float(f"{math.sqrt(below * above):.4g}")  # a size that can be typed again
        of_its_own = edge_count(middle) not in (edge_count(below), edge_count(above))
        if above >= below * FINEST and of_its_own:
            added.append(middle)
    return sorted(added[:most])


def restored_from(
    table: pd.DataFrame, head_mass: float, threshold: float = THRESHOLD
) -> tuple[float, float]:
    """Sizes from which on the head's and the tail's error stay under a share of their mass.

    NaN where the largest size does not get there. The table is that of `sizes_to_add`.

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
