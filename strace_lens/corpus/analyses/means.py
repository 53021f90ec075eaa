"""Means over prompts where some prompts have no value, with bootstrap intervals.

`intervals.interval` gives the same intervals where every prompt has a value; its memory
grows with prompts x values x resamples, which the values by size and layer of a corpus outgrow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from strace_lens.measures.intervals import CONFIDENCE, RESAMPLES

_BLOCK = 256  # values resampled together: 20 MB


@dataclass(frozen=True, eq=False)
class Means:
    """Means over the prompts that have a value.

    Attributes:
        mean: NaN where no prompt has one.
        low, high: ends of the 95 % percentile bootstrap interval; NaN for fewer than two prompts.
        prompts: how many have a value.
    """

    mean: Float[np.ndarray, "*rest"]
    low: Float[np.ndarray, "*rest"]
    high: Float[np.ndarray, "*rest"]
    prompts: Int64[np.ndarray, "*rest"]

    def columns(self, name: str = "mean") -> dict[str, np.ndarray]:
        """The mean, `low` and `high`, the latter two named after any other name."""
        ends = ("low", "high") if name == "mean" else (f"{name}_low", f"{name}_high")
        return {name: self.mean, ends[0]: self.low, ends[1]: self.high}


def means(values: Float[np.ndarray, "prompt *rest"], seed: int = 0) -> Means:
    """Means over prompts, each of the prompts that have a value there.

    Args:
        values: one row a prompt; NaN where a prompt has none.
        seed: of the draws, which are the same for all values that the same prompts have.
    """
    flat = values.reshape(len(values), math.prod(values.shape[1:]))
    there = ~np.isnan(flat)
    prompts = there.sum(0)
    mean, low, high = (np.full(flat.shape[1], np.nan) for _ in range(3))
    for which, columns in _alike(there):
        block = flat[np.ix_(which, columns)]
        mean[columns] = block.mean(0)
        if len(which) > 1:
            low[columns], high[columns] = _ends(block, seed)
    rest = values.shape[1:]
    return Means(*(x.reshape(rest) for x in (mean, low, high, prompts)))


def weights(prompts: int, resamples: int, seed: int) -> Float[np.ndarray, "resample prompt"]:
    """What each prompt weighs in each resample of the prompts with replacement; rows add to 1."""
    drawn = np.random.default_rng(seed).integers(0, prompts, (resamples, prompts))
    places = drawn + prompts * np.arange(resamples)[:, None]
    counts = np.bincount(places.reshape(-1), minlength=resamples * prompts)
    return counts.reshape(resamples, prompts) / prompts


def _alike(there: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Columns that the same prompts have, with those prompts; none that no prompt has."""
    if not there.size:
        return
    patterns, group = np.unique(there, axis=1, return_inverse=True)
    for number, pattern in enumerate(patterns.T):
        if pattern.any():
            yield np.flatnonzero(pattern), np.flatnonzero(group.reshape(-1) == number)


def _ends(block: Float[np.ndarray, "prompt value"], seed: int) -> Float[np.ndarray, "2 value"]:
    drawn = weights(len(block), RESAMPLES, seed)
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    # Around the first prompt, so that equal values have an interval of no width.
    first = block[0]
    ends = [
        np.quantile(drawn @ (block[:, i : i + _BLOCK] - first[i : i + _BLOCK]), tails, axis=0)
        for i in range(0, block.shape[1], _BLOCK)
    ]
    return np.concatenate(ends, axis=1) + first
