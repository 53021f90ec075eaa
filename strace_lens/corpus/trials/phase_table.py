"""Phases of estimators side by side: means over prompts with intervals, and less greedy's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from strace_lens.corpus.trials.table import less_baseline
from strace_lens.measures.intervals import interval

SIZES = ("construction_start", "construction_stop", "head_size", "tail_size")
"""Quantities on a logarithmic scale: their means are geometric, their comparisons ratios."""

_ABOUT = ("prompt", "kind", "estimator", "head_edges", "tail_edges")


def phase_table(prompts: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """One row an estimator and quantity: its mean over the prompts that have it.

    Intervals are 95 % percentile bootstrap intervals over prompts, NaN for fewer than two.

    Args:
        prompts: of `TrialPhases`.
        seed: of the bootstrap.

    Returns:
        Columns:

        - `estimator`, `quantity` (a column of `TrialPhases.prompts`), `prompts` (that have it);
        - `mean` with `low` and `high`, geometric for `SIZES`;
        - `vs_greedy` with `vs_greedy_low` and `vs_greedy_high`, paired over the prompts that have
          it with both: a ratio for `SIZES`, a difference for others; NaN without greedy.
    """
    rows = []
    for quantity in prompts.columns.drop(list(_ABOUT)):
        wide = prompts.pivot(index="estimator", columns="prompt", values=quantity)
        wide = wide.reindex(prompts["estimator"].unique())
        wide = pd.DataFrame(np.log(wide)) if quantity in SIZES else wide
        back = np.exp if quantity in SIZES else np.asarray
        compared = less_baseline(wide)
        for name in wide.index:
            rows.append(
                {
                    "estimator": name,
                    "quantity": quantity,
                    "prompts": int(wide.loc[name].notna().sum()),
                    **_mean(wide.loc[name], ("mean", "low", "high"), back, seed),
                    **_mean(compared.loc[name], _COMPARED, back, seed),
                }
            )
    return pd.DataFrame(rows)


_COMPARED = ("vs_greedy", "vs_greedy_low", "vs_greedy_high")


def _mean(values: pd.Series, names: Sequence[str], back: Any, seed: int) -> dict[str, float]:
    """Mean of what is there and its interval, on the scale that `back` leads to."""
    there = values.dropna().to_numpy(dtype=np.float64)
    low, high = interval(there, seed)
    mean = there.mean() if len(there) else np.nan
    return {n: float(back(v)) for n, v in zip(names, (mean, low, high), strict=True)}
