"""The change points of many curves: the fits that `ruptures` finds, by a compiled search.

`phases.change_points` takes 0.15 to 0.3 s a curve, too long for thousands of resamples.
With at most two breaks among 150 points every chord can be tried. Costs are summed in numpy's
order, so that they equal those of `ruptures` to the bit and ties fall alike.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from jaxtyping import Float
from numba import njit

from strace_lens.density.phases import (
    LEAST_POINTS,
    LEAST_SIZES,
    Phase,
    on_phase_grid,
    phases_of_fits,
)

_BLOCK = 128  # numpy halves what is longer before it sums it


def fast_change_points(
    sizes: Float[np.ndarray, " size"], tv: Float[np.ndarray, " size"], refined: int = 0
) -> tuple[Phase, ...]:
    """Split a curve into plateau, construction and refinement: the result of `change_points`.

    Args:
        sizes: relative sizes, rising.
        tv: total variation at each.
        refined: how many of the sizes a refinement added.
    """
    if len(sizes) < LEAST_SIZES:
        return ()
    values = on_phase_grid(sizes, tv)[1]
    return phases_of_fits(sizes, tv, break_points(values), refined)


def break_points(values: Float[np.ndarray, " point"]) -> list[list[int]]:
    """Where the pieces of the best continuous fits by two and by three lines end.

    Equal to `ruptures.Dynp(model="clinear", min_size=3, jump=1)` with one and with two breaks.

    Args:
        values: a curve at 9 to 249 evenly spaced points; longer ones may tie otherwise.
    """
    points = len(values)
    one, first, second = _best_breaks(_chord_costs(np.ascontiguousarray(values, np.float64)))
    return [[int(one), points], [int(first), int(second), points]]


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
