"""Mean and median curves of a corpus on a common grid, with bootstrap bands."""

from __future__ import annotations

import numpy as np
import pandas as pd

from strace_lens.corpus.analyses import resample
from strace_lens.corpus.run_folder import Run

CURVES = {
    "trace": "tv",
    "inverse": "inverse_tv",
    "random": "random_tv",
    "random_inverse": "random_inverse_tv",
    "head": "head_error",
    "tail": "tail_error",
}
"""The column of `Run.sizes` that each curve is drawn from."""

COLUMNS = (
    *("curve", "size", "mean", "mean_low", "mean_high", "median", "median_low", "median_high"),
    "prompts",
)


def mean_curves(run: Run, *, seed: int = 0, resamples: int = 1000) -> pd.DataFrame:
    """Mean and median over prompts at 150 sizes, of the trace's TV and of what stands beside it.

    Bands are pointwise 95 % percentile bootstrap intervals over prompts, the same draws for every
    curve; NaN for a single prompt.

    Args:
        run: of a sweep.
        seed: of the bootstrap.
        resamples: how often prompts are drawn.

    Returns:
        Columns `curve` (a key of `CURVES`), `size`, `mean`, `median`, each of
        these two with `_low` and `_high`, and `prompts`, those the curve is of: a prompt that
        lacks a value is left out, and so is a curve that no prompt has.

    Raises:
        ValueError: fewer than two sizes were measured.
    """
    grid = resample.log_grid(run)
    parts = []
    for curve, column in CURVES.items():
        values = resample.on_grid(run, column, grid)
        values = values[~np.isnan(values).any(1)]
        if not len(values):
            continue
        draws = resample.resamples(len(values), resamples, seed)
        found = {"size": grid}
        for name, statistic in (("mean", np.mean), ("median", np.median)):
            found[name] = statistic(values, axis=0)
            low, high = resample.interval_of(values, statistic, draws)
            found[f"{name}_low"], found[f"{name}_high"] = low, high
        parts.append(pd.DataFrame(found).assign(curve=curve, prompts=len(values)))
    frame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    return frame.reindex(columns=list(COLUMNS))
