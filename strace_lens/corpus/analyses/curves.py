"""Curves over sizes: TV and errors of the traces, and TV to statistics that need no computation.

Source: s-Trace (arXiv 2605.27033), section "phases". Whether small traces predict shallow
statistics is read from three targets: `full`, the full model's output on the prompt; `unigram`, the
corpus' token frequencies; `no_context`, the full model's output without the prompt. A target that
was not measured is left out, and so are prompts without it.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float

from strace_lens.corpus.analyses.arrays import at_sizes, frame_of
from strace_lens.corpus.run_folder import Run
from strace_lens.measures.intervals import draws_of, interval_of, means, wilson

POINTS = 150
"""Points of the common grid of mean curves (s-Trace, arXiv 2605.27033)."""

CURVES = {
    "trace": "tv",
    "inverse": "inverse_tv",
    "random": "random_tv",
    "random_inverse": "random_inverse_tv",
    "head": "head_error",
    "tail": "tail_error",
}
"""The column of `Run.sizes` that each curve is drawn from."""

TARGETS = {"full": "tv", "unigram": "unigram_tv", "no_context": "no_context_tv"}
"""Targets, and the columns of `Run.sizes` that hold the TV to them."""


def mean_curves(run: Run, *, seed: int = 0, resamples: int = 1000) -> pd.DataFrame:
    """Mean and median over prompts at 150 sizes, of the trace's TV, its controls and its parts.

    Bands are pointwise 95 % percentile bootstrap intervals over prompts, the same draws for every
    curve; NaN for a single prompt.

    Returns:
        Columns `curve` (a key of `CURVES`), `size`, `mean`, `median`, each of
        these two with `_low` and `_high`, and `prompts`, those the curve is of: a prompt that
        lacks a value is left out, and so is a curve that no prompt has.

    Raises:
        ValueError: fewer than two sizes were measured.
    """
    grid = log_grid(run)
    parts = []
    for curve, column in CURVES.items():
        values = on_grid(run, column, grid)
        values = values[~np.isnan(values).any(1)]
        if not len(values):
            continue
        draws = draws_of(len(values), resamples, seed)
        found = {"curve": curve, "size": grid}
        for name, statistic in (("mean", np.mean), ("median", np.median)):
            found[name] = statistic(values, axis=0)
            found[f"{name}_low"], found[f"{name}_high"] = interval_of(values, statistic, draws)
        parts.append(pd.DataFrame({**found, "prompts": len(values)}))
    return pd.concat(parts, ignore_index=True)


def shallow(run: Run, *, seed: int = 0) -> pd.DataFrame:
    """TV of the traces' output to each target at each size.

    Returns:
        Columns `target`, `size`, `tv` (mean over prompts), `low`, `high` (NaN for fewer than two
        prompts), `prompts`.
    """
    frames = []
    for target in _known(run):
        found = means(at_sizes(run, TARGETS[target]), seed)
        about = {"target": target, "size": run.grid, **found.columns(), "prompts": found.prompts}
        frames.append(pd.DataFrame(about).rename(columns={"mean": "tv"}))
    return pd.concat(frames, ignore_index=True)


def shallow_full_model(run: Run, *, seed: int = 0) -> pd.DataFrame:
    """TV of the full model's own output to the shallow targets, to compare `shallow` with.

    Returns:
        Columns `target`, `tv` (mean over prompts), `low`, `high`, `prompts`.
    """
    shallow_targets = _known(run)[1:]
    own = run.prompts[[TARGETS[target] for target in shallow_targets]]
    found = means(own.to_numpy(dtype=np.float64), seed)
    about = {"target": shallow_targets, **found.columns(), "prompts": found.prompts}
    return pd.DataFrame(about).rename(columns={"mean": "tv"})


def nearest(run: Run) -> pd.DataFrame:
    """How often a trace's output lies nearer to a target than the full model's output does.

    Returns:
        Columns `size`, `target`; `nearer`, the share of prompts whose trace is nearer to the target
        than the full model's output is, NaN for the target `full`; `nearest`, the share of prompts
        to whose trace the target is the nearest of those known, `full` before others where they are
        as near; `prompts`, those for which all of these targets are known. Intervals
        (`nearer_low`, `nearer_high`, `nearest_low`, `nearest_high`) are Wilson's at 95 %, which
        have a width at shares of 0 and 1 too; NaN for fewer than two prompts.
    """
    targets = _known(run)
    tv = np.stack([at_sizes(run, TARGETS[t]) for t in targets], -1)
    own = np.stack([_of_full(run, t) for t in targets], -1)
    there = ~(np.isnan(tv).any((1, 2)) | np.isnan(own).any(1))
    tv, own = tv[there], own[there]
    prompts = len(tv)
    nearer = (tv < own[:, None]).sum(0).astype(np.float64)
    nearer[:, 0] = np.nan
    first = (tv.argmin(-1)[..., None] == np.arange(len(targets))).sum(0).astype(np.float64)
    columns = {
        **_proportions("nearer", nearer, prompts),
        **_proportions("nearest", first, prompts),
        "prompts": np.full(first.shape, prompts),
    }
    return frame_of(run.grid, {"target": targets}, columns)


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


def _known(run: Run) -> list[str]:
    """Targets that some prompt has, `full` first."""
    return [t for t, column in TARGETS.items() if not np.isnan(at_sizes(run, column)).all()]


def _of_full(run: Run, target: str) -> Float[np.ndarray, " prompt"]:
    if target == "full":
        return np.zeros(len(run.prompts))
    return run.prompts[TARGETS[target]].to_numpy(dtype=np.float64)


def _proportions(
    name: str, counts: Float[np.ndarray, "size target"], prompts: int
) -> dict[str, np.ndarray]:
    ends = np.full((2, *counts.shape), np.nan)
    for place, count in np.ndenumerate(counts):
        if not np.isnan(count):
            ends[:, *place] = wilson(int(count), prompts)
    share = counts / prompts if prompts else np.full(counts.shape, np.nan)
    return {name: share, f"{name}_low": ends[0], f"{name}_high": ends[1]}
