"""Curves of all prompts on a common grid, and percentile intervals from drawing prompts again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from strace_lens.corpus.analyses.arrays import at_sizes
from strace_lens.corpus.run_folder import Run
from strace_lens.measures.intervals import CONFIDENCE

POINTS = 150
"""Points of the common grid (s-Trace, arXiv 2605.27033)."""


def log_grid(run: Run, points: int = POINTS) -> Float[np.ndarray, " point"]:
    """Relative sizes, evenly spaced in the logarithm, from the smallest measured to the largest.

    Raises:
        ValueError: fewer than two sizes were measured.
    """
    if len(run.grid) < 2:
        raise ValueError(
            f"a curve takes two sizes or more; {run.name} has {len(run.grid)}: sweep at more sizes"
        )
    return np.geomspace(run.grid[0], run.grid[-1], points)


def on_grid(
    run: Run, column: str, grid: Float[np.ndarray, " point"]
) -> Float[np.ndarray, "prompt point"]:
    """Each prompt's curve on a grid of sizes, linear in log10 s between the measured sizes.

    NaN between two sizes if one of them has NaN.
    """
    at, measured = np.log10(grid), np.log10(run.grid)
    return np.stack([np.interp(at, measured, values) for values in at_sizes(run, column)])


def resamples(prompts: int, count: int, seed: int = 0) -> Int[np.ndarray, "resample prompt"]:
    """Draws of as many prompts as there are, with replacement: their places."""
    return np.random.default_rng(seed).integers(prompts, size=(count, prompts))


def percentiles(
    found: Float[np.ndarray, "resample *rest"],
) -> tuple[Float[np.ndarray, "*rest"], Float[np.ndarray, "*rest"]]:
    """Low and high end of the 95 % percentile interval over resamples.

    A resample that has no value (NaN) is left out; NaN where none has one.
    """
    low = np.full(found.shape[1:], np.nan)
    high = low.copy()
    some = ~np.isnan(found).all(0)
    if len(found) and some.any():
        outside = (1 - CONFIDENCE) / 2
        low[some], high[some] = np.nanquantile(found[:, some], [outside, 1 - outside], axis=0)
    return low, high


def interval_of(
    values: Float[np.ndarray, "prompt point"],
    statistic: Callable[..., Float[np.ndarray, "resample point"]],
    draws: Int[np.ndarray, "resample prompt"],
    at_once: int = 2**23,
) -> tuple[Float[np.ndarray, " point"], Float[np.ndarray, " point"]]:
    """The 95 % percentile bootstrap interval over prompts of a statistic of each column.

    NaN for fewer than two prompts.

    Args:
        values: one row a prompt.
        statistic: reduces an axis, as `np.mean` and `np.median`: `statistic(values, axis=1)`.
        draws: of `resamples`.
        at_once: how many drawn values are held (8 bytes each), if a column has no more.
    """
    prompts, points = values.shape
    if prompts < 2:
        return np.full(points, np.nan), np.full(points, np.nan)
    step = max(1, at_once // max(1, draws.size))
    parts = [
        percentiles(statistic(values[:, at : at + step][draws], axis=1))
        for at in range(0, points, step)
    ]
    low, high = zip(*parts, strict=True)
    return np.concatenate(low), np.concatenate(high)
