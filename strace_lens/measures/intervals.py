"""How sure a mean over prompts is: percentile bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import bootstrap

CONFIDENCE = 0.95
RESAMPLES = 9999


def interval(
    values: Float[np.ndarray, "prompt *rest"], seed: int = 0
) -> tuple[Float[np.ndarray, "*rest"], Float[np.ndarray, "*rest"]]:
    """The 95 % percentile bootstrap interval of the mean over prompts, its low and its high end.

    Prompts are drawn whole: what stands side by side in `rest` (sizes of a curve) goes together.
    NaN where any prompt is NaN, and everywhere for fewer than two prompts.

    Args:
        values: one row a prompt.
        seed: of the draws, which are the same for any values of as many prompts.
    """
    low = np.full(values.shape[1:], np.nan)
    high = low.copy()
    whole = ~np.isnan(values).any(0)
    if len(values) > 1 and whole.any():
        found = bootstrap(
            (values[:, whole],),
            np.mean,
            axis=0,
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=seed,
        ).confidence_interval
        low[whole], high[whole] = found.low, found.high
    return low, high


def mean_curve(rows: pd.DataFrame, column: str, seed: int = 0) -> pd.DataFrame:
    """Mean over prompts of a column at each size, with its interval.

    Args:
        rows: of `Trials.runs`, of one estimator and role; a prompt counts once, by its mean over
            seeds.
        column: one of theirs.
        seed: of the bootstrap.

    Returns:
        Columns `size`, `mean`, `low`, `high`; no row without values.
    """
    wide = rows.pivot_table(index="prompt", columns="size", values=column)
    values = wide.to_numpy(dtype=np.float64)
    low, high = interval(values, seed)
    found = {
        "size": wide.columns.to_numpy(dtype=np.float64),
        "mean": values.sum(0) / max(1, len(values)),
    }
    return pd.DataFrame({**found, "low": low, "high": high})


def interval_text(mean: float, low: float, high: float, shown: str = "{:.3g}") -> str:
    """A mean with its interval in brackets, if it has one; a dash without a mean."""
    if math.isnan(mean):
        return "-"
    text = shown.format(mean)
    return text if math.isnan(low) else f"{text} [{shown.format(low)}, {shown.format(high)}]"


def row_text(row: Mapping[Any, Any], column: str = "mean", shown: str = "{:.3g}") -> str:
    """The value of a row with the interval beside it: `low` and `high`, or named by the column."""
    low, high = ("low", "high") if column == "mean" else (f"{column}_low", f"{column}_high")
    return interval_text(row[column], row[low], row[high], shown)
