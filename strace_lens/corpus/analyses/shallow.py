"""Whether small traces predict shallow statistics: TV to what needs little computation.

Source: s-Trace (arXiv 2605.27033), section "phases". Three targets: `full`, the full model's output
on the prompt; `unigram`, the corpus' token frequencies; `no_context`, the full model's output
without the prompt. A target that was not measured is left out, and so are prompts without it.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import binomtest

from strace_lens.corpus.analyses.arrays import at_sizes, frame_of
from strace_lens.corpus.analyses.means import means
from strace_lens.corpus.run_folder import Run
from strace_lens.measures.intervals import CONFIDENCE

TARGETS = {"full": "tv", "unigram": "unigram_tv", "no_context": "no_context_tv"}
"""Targets, and the columns of `Run.sizes` that hold the TV to them."""


def shallow(run: Run, *, seed: int = 0) -> pd.DataFrame:
    """TV of the traces' output to each target at each size.

    Args:
        run: of `read_run`.
        seed: of the bootstrap.

    Returns:
        Columns `target`, `size`, `tv` (mean over prompts), `low`, `high` (NaN for fewer than two
        prompts), `prompts`.
    """
    frames = []
    for target, column in TARGETS.items():
        found = means(at_sizes(run, column), seed)
        about = {"target": target, "size": run.grid, "tv": found.mean}
        ends = {"low": found.low, "high": found.high, "prompts": found.prompts}
        if found.prompts.any():
            frames.append(pd.DataFrame({**about, **ends}))
    return pd.concat(frames, ignore_index=True)


def full_model(run: Run, *, seed: int = 0) -> pd.DataFrame:
    """TV of the full model's own output to the shallow targets, beside which `shallow` is read.

    Returns:
        Columns `target`, `tv` (mean over prompts), `low`, `high`, `prompts`.
    """
    rows = []
    for target in _known(run)[1:]:
        found = means(_of_full(run, target), seed)
        rows.append((target, float(found.mean), float(found.low), float(found.high), found.prompts))
    frame = pd.DataFrame(rows, columns=["target", "tv", "low", "high", "prompts"])
    return frame.astype({"prompts": "int64"})


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
    if prompts > 1:
        for place, count in np.ndenumerate(counts):
            if not np.isnan(count):
                found = binomtest(int(count), prompts).proportion_ci(CONFIDENCE, method="wilson")
                ends[:, *place] = found.low, found.high
    share = counts / prompts if prompts else np.full(counts.shape, np.nan)
    return {name: share, f"{name}_low": ends[0], f"{name}_high": ends[1]}
