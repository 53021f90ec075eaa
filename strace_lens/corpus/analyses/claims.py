"""The paper's six claims tested on sweeps: a statistic, an interval and a verdict for each.

Source: s-Trace (arXiv 2605.27033); the statements and the rules are in `claim_rules`, the
statistics in `claim_values`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from strace_lens.corpus.analyses.arrays import kept_kinds
from strace_lens.corpus.analyses.claim_rules import (
    CANNOT_TELL,
    CLAIMS,
    STATISTICS,
    claim_verdict,
)
from strace_lens.corpus.analyses.claim_values import between, estimates, sparse_sizes
from strace_lens.corpus.run_folder import Run

COLUMNS = (
    *("run", "model", "estimator", "keep", "claim", "statement", "statistic", "other"),
    *("value", "low", "high", "rule", "verdict", "claim_verdict", "paper", "prompts"),
    "note",
)
_BETWEEN = "density_between"
_SHALLOW = 5  # the claim whose statistics are of sparse traces


def claims(runs: Run | Sequence[Run], *, seed: int = 0) -> pd.DataFrame:
    """Test the paper's six claims on one or more sweeps.

    Depths are relative (0 the first layer, 1 the last). The same seed gives the same table.

    Args:
        runs: of `read_run` or `sweep`; of different names. Claim 6 takes runs of two models over
            the same prompts, with one estimator and one `keep`.
        seed: of every bootstrap.

    Returns:
        One row a run and statistic; of claim 6 one a run and other run. Columns:

        - `run`, `model`, `estimator`, and `keep`, the kinds of edges that were never ablated,
          joined by "+" ("none" for the paper's definition);
        - `claim`, its number, and `statement`, the claim in words;
        - `statistic`, a name in `claim_rules.STATISTICS`; `other`, the run it is compared with;
        - `value` with `low` and `high`, the 95 % interval over the `prompts` that have it (NaN for
          a single one); bootstrap intervals, but Wilson's for a share;
        - `rule`, how the interval becomes the `verdict`: "holds", "does not hold" or "cannot be
          told". Without an interval or with fewer than four prompts it cannot be told;
        - `claim_verdict`, the verdict on the whole claim: it holds if every statistic that decides
          it holds, and does not hold if one of them does not;
        - `paper`, the paper's own value, as text;
        - `note`, of claim 5 the sizes that are called sparse, of claim 6 why a pair of runs is no
          test of it; empty otherwise.

    Raises:
        ValueError: no runs, or two of one name.
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    names = [run.name for run in runs]
    if not runs:
        raise ValueError("no runs to test the claims on; pass at least one")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two runs are named {name}; rename one's folder")
    rows = []
    for run in runs:
        about = {"run": run.name, "model": run.model, "estimator": _estimator(run)}
        about["keep"] = "+".join(kept_kinds(run)) or "none"
        own = [*_alone(run, seed), *_beside(run, runs, seed)]
        for number, statement in CLAIMS.items():
            mine = [row for row in own if STATISTICS[row["statistic"]].claim == number]
            deciding = [r["verdict"] for r in mine if STATISTICS[r["statistic"]].decides]
            whole = {"claim": number, "statement": statement}
            whole["claim_verdict"] = claim_verdict(deciding)
            rows += [{**about, **whole, **row} for row in mine]
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS))


def _alone(run: Run, seed: int) -> Iterator[dict[str, Any]]:
    sparse = f"sparse: s up to {run.grid[sparse_sizes(run)].max():g}"
    for name, estimate in estimates(run, seed=seed).items():
        asked = STATISTICS[name]
        yield {
            "statistic": name,
            "other": "",
            **vars(estimate),
            "rule": asked.rule,
            "verdict": asked.verdict(estimate.low, estimate.high, estimate.prompts),
            "paper": asked.paper,
            "note": sparse if asked.claim == _SHALLOW else "",
        }


def _beside(run: Run, runs: Sequence[Run], seed: int) -> Iterator[dict[str, Any]]:
    """Claim 6: the run beside every other one, or a row that says there is none."""
    asked = STATISTICS[_BETWEEN]
    row = {"statistic": _BETWEEN, "rule": asked.rule, "paper": asked.paper}
    others = [other for other in runs if other is not run]
    if not others:
        none = "no other run: the claim takes runs of two models over the same prompts"
        yield {**row, "other": "", "verdict": CANNOT_TELL, "prompts": 0, "note": none}
    for other in others:
        found = between(run, other, seed=seed)
        why = no_test(run, other)
        yield {
            **row,
            "other": other.name,
            **vars(found),
            "note": "" if why is None else f"no test of the claim: {why}",
            "verdict": CANNOT_TELL
            if why is not None
            else asked.verdict(found.low, found.high, found.prompts),
        }


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


def _estimator(run: Run) -> str:
    return str(run.manifest["options"].get("estimator", "unknown"))
