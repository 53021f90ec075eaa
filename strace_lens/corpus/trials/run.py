"""Trials of estimators: every estimator on every prompt, beside all of its controls.

A learned mask can fit anything, so density alone says nothing. Each trace is measured against its
prompt's own output; on a sibling prompt that it was not fitted to; and with noise on the
embeddings. The same estimator, on the same graph and with the same budget, is aimed at the output
of another prompt: a trace of the model's own computation cannot be made to give it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from strace_lens.corpus.trials.case import Setting, run_case
from strace_lens.corpus.trials.jobs import jobs_of
from strace_lens.corpus.trials.measure import ROLES
from strace_lens.corpus.trials.prompts import TrialPrompt, cases
from strace_lens.measures.sizes import ESTIMATOR_SIZES, check_sizes
from strace_lens.model.architecture import Model
from strace_lens.model.forward import MEMORY_BUDGET
from strace_lens.model.hold import verb
from strace_lens.token_graph.estimators import ESTIMATORS, estimator_of
from strace_lens.token_graph.fit import GRADIENT_BUDGET
from strace_lens.utils.html_repr import facts
from strace_lens.utils.progress import NamedSteps, named_bar

ABLATIONS = ("zero", "mean")
SEEDS = 2
SMALL = 1e-3
"""A grid must begin at a size as small as this: above it, estimators look alike."""


@dataclass(frozen=True, eq=False)
class Trials:
    """What came of running estimators over prompts.

    Attributes:
        runs: one row a prompt, estimator, seed, role and size. Columns: `prompt` (its index),
            `kind`, `tokens`, `edges` (of the whole graph), `estimator`, `seed`, `role`, `size`,
            `tv`, `top1`; for role own `kl` to `mean_layer` as in `DensityCurve.table`,
            `path_share`, `path_tokens` and `connected` (`paths.on_path`), and `compute`
            (`compute_share`). Roles: own, against the prompt's output; wrong, against another
            prompt's, by a trace fitted to it where the estimator fits; sibling, the same edges on
            a sibling prompt against its output; noise, on the prompt with 10 % noise on its
            embeddings against the full model's output under the same noise.
        traces: one row a prompt, estimator, seed and `target` (own, wrong). Columns: `density`,
            over `DENSITY_SIZES` (over all sizes where one of these was not measured); `top1_size`,
            from which on the top token is right (NaN if not at the largest); `forward` and
            `backward`, rows of passes; `seconds`, without the pass that reads the graph. What a
            trace started from counts in all three. Only seconds differ between runs.
    """

    runs: pd.DataFrame
    traces: pd.DataFrame

    def __repr__(self) -> str:
        prompts, names = self.traces["prompt"].nunique(), self.traces["estimator"].unique()
        return f"Trials({prompts} prompts, estimators {', '.join(names)})"

    def _repr_html_(self) -> str:
        own = self.traces[self.traces["target"] == "own"]
        means = own.groupby("estimator", sort=False, as_index=False).agg(
            {"density": "mean", "top1_size": "mean", "seconds": "mean"}
        )
        return facts(f"{self!r}: means over prompts and seeds", pd.DataFrame(means))


@verb
def run_trials(
    model: Model,
    prompts: Sequence[TrialPrompt],
    *,
    estimators: Sequence[str] = tuple(ESTIMATORS),
    sizes: Sequence[float] = ESTIMATOR_SIZES,
    ablation: str = "zero",
    seeds: int = SEEDS,
    bos: bool | None = True,
    limit: int | None = None,
    out: str | Path | None = None,
    memory_budget: int = MEMORY_BUDGET,
    gradient_budget: int = GRADIENT_BUDGET,
    progress: NamedSteps | None = None,
) -> Trials:
    """Run estimators over prompts, with all controls.

    Args:
        model: the model.
        prompts: of `read_prompts`.
        estimators: keys of `ESTIMATORS`.
        sizes: relative sizes, rising, the first no larger than 0.001.
        ablation: what replaces ablated edges, while fitting and measuring: zero or mean.
        seeds: seeds 0, 1, .. of the estimators that draw; the wrong target has seed 0 alone.
        bos: True makes sure of a BOS, False of none, None leaves it to the tokenizer.
        limit: run the first so many prompts only; their wrong targets may lie beyond.
        out: folder where every trace is saved under `traces/` and read again by a later run
            (`saved`); None saves nothing.
        memory_budget: bytes that one forward pass may take.
        gradient_budget: bytes of a forward and backward pass.
        progress: told what is done and after how many steps; there are `trial_steps` a prompt; a
            bar if not given.

    Raises:
        ValueError: an option out of its range, an unknown estimator, or prompts that will not do
            (`read_prompts`, `cases`).
        ResultFileError: a saved trace is truncated or foreign.
        OtherTrialError: a saved trace is of another prompt or of other options.
    """
    check_options(estimators, sizes, ablation, seeds, limit)
    chosen = cases(model, prompts, bos)[:limit]
    total = len(chosen) * trial_steps(estimators, seeds)
    with named_bar(progress, total) as told:
        setting = Setting(
            model=model,
            estimators=tuple(dict.fromkeys(estimators)),
            seeds=seeds,
            sizes=tuple(float(s) for s in sizes),
            ablation=ablation,
            out=None if out is None else Path(out),
            memory_budget=memory_budget,
            gradient_budget=gradient_budget,
            progress=told,
        )
        found = [run_case(setting, case) for case in chosen]
    runs, traces = (pd.concat(list(part), ignore_index=True) for part in zip(*found, strict=True))
    return Trials(runs, traces)


def trial_steps(estimators: Sequence[str], seeds: int = SEEDS) -> int:
    """Steps that `run_trials` reports for each prompt."""
    return sum(job.steps for job in jobs_of(estimators, seeds)) + len(ROLES)


def check_options(
    estimators: Sequence[str],
    sizes: Sequence[float],
    ablation: str,
    seeds: int,
    limit: int | None,
) -> None:
    """Raise ValueError for what `run_trials` would refuse, so that no model is loaded for it."""
    if not estimators:
        raise ValueError(f"no estimators; choose from {', '.join(ESTIMATORS)}")
    for name in estimators:
        estimator_of(name)
    smallest = check_sizes(np.asarray(sizes, dtype=np.float64))[0]
    if smallest > SMALL or len(sizes) < 2:
        raise ValueError(
            f"density says nothing of an estimator without sizes of {SMALL:g} or less and larger "
            f"ones; got {len(sizes)} from {smallest:g}"
        )
    if ablation not in ABLATIONS:
        raise ValueError(f"trials ablate to {' or '.join(ABLATIONS)}; got {ablation!r}")
    for name, value in (("seeds", seeds), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
