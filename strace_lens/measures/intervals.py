"""How sure a value over prompts is: the bootstrap, Wilson's interval of a share, and both as text.

Every bootstrap draws whole prompts with replacement, and every interval is the middle 95 % of what
the resamples give.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Int64

CONFIDENCE = 0.95
RESAMPLES = 9999

TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
"""The quantiles of the resamples between which an interval lies."""

_BLOCK = 256  # values resampled together: 20 MB


class Means(NamedTuple):
    """Means over the prompts that have a value, and 95 % percentile bootstrap intervals."""

    mean: Float[np.ndarray, "*rest"]  # NaN where no prompt has a value
    low: Float[np.ndarray, "*rest"]  # NaN for fewer than two prompts
    high: Float[np.ndarray, "*rest"]
    prompts: Int64[np.ndarray, "*rest"]  # how many have a value

    def columns(self, name: str = "mean") -> dict[str, np.ndarray]:
        """The mean, `low` and `high`, the latter two named after any other name."""
        return dict(zip(_names(name), (self.mean, self.low, self.high), strict=True))


def means(values: Float[np.ndarray, "prompt *rest"], seed: int = 0) -> Means:
    """Means over prompts, each over the prompts that have a value there.

    Args:
        values: one row a prompt; NaN where a prompt has no value.
        seed: of the draws, which are the same for all values that the same prompts have.
    """
    flat = values.reshape(len(values), math.prod(values.shape[1:]))
    there = ~np.isnan(flat)
    prompts = there.sum(0)
    mean, low, high = (np.full(flat.shape[1], np.nan) for _ in range(3))
    patterns, group = np.unique(there, axis=1, return_inverse=True)
    # Columns that the same prompts have are resampled together.
    for number, pattern in enumerate(patterns.T):
        which, columns = np.flatnonzero(pattern), np.flatnonzero(group.reshape(-1) == number)
        if not len(which):
            continue
        block = flat[np.ix_(which, columns)]
        mean[columns] = block.mean(0)
        if len(which) > 1:
            low[columns], high[columns] = _ends_of_mean(block, seed)
    rest = values.shape[1:]
    return Means(*(x.reshape(rest) for x in (mean, low, high, prompts)))


def interval(
    values: Float[np.ndarray, "prompt *rest"], seed: int = 0
) -> tuple[Float[np.ndarray, "*rest"], Float[np.ndarray, "*rest"]]:
    """The 95 % percentile bootstrap interval of the mean over prompts, its low and its high end.

    Args:
        values: one row a prompt.
        seed: of the draws, which are the same for any values of as many prompts.

    Returns:
        The two ends; NaN where any prompt is NaN, and everywhere for fewer than two prompts.
    """
    found = means(values, seed)
    whole = found.prompts == len(values)
    return np.where(whole, found.low, np.nan), np.where(whole, found.high, np.nan)


def draws_of(prompts: int, resamples: int, seed: int = 0) -> Int[np.ndarray, "resample prompt"]:
    """Draws of as many prompts as there are, with replacement: their places."""
    return np.random.default_rng(seed).integers(prompts, size=(resamples, prompts))


def weights(prompts: int, resamples: int, seed: int) -> Float[np.ndarray, "resample prompt"]:
    """What each prompt weighs in each of the draws of `draws_of`; rows add up to 1."""
    places = draws_of(prompts, resamples, seed) + prompts * np.arange(resamples)[:, None]
    counts = np.bincount(places.reshape(-1), minlength=resamples * prompts)
    return counts.reshape(resamples, prompts) / prompts


def percentiles(
    found: Float[np.ndarray, "resample *rest"],
) -> tuple[Float[np.ndarray, "*rest"], Float[np.ndarray, "*rest"]]:
    """Low and high end of the 95 % percentile interval over resamples.

    A resample without a value (NaN) is left out. The ends are NaN where no resample has a value.
    """
    low = np.full(found.shape[1:], np.nan)
    high = low.copy()
    some = ~np.isnan(found).all(0)
    if len(found) and some.any():
        low[some], high[some] = np.nanquantile(found[:, some], TAILS, axis=0)
    return low, high


def interval_of(
    values: Float[np.ndarray, "prompt point"],
    statistic: Callable[..., Float[np.ndarray, "resample point"]],
    draws: Int[np.ndarray, "resample prompt"],
    at_once: int = 2**23,
) -> tuple[Float[np.ndarray, " point"], Float[np.ndarray, " point"]]:
    """The 95 % percentile bootstrap interval over prompts of any statistic of each column.

    Args:
        values: one row a prompt.
        statistic: reduces an axis, as `np.mean` and `np.median`: `statistic(values, axis=1)`.
        draws: of `draws_of`.
        at_once: how many drawn values are held (8 bytes each), if a column has no more.

    Returns:
        The two ends; NaN for fewer than two prompts.
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


def wilson(count: int, prompts: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of prompts, which has a width at 0 and 1 too.

    Args:
        count: of the prompts that are counted.
        prompts: of all.

    Returns:
        The two ends; NaN for fewer than two prompts.
    """
    if prompts < 2:
        return math.nan, math.nan
    from scipy.stats import binomtest  # half a second, which no figure of one prompt needs

    found = binomtest(count, prompts).proportion_ci(CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def interval_text(mean: float, low: float, high: float, shown: str = "{:.3g}") -> str:
    """A mean with its interval in brackets, if it has one; a dash without a mean."""
    if math.isnan(mean):
        return "-"
    text = shown.format(mean)
    return text if math.isnan(low) else f"{text} [{shown.format(low)}, {shown.format(high)}]"


def row_text(row: Mapping[Any, Any], column: str = "mean", shown: str = "{:.3g}") -> str:
    """The value of a row and its interval, in columns named as by `Means.columns`."""
    mean, low, high = _names(column)
    return interval_text(row[mean], row[low], row[high], shown)


def _names(column: str) -> tuple[str, str, str]:
    """Columns of a mean and of the two ends of its interval."""
    if column == "mean":
        return column, "low", "high"
    return column, f"{column}_low", f"{column}_high"


def _ends_of_mean(
    block: Float[np.ndarray, "prompt value"], seed: int
) -> Float[np.ndarray, "2 value"]:
    """The ends for means by matrix products: drawn values would outgrow the memory."""
    drawn = weights(len(block), RESAMPLES, seed)
    # Around the first prompt, so that equal values have an interval of no width.
    first = block[0]
    ends = [
        np.quantile(drawn @ (block[:, i : i + _BLOCK] - first[i : i + _BLOCK]), TAILS, axis=0)
        for i in range(0, block.shape[1], _BLOCK)
    ]
    return np.concatenate(ends, axis=1) + first
