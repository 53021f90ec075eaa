"""Phases along the sizes of a curve: change points, found by a compiled search.

Source: s-Trace (arXiv 2605.27033), section "phases". The paper draws the boundary of construction
and refinement by eye; here it is a change point of the measured curve. The fits are those of
`ruptures.Dynp(model="clinear", min_size=3, jump=1)`, which takes 0.15 to 0.3 s a curve, too long
for thousands of resamples. With at most two breaks among 150 points every chord can be tried.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import no_type_check

import numpy as np
from jaxtyping import Float
from numba import njit

GRID = 150
LEAST_SIZES = 4
LEAST_POINTS = 3
"""The fewest points of a piece of the fit, as for continuous linear pieces in ruptures."""

_LEAST_DROP = 0.1
_ROUNDING = 1e-12
_LEAST_VARIANCE = 1e-5  # a TV known to 0.3 %: what a straight piece may miss and be called straight
_BLOCK = 128  # numpy halves what is longer before it sums it


Between = tuple[float, float]
"""The measured sizes between which a boundary lies."""


@dataclass(frozen=True)
class Phase:
    """A stretch of sizes over which TV falls at one pace.

    Attributes:
        name: "plateau" (before), "construction" (the steepest fall) or "refinement" (after).
        start, stop: relative sizes.
        tv_start, tv_stop: total variation at the two ends.
        start_between, stop_between: the measured sizes next below and next above that end, between
            which it lies; None at an end of the curve.
    """

    name: str
    start: float
    stop: float
    tv_start: float
    tv_stop: float
    start_between: Between | None = None
    stop_between: Between | None = None


def change_points(
    sizes: Float[np.ndarray, " size"], tv: Float[np.ndarray, " size"], refined: int = 0
) -> tuple[Phase, ...]:
    """Split a curve into plateau, construction and refinement.

    TV over log10 s is approximated by one to three connected straight pieces on a grid of 150
    points; the Bayesian information criterion over the measured sizes picks how many. The ends of
    the pieces then move, by no more than the least length of a piece on that grid, to where lines
    are nearest to the curve (`sharpened`). Construction is the steepest piece over which TV falls
    by a tenth; what comes before is plateau, what comes after refinement.

    Args:
        sizes: relative sizes, rising.
        tv: total variation at each size.
        refined: how many of the sizes a refinement added. They sharpen the curve, but the criterion
            does not count them: where a curve was looked at more closely says nothing about the
            number of its pieces.

    Returns:
        The phases that were found, in order; none for fewer than four sizes, or where TV never
        falls by a tenth over one piece.
    """
    if len(sizes) < LEAST_SIZES:
        return ()
    logs = np.log10(sizes)
    grid = np.linspace(logs[0], logs[-1], GRID)
    values = np.interp(grid, logs, tv)
    samples = max(LEAST_SIZES, len(sizes) - refined)
    fits = [[GRID], *break_points(values)]
    best = min(fits, key=lambda ends: _information(values, [0, *ends], samples))
    knots = [grid[0], *sharpened(logs, tv, grid, best[:-1]), grid[-1]]
    heights = np.interp(knots, logs, tv)
    drops = heights[:-1] - heights[1:]
    if (drops < _LEAST_DROP).all():
        return ()
    steepest = int(np.argmax(np.where(drops < _LEAST_DROP, -np.inf, drops / np.diff(knots))))
    bounds = {
        "plateau": (0, steepest),
        "construction": (steepest, steepest + 1),
        "refinement": (steepest + 1, len(knots) - 1),
    }
    return tuple(
        Phase(
            name=name,
            start=float(10 ** knots[a]),
            stop=float(10 ** knots[b]),
            tv_start=float(heights[a]),
            tv_stop=float(heights[b]),
            start_between=_between(logs, sizes, knots[a]),
            stop_between=_between(logs, sizes, knots[b]),
        )
        for name, (a, b) in bounds.items()
        if a < b
    )


def break_points(values: Float[np.ndarray, " point"]) -> list[list[int]]:
    """Where the pieces of the best continuous fits by two and by three lines end.

    Equal to `ruptures.Dynp(model="clinear", min_size=3, jump=1)` with one and with two breaks.

    Args:
        values: a curve at 9 to 249 evenly spaced points; longer ones may tie otherwise.
    """
    points = len(values)
    one, first, second = _best_breaks(_chord_costs(np.ascontiguousarray(values, np.float64)))
    return [[int(one), points], [int(first), int(second), points]]


def sharpened(
    logs: Float[np.ndarray, " size"],
    tv: Float[np.ndarray, " size"],
    grid: Float[np.ndarray, " point"],
    breaks: list[int],  # one or two points of the grid, or none
) -> list[float]:
    """The breaks of the connected lines nearest to a curve, close to some points of a grid.

    On the grid a piece has a least length, and its ends lie on the curve: a steep fall is fitted
    too wide, and its ends jump from one dent of the curve to the next. Here each break moves to any
    point of the grid, or any measured size, that is no further than that length from it, and the
    lines need not touch the curve. All breaks together are those of least squared distance,
    integrated over log10 s.
    """
    if not breaks:
        return []
    reach = LEAST_POINTS * (grid[1] - grid[0]) + _ROUNDING
    points = np.union1d(grid, logs)
    near = [points[np.abs(points - grid[k]) <= reach] for k in breaks]
    tried = np.stack(np.meshgrid(*near, indexing="ij"), -1).reshape(-1, len(breaks))
    inside = (tried > logs[0] + _ROUNDING) & (tried < logs[-1] - _ROUNDING)
    tried = tried[inside.all(1) & (np.diff(tried, axis=1) > _ROUNDING).all(1)]
    ends = np.ones((len(tried), 1))
    knots = np.concatenate([ends * logs[0], tried, ends * logs[-1]], 1)
    return tried[np.argmin(_misfit(logs, tv, knots))].tolist()


def _misfit(
    logs: Float[np.ndarray, " size"],
    tv: Float[np.ndarray, " size"],
    knots: Float[np.ndarray, "fit knot"],
) -> Float[np.ndarray, " fit"]:
    """Integrated squared distance of a curve from the best connected lines with some knots.

    The lines are the curve's projection on the hat functions of the knots. Between two nodes,
    measured sizes and knots alike, curve and hats are straight, so that every integral is exact.
    """
    nodes = np.union1d(logs, knots)
    curve = np.interp(nodes, logs, tv)
    steps, widths = np.diff(nodes), np.diff(knots, axis=1)
    along = np.clip((nodes - knots[:, :-1, None]) / widths[..., None], 0, 1)
    ones = np.ones_like(along[:, :1])
    hats = np.concatenate([ones, along], 1) - np.concatenate([along, 0 * ones], 1)
    gram = np.zeros((*knots.shape, knots.shape[1]))
    for piece in range(widths.shape[1]):
        inner = slice(piece, piece + 2)
        gram[:, inner, inner] += widths[:, piece, None, None] / 6 * np.array([[2, 1], [1, 2]])
    shares = _integrals(hats, curve, steps)
    heights = np.linalg.solve(gram, shares[..., None])[..., 0]
    return _integrals(curve[None], curve, steps) - (heights * shares).sum(1)


def _integrals(
    some: Float[np.ndarray, "*rows node"],
    other: Float[np.ndarray, " node"],
    steps: Float[np.ndarray, " step"],
) -> Float[np.ndarray, "*rows"]:
    """Of the products of functions with another, all of them straight between nodes."""
    a, b, c, d = some[..., :-1], some[..., 1:], other[:-1], other[1:]
    return ((2 * a * c + a * d + b * c + 2 * b * d) * steps).sum(-1) / 6


def _information(values: Float[np.ndarray, " point"], knots: list[int], samples: int) -> float:
    """Bayesian information criterion of the polyline through a curve's own points at the knots."""
    at = [min(k, len(values) - 1) for k in knots]
    line = np.interp(np.arange(len(values)), at, values[at])
    variance = max(float(np.mean((values - line) ** 2)), _LEAST_VARIANCE)
    parameters = 2 * len(knots) - 2
    return samples * math.log(variance) + parameters * math.log(samples)


def _between(
    logs: Float[np.ndarray, " size"], sizes: Float[np.ndarray, " size"], knot: float
) -> Between | None:
    """The measured sizes next below and next above a knot; None at an end of the curve."""
    below = np.flatnonzero(logs < knot - _ROUNDING)
    above = np.flatnonzero(logs > knot + _ROUNDING)
    if not (len(below) and len(above)):
        return None
    return float(sizes[below[-1]]), float(sizes[above[0]])


@njit(cache=True)
@no_type_check
def _chord_costs(values):
    """Squared error of the chord over the points from `start` up to, not including, `end`.

    A chord starts at the last point of the piece before, so that pieces meet.
    """
    points = len(values)
    costs = np.full((points + 1, points + 1), np.inf)
    errors, sums = np.empty(points), np.empty(8)
    for start in range(points - LEAST_POINTS + 1):
        first = max(start, 1)
        origin = values[first - 1]
        for end in range(start + LEAST_POINTS, points + 1):
            length = end - first
            slope = (values[end - 1] - origin) / length
            for k in range(length):
                miss = values[first + k] - (slope * (k + 1) + origin)
                errors[k] = miss * miss
            costs[start, end] = _sum(errors, length, sums)
    return costs


@njit(cache=True)
@no_type_check
def _sum(values, length, sums):
    """The sum of the first values, added in numpy's order."""
    if length <= _BLOCK:
        return _sum_block(values, 0, length, sums)
    half = length // 2
    half -= half % 8
    return _sum_block(values, 0, half, sums) + _sum_block(values, half, length, sums)


@njit(cache=True)
@no_type_check
def _sum_block(values, start, stop, sums):
    total = 0.0
    whole = start + (stop - start) // 8 * 8
    if whole > start:
        for k in range(8):
            sums[k] = values[start + k]
        for at in range(start + 8, whole, 8):
            for k in range(8):
                sums[k] += values[at + k]
        total = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + (
            (sums[4] + sums[5]) + (sums[6] + sums[7])
        )
    for at in range(whole, stop):
        total += values[at]
    return total


@njit(cache=True)
@no_type_check
def _best_breaks(costs):
    """The best single break, and the best pair; ties to the earliest, the last break first."""
    points = len(costs) - 1
    one, first, second = 0, 0, 0
    lowest_one, lowest_two = np.inf, np.inf
    for last in range(LEAST_POINTS, points - LEAST_POINTS + 1):
        total = costs[0, last] + costs[last, points]
        if total < lowest_one:
            lowest_one, one = total, last
        before, left = 0, np.inf
        for middle in range(LEAST_POINTS, last - LEAST_POINTS + 1):
            both = costs[0, middle] + costs[middle, last]
            if both < left:
                left, before = both, middle
        if left + costs[last, points] < lowest_two:
            lowest_two, first, second = left + costs[last, points], before, last
    return one, first, second
