"""Estimators side by side: fidelity, cost and controls over all prompts of a trial."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from strace_lens.corpus.trials.run import Trials
from strace_lens.measures.intervals import interval
from strace_lens.measures.sizes import smallest_size_from_which

SIZES = (0.01, 0.05, 0.1, 0.2, 0.4)
CONTROL_SIZES = (0.05, 0.1, 0.2)
COMPUTE_SIZES = (0.01, 0.05, 0.2)
LARGEST_WRONG = 0.2
SMALLEST_PATH = 0.01
BASELINE = "greedy"

Wide = pd.DataFrame
"""A value for each estimator (rows) and prompt (columns)."""


def estimator_table(trials: Trials, *, seed: int = 0) -> pd.DataFrame:
    """One row an estimator: what its traces reproduce, what they cost, and what the controls say.

    Values are means over prompts of the mean over seeds; intervals are 95 % percentile bootstrap
    intervals over prompts, NaN for a single prompt. Names end in a relative size where they hold
    for that one; sizes that were not measured are left out.

    Args:
        trials: of `run_trials`.
        seed: of the bootstrap.

    Returns:
        Columns:

        - `estimator`, `prompts`, `seeds`;
        - `density` with `density_low` and `density_high`; `top1_size`, a geometric mean, 1 where
          the top token is not right at the largest size, as it is in the full graph; `tv_*`;
        - `density_vs_greedy` (difference) and `top1_ratio` (of sizes), paired over prompts, each
          with `_low` and `_high`; NaN without greedy;
        - `forward`, `backward`, `seconds`; `density_sd`, over seeds, NaN where there is only one;
        - `wrong_tv_mean` and `wrong_tv_min`, over prompts, of the lowest TV to the wrong target at
          sizes up to 0.2; `sibling_*`, the TV on the sibling; `noise_*`, by how much noise changes
          the TV;
        - `path_share_mean` and `path_share_min` at sizes from 0.01 on; `connected_size`, a
          geometric mean of the size from which a path joins a token to the output; `compute_*`.
    """
    runs, traces = trials.runs, trials.traces
    own = runs.query("role == 'own'")
    own_traces = traces.query("target == 'own'")
    own_traces = own_traces.assign(top1=np.log(own_traces["top1_size"].fillna(1.0)))
    density, top1 = _wide(own_traces, "density"), _wide(own_traces, "top1")
    by_estimator = own_traces.groupby("estimator")
    columns: dict[str, Any] = {
        "prompts": by_estimator["prompt"].nunique(),
        "seeds": by_estimator["seed"].nunique(),
        **_with_interval("density", density, seed),
        "top1_size": np.exp(top1.mean(axis=1)),
        **_at(own, "tv", SIZES, "tv"),
        **_with_interval("density_vs_greedy", less_baseline(density), seed),
        **{
            k: np.exp(v) for k, v in _with_interval("top1_ratio", less_baseline(top1), seed).items()
        },
        **{name: _wide(own_traces, name).mean(axis=1) for name in _COST},
        "density_sd": _wide(own_traces, "density", "std").mean(axis=1),
        **_controls(runs, own),
    }
    table = pd.DataFrame(columns).reindex(own_traces["estimator"].unique())
    return table.rename_axis("estimator").reset_index()


_COST = ("forward", "backward", "seconds")


def _controls(runs: pd.DataFrame, own: pd.DataFrame) -> dict[str, Any]:
    wrong = runs.query("role == 'wrong' and size <= @LARGEST_WRONG")
    lowest = _wide(wrong, "tv", "min")
    noise = runs.query("role == 'noise'").merge(
        own,
        on=["estimator", "prompt", "seed", "size"],
        suffixes=("", "_own"),
        validate="one_to_one",
    )
    noise = noise.assign(change=(noise["tv"] - noise["tv_own"]).abs())
    paths = own.query("size >= @SMALLEST_PATH").groupby("estimator")["path_share"]
    return {
        "wrong_tv_mean": lowest.mean(axis=1),
        "wrong_tv_min": lowest.min(axis=1),
        **_at(runs.query("role == 'sibling'"), "tv", CONTROL_SIZES, "sibling"),
        **_at(noise, "change", CONTROL_SIZES, "noise"),
        "path_share_mean": paths.mean(),
        "path_share_min": paths.min(),
        "connected_size": np.exp(_wide(_connected(own), "log_size").mean(axis=1)),
        **_at(own, "compute", COMPUTE_SIZES, "compute"),
    }


def _wide(frame: pd.DataFrame, column: str, over_seeds: str = "mean") -> Wide:
    return frame.pivot_table(
        index="estimator", columns="prompt", values=column, aggfunc=over_seeds, sort=False
    )


def _at(
    frame: pd.DataFrame, column: str, sizes: Sequence[float], name: str
) -> dict[str, pd.Series]:
    """Means at single sizes, of those that were measured."""
    there = {s: frame.query("abs(size - @s) < 1e-9") for s in sizes}
    return {
        f"{name}_{size:g}": _wide(rows, column).mean(axis=1)
        for size, rows in there.items()
        if len(rows)
    }


def less_baseline(values: Wide) -> Wide:
    """Less the baseline's value on the same prompt; nothing without a baseline."""
    return values - values.loc[BASELINE] if BASELINE in values.index else values * math.nan


def _with_interval(name: str, values: Wide, seed: int) -> dict[str, pd.Series]:
    """Mean over prompts and its interval."""
    low, high = interval(values.to_numpy(dtype=np.float64).T, seed)
    return {
        name: values.mean(axis=1),
        f"{name}_low": pd.Series(low, index=values.index),
        f"{name}_high": pd.Series(high, index=values.index),
    }


def _connected(own: pd.DataFrame) -> pd.DataFrame:
    """Logarithm of the size from which a path joins a token to the output; 0 if only at the end."""
    rows = []
    keys = ["estimator", "prompt", "seed"]
    for _, one in own.groupby(keys):
        holds = one["connected"].to_numpy(dtype=np.bool_)
        size = smallest_size_from_which(one["size"].to_numpy(), holds)
        size = 1.0 if math.isnan(size) else size
        rows.append({**one[keys].iloc[0].to_dict(), "log_size": math.log(size)})
    return pd.DataFrame(rows)
