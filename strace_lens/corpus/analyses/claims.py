"""The paper's six claims tested on sweeps: a statistic, an interval and a verdict for each.

Source: s-Trace (arXiv 2605.27033); the statements and the rules are in `claim_rules`. Intervals are
95 % percentile bootstrap intervals over prompts; those of shares are Wilson's.
"""

# pandas' types are wider than what it returns here.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from strace_lens.corpus.analyses.arrays import (
    at_sizes,
    divide,
    kept_kinds,
    refuse_same_names,
)
from strace_lens.corpus.analyses.claim_rules import (
    CANNOT_TELL,
    CLAIMS,
    STATISTICS,
    claim_verdict,
)
from strace_lens.corpus.analyses.curves import TARGETS
from strace_lens.corpus.analyses.density import agreement, correlation, density_parts
from strace_lens.corpus.analyses.layer_phases import head_and_tail
from strace_lens.corpus.analyses.sizes import (
    corpus_boundaries,
    needed_by_prompt,
    prompt_boundaries,
)
from strace_lens.corpus.run_folder import Run
from strace_lens.measures.intervals import draws_of, interval_of, means, wilson
from strace_lens.measures.sizes import RULES

COLUMNS = (
    *("run", "model", "estimator", "keep", "claim", "statement", "statistic", "other"),
    *("value", "low", "high", "rule", "verdict", "claim_verdict", "paper", "prompts"),
    "note",
)
_BETWEEN = "density_between"
_SHALLOW = 5  # the claim whose statistics are of sparse traces

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


class Estimate(NamedTuple):
    """A value with its interval, and how many prompts have it; NaN where there is none."""

    value: float
    low: float
    high: float
    prompts: int


def claims(runs: Run | Sequence[Run], *, seed: int = 0) -> pd.DataFrame:
    """Test the paper's six claims on one or more sweeps.

    Depths are relative (0 is the first layer, 1 the last). The same seed gives the same table.

    Args:
        runs: runs that `read_run` or `sweep` returned, with different names. Claim 6 needs runs of
            two models over the same prompts, with the same estimator and `keep`.
        seed: seed of every bootstrap.

    Returns:
        One row per run and statistic; for claim 6, one per pair of runs. Columns:

        - `run`, `model`, `estimator`, and `keep`, the kinds of edges that were never ablated,
          joined by "+" ("none" for the paper's definition);
        - `claim`, its number, and `statement`, the claim in words;
        - `statistic`, a name in `claim_rules.STATISTICS`; `other`, the run it is compared with;
        - `value` with `low` and `high`, the 95 % interval over the `prompts` that have it (NaN for
          a single one), a Wilson interval for a share and a bootstrap interval otherwise;
        - `rule`, how the interval gives the `verdict`: "holds", "does not hold" or "cannot be
          told". Without an interval or with fewer than four prompts it is "cannot be told";
        - `claim_verdict`, the verdict on the whole claim: it holds if every statistic that decides
          it holds, and does not hold if one of them does not;
        - `paper`, the paper's own value, as text;
        - `note`, for claim 5 the sizes that are called sparse, for claim 6 why a pair of runs does
          not test it; empty otherwise.

    Raises:
        ValueError: no runs, or two with the same name.

    Example:
        >>> sl.claims(sl.read_run("runs/first"))[["statistic", "value", "verdict"]]
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    if not runs:
        raise ValueError("no runs to test the claims on; pass at least one")
    refuse_same_names(runs)
    rows = []
    for run in runs:
        about = {"run": run.name, "model": run.model, "estimator": _estimator(run)}
        about["keep"] = "+".join(kept_kinds(run)) or "none"
        own = [*_alone(run, seed), *_against_others(run, runs, seed)]
        for number, statement in CLAIMS.items():
            mine = [row for row in own if STATISTICS[row["statistic"]].claim == number]
            deciding = [r["verdict"] for r in mine if STATISTICS[r["statistic"]].decides]
            whole = {"claim": number, "statement": statement}
            whole["claim_verdict"] = claim_verdict(deciding)
            rows += [{**about, **whole, **row} for row in mine]
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS))


def estimates(run: Run, *, seed: int = 0) -> dict[str, Estimate]:
    """Every statistic of `claim_rules.STATISTICS` that is of one run alone, by name.

    A size that a prompt does not reach at any measured size counts as 1: the whole graph has the
    model's top token and its head by definition. The ablatable share is then 1 as well.
    """
    parts = head_and_tail(run)
    differences = {name: parts[column] for name, column in _OF_HEAD_AND_TAIL.items()}
    differences["added_depth_from_head"] = -parts["depth_gap"]
    differences["added_attention_from_head"] = parts["tail_attention"] - parts["head_attention"]
    boundaries = prompt_boundaries(run, resamples=0)
    found = {
        "two_phases": share_of(boundaries["construction_stop"].notna().to_numpy(np.bool_)),
        **{name: geometric_mean_of(boundaries[name], seed) for name in _BOUNDARIES},
        **{name: lower_median_of(sizes, seed) for name, sizes in top1_sizes(run).items()},
        **{
            name: geometric_mean_of(parts[name].fillna(1.0), seed)
            for name in ("head_size", "head_ablatable_size")
        },
        **{name: mean_of(values, seed) for name, values in differences.items()},
        **_shallow(run, seed),
    }
    densities = density_parts(run)
    for part in ("density", "half_size"):
        row = correlation(densities[[part, "entropy"]], seed, _RESAMPLES)
        found[f"{part}_entropy"] = _of_correlation(row)
    return {name: found[name] for name in STATISTICS if name in found}


def density_between(run: Run, other: Run, *, seed: int = 0) -> Estimate:
    """Rank correlation of density between two runs, over the prompts that both have.

    NaN for fewer than four prompts.
    """
    a, b = (r.prompts.drop_duplicates("sha256") for r in (run, other))
    if not set(a["sha256"]) & set(b["sha256"]):
        return Estimate(math.nan, math.nan, math.nan, 0)
    return _of_correlation(agreement(a, b, seed))


def top1_sizes(run: Run) -> dict[str, Float[np.ndarray, " prompt"]]:
    """The first size at which each prompt's top token is right, and that from which on it is."""
    needed = needed_by_prompt(run)
    return {f"top1_{rule}": np.nan_to_num(needed["top1", None, rule], nan=1.0) for rule in RULES}


def sparse_sizes(run: Run) -> Bool[np.ndarray, " size"]:
    """Which sizes of the grid are called sparse.

    Those up to where construction of the mean curve starts, or up to `SPARSE` where it has no
    plateau before; the smallest size alone if all are larger.
    """
    rows = corpus_boundaries(run, resamples=0).set_index("quantity")
    start = float(rows.loc["construction_start", "value"])
    sparse = run.grid <= (SPARSE if math.isnan(start) else start)
    return sparse if sparse.any() else run.grid == run.grid.min()


def no_test(run: Run, other: Run) -> str | None:
    """Why two runs do not test the consistency across models; None if they do."""
    weights = [r.manifest.get("weights") for r in (run, other)]
    names = [r.model.partition("@")[0] for r in (run, other)]  # without the revision
    if names[0] == names[1] or (weights[0] is not None and weights[0] == weights[1]):
        return "both are of one model"
    if _estimator(run) != _estimator(other):
        return "the estimators differ"
    if kept_kinds(run) != kept_kinds(other):
        return "different kinds of edges are kept"
    return None


def mean_of(values: pd.Series | Float[np.ndarray, " prompt"], seed: int = 0) -> Estimate:
    """The mean of the prompts that have a value."""
    found = means(np.asarray(values, dtype=np.float64), seed)
    return Estimate(float(found.mean), float(found.low), float(found.high), int(found.prompts))


def geometric_mean_of(sizes: pd.Series | Float[np.ndarray, " prompt"], seed: int = 0) -> Estimate:
    """The geometric mean of the prompts that have a size."""
    value, low, high, prompts = mean_of(np.log(sizes), seed)
    return Estimate(math.exp(value), math.exp(low), math.exp(high), prompts)


def lower_median_of(sizes: Float[np.ndarray, " prompt"], seed: int = 0) -> Estimate:
    """The smallest size that at least half of the prompts do not exceed."""
    draws = draws_of(len(sizes), _RESAMPLES, seed)
    low, high = interval_of(sizes[:, None], _lower_median, draws)
    value = _lower_median(sizes[:, None], axis=0)
    return Estimate(float(value[0]), float(low[0]), float(high[0]), len(sizes))


def share_of(have: Bool[np.ndarray, " prompt"]) -> Estimate:
    """The share of prompts that have something, with Wilson's interval."""
    low, high = wilson(int(have.sum()), len(have))
    return Estimate(float(have.mean()), low, high, len(have))


def _of_correlation(found: Mapping[str, float | int]) -> Estimate:
    return Estimate(found["rho"], found["low"], found["high"], int(found["prompts"]))


def _alone(run: Run, seed: int) -> Iterator[dict[str, Any]]:
    sparse = f"sparse: s up to {run.grid[sparse_sizes(run)].max():g}"
    for name, estimate in estimates(run, seed=seed).items():
        asked = STATISTICS[name]
        yield {
            "statistic": name,
            "other": "",
            **estimate._asdict(),
            "rule": asked.rule,
            "verdict": asked.verdict(*estimate[1:]),
            "paper": asked.paper,
            "note": sparse if asked.claim == _SHALLOW else "",
        }


def _against_others(run: Run, runs: Sequence[Run], seed: int) -> Iterator[dict[str, Any]]:
    """Claim 6: the run compared with every other, or a row that says there is none."""
    asked = STATISTICS[_BETWEEN]
    row = {"statistic": _BETWEEN, "rule": asked.rule, "paper": asked.paper}
    others = [other for other in runs if other is not run]
    if not others:
        none = "no other run: the claim takes runs of two models over the same prompts"
        yield {**row, "other": "", "verdict": CANNOT_TELL, "prompts": 0, "note": none}
    for other in others:
        found = density_between(run, other, seed=seed)
        why = no_test(run, other)
        yield {
            **row,
            "other": other.name,
            **found._asdict(),
            "note": "" if why is None else f"no test of the claim: {why}",
            "verdict": CANNOT_TELL if why is not None else asked.verdict(*found[1:]),
        }


def _shallow(run: Run, seed: int) -> dict[str, Estimate]:
    """TV of sparse traces to shallow targets, less the full model's; traces of no edge left out."""
    edges = at_sizes(run, "edges")
    asked = sparse_sizes(run) & (edges > 0)
    count = asked.sum(1)
    found = {}
    for name in ("unigram", "no_context"):
        tv = np.where(asked, at_sizes(run, TARGETS[name]), 0.0).sum(1)
        own = run.prompts[TARGETS[name]].to_numpy(np.float64)
        found[name] = mean_of(divide(tv, count) - own, seed)
    return found


def _lower_median(values: np.ndarray, axis: int) -> np.ndarray:
    middle = (values.shape[axis] - 1) // 2
    return np.partition(values, middle, axis=axis).take(middle, axis=axis)


def _estimator(run: Run) -> str:
    return str(run.manifest["options"].get("estimator", "unknown"))
