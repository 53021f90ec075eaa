"""The statistics by which the paper's claims are tested, each with an interval over prompts.

Source: s-Trace (arXiv 2605.27033) for what is claimed, `claim_rules` for what is made of it.
Intervals are 95 % percentile bootstrap intervals over prompts; those of shares are Wilson's, which
have a width at 0 and 1 too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import binomtest

from strace_lens.corpus.analyses import resample
from strace_lens.corpus.analyses.arrays import at_sizes, every_size
from strace_lens.corpus.analyses.between import agreement
from strace_lens.corpus.analyses.boundaries import corpus_boundaries, prompt_boundaries
from strace_lens.corpus.analyses.claim_rules import STATISTICS
from strace_lens.corpus.analyses.correlations import correlation
from strace_lens.corpus.analyses.density_parts import density_parts
from strace_lens.corpus.analyses.layer_phases import head_and_tail
from strace_lens.corpus.analyses.means import means
from strace_lens.corpus.analyses.shallow import TARGETS
from strace_lens.corpus.run_folder import Run
from strace_lens.measures.intervals import CONFIDENCE
from strace_lens.measures.sizes import RULES

SPARSE = 1e-3
"""Traces up to this size are called sparse where the mean curve has no plateau."""

_RESAMPLES = 2000
_BOUNDARIES = ("construction_start", "construction_stop")
_OF_HEAD_AND_TAIL = {
    "head_depth": "head_depth_vs_graph",
    "head_ablatable_depth": "head_ablatable_depth_vs_graph",
    "added_depth": "tail_depth_vs_left",
    "added_ablatable_depth": "tail_ablatable_depth_vs_left",
    "added_attention": "tail_attention_vs_left",
}


@dataclass(frozen=True)
class Estimate:
    """A value with its interval, and how many prompts it is of.

    Attributes:
        value: NaN where no prompt has one.
        low, high: ends of the interval; NaN where there is none.
        prompts: how many prompts have what the value is of.
    """

    value: float
    low: float
    high: float
    prompts: int


def estimates(run: Run, *, seed: int = 0) -> dict[str, Estimate]:
    """Every statistic of `claim_rules.STATISTICS` that is of one run alone, by name.

    A size that a prompt does not reach at any measured size counts as 1: the whole graph has the
    model's top token and its head by definition. The ablatable share is then 1 as well.

    Args:
        run: of `read_run`.
        seed: of every bootstrap.
    """
    parts = head_and_tail(run)
    differences = {name: parts[column] for name, column in _OF_HEAD_AND_TAIL.items()}
    differences["added_depth_from_head"] = -parts["depth_gap"]
    differences["added_attention_from_head"] = parts["tail_attention"] - parts["head_attention"]
    found = {
        **_two_phases(run, seed),
        **{name: lower_median_of(sizes, seed) for name, sizes in top1_sizes(run).items()},
        **{
            name: geometric_mean_of(parts[name].fillna(1.0).to_numpy(np.float64), seed)
            for name in ("head_size", "head_ablatable_size")
        },
        **{
            name: mean_of(values.to_numpy(np.float64), seed) for name, values in differences.items()
        },
        **_with_entropy(run, seed),
        **_shallow(run, seed),
    }
    return {name: found[name] for name in STATISTICS if name in found}


def between(run: Run, other: Run, *, seed: int = 0) -> Estimate:
    """Rank correlation of density between two runs, over the prompts that both have.

    NaN for fewer than four prompts.
    """
    a, b = (r.prompts.drop_duplicates("sha256") for r in (run, other))
    if not set(a["sha256"]) & set(b["sha256"]):
        return Estimate(math.nan, math.nan, math.nan, 0)
    found = agreement(a, b, seed)
    return Estimate(found["rho"], found["low"], found["high"], int(found["prompts"]))


def top1_sizes(run: Run) -> dict[str, Float[np.ndarray, " prompt"]]:
    """The first size at which each prompt's top token is right, and that from which on it is."""
    tables = every_size(run)
    found = {}
    for rule, size_of in RULES.items():
        sizes = [size_of(t["size"].to_numpy(), t["top1"].to_numpy(np.bool_)) for t in tables]
        found[f"top1_{rule}"] = np.nan_to_num(np.array(sizes, dtype=np.float64), nan=1.0)
    return found


def sparse_sizes(run: Run) -> Bool[np.ndarray, " size"]:
    """Which sizes of the grid are called sparse.

    Those up to where construction of the mean curve starts, or up to `SPARSE` where it has no
    plateau before; the smallest size alone if all are larger.
    """
    rows = corpus_boundaries(run, resamples=0).set_index("quantity")
    start = float(rows.loc["construction_start", "value"])
    sparse = run.grid <= (SPARSE if math.isnan(start) else start)
    return sparse if sparse.any() else run.grid == run.grid.min()


def _two_phases(run: Run, seed: int) -> dict[str, Estimate]:
    found = prompt_boundaries(run, resamples=0)
    both = found["construction_stop"].notna().to_numpy(np.bool_)
    return {
        "two_phases": share_of(both),
        **{name: geometric_mean_of(found[name].to_numpy(np.float64), seed) for name in _BOUNDARIES},
    }


def _with_entropy(run: Run, seed: int) -> dict[str, Estimate]:
    parts = density_parts(run)
    found = {}
    for name, part in (("density_entropy", "density"), ("half_size_entropy", "half_size")):
        values = parts[[part, "entropy"]].to_numpy(np.float64)
        values = values[~np.isnan(values).any(1)]
        row = correlation(values, seed, _RESAMPLES)
        found[name] = Estimate(row["rho"], row["low"], row["high"], len(values))
    return found


def _shallow(run: Run, seed: int) -> dict[str, Estimate]:
    """TV of sparse traces to shallow targets, less the full model's; traces of no edge left out."""
    edges = at_sizes(run, "edges")
    asked = sparse_sizes(run) & (edges > 0)
    count = asked.sum(1)
    found = {}
    for name in ("unigram", "no_context"):
        tv = np.where(asked, at_sizes(run, TARGETS[name]), 0.0).sum(1)
        mean = np.divide(tv, count, out=np.full(len(tv), np.nan), where=count > 0)
        own = run.prompts[TARGETS[name]].to_numpy(np.float64)
        found[name] = mean_of(mean - own, seed)
    return found


def mean_of(values: Float[np.ndarray, " prompt"], seed: int = 0) -> Estimate:
    """The mean of the prompts that have a value."""
    found = means(values, seed)
    return Estimate(float(found.mean), float(found.low), float(found.high), int(found.prompts))


def geometric_mean_of(sizes: Float[np.ndarray, " prompt"], seed: int = 0) -> Estimate:
    """The geometric mean of the prompts that have a size."""
    found = mean_of(np.log(sizes), seed)
    value, low, high = (math.exp(x) for x in (found.value, found.low, found.high))
    return Estimate(value, low, high, found.prompts)


def lower_median_of(sizes: Float[np.ndarray, " prompt"], seed: int = 0) -> Estimate:
    """The smallest size that at least half of the prompts do not exceed."""
    draws = resample.resamples(len(sizes), _RESAMPLES, seed)
    low, high = resample.interval_of(sizes[:, None], _lower_median, draws)
    value = _lower_median(sizes[:, None], axis=0)
    return Estimate(float(value[0]), float(low[0]), float(high[0]), len(sizes))


def share_of(have: Bool[np.ndarray, " prompt"]) -> Estimate:
    """The share of prompts that have something, with Wilson's interval."""
    prompts = len(have)
    low = high = math.nan
    if prompts > 1:
        ends = binomtest(int(have.sum()), prompts).proportion_ci(CONFIDENCE, method="wilson")
        low, high = float(ends.low), float(ends.high)
    return Estimate(float(have.mean()), low, high, prompts)


def _lower_median(values: np.ndarray, axis: int) -> np.ndarray:
    middle = (values.shape[axis] - 1) // 2
    return np.partition(values, middle, axis=axis).take(middle, axis=axis)
