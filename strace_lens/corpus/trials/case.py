"""One prompt of a trial: every trace made, then measured in every role."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from strace_lens.corpus.trials.jobs import Job, jobs_of
from strace_lens.corpus.trials.measure import OWN_COLUMNS, ROLES, Measuring
from strace_lens.corpus.trials.prompts import Case
from strace_lens.corpus.trials.saved import made_or_read
from strace_lens.measures.sizes import DENSITY_SIZES, density, smallest_size_from_which
from strace_lens.model.architecture import Model
from strace_lens.model.checks import architecture_of
from strace_lens.model.forward import last_logits
from strace_lens.token_graph.ablation import replacement
from strace_lens.token_graph.estimators import estimate
from strace_lens.token_graph.graph import TokenGraph, token_graph
from strace_lens.token_graph.noise import embedding_noise
from strace_lens.token_graph.trace import Trace
from strace_lens.utils.progress import NamedSteps
from strace_lens.utils.versions import versions


@dataclass(frozen=True, eq=False)
class Setting:
    """What all prompts of a trial share: the options of `run_trials`."""

    model: Model
    estimators: tuple[str, ...]
    seeds: int
    sizes: tuple[float, ...]
    ablation: str
    out: Path | None
    memory_budget: int
    gradient_budget: int
    progress: NamedSteps


def run_case(setting: Setting, case: Case) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of one prompt: of `Trials.runs` and of `Trials.traces`."""
    architecture = architecture_of(setting.model)
    graph = token_graph(setting.model, case.prompt)
    wrong = last_logits(setting.model, architecture, case.wrong.tensor[None])[0]
    measuring = Measuring(
        setting.model,
        setting.sizes,
        replacement(setting.model, case.prompt, setting.ablation),
        setting.memory_budget,
    )
    traces = _traces(setting, case, graph, wrong, measuring)
    about = {
        "prompt": case.index,
        "kind": case.kind,
        "tokens": graph.shape.tokens,
        "edges": graph.shape.edges,
    }
    runs, facts = [], []
    for (job, role), frame in _measured(setting, case, wrong, measuring, traces).items():
        of = {**about, "estimator": job.estimator, "seed": job.seed}
        runs.append(frame.assign(**of, role=role))
        if role == job.target:
            facts.append({**of, "target": role, **_facts(traces[job], frame)})
    columns = [*about, "estimator", "seed", "role", "size", "tv", "top1", *OWN_COLUMNS]
    whole = pd.concat(runs, ignore_index=True).reindex(columns=columns)
    return whole.astype({"connected": "boolean"}), pd.DataFrame(facts)


def _traces(
    setting: Setting,
    case: Case,
    graph: TokenGraph,
    wrong: Float[Tensor, " vocab"],
    measuring: Measuring,
) -> dict[Job, Trace]:
    """The trace of every job, read from disk or estimated.

    What fits nothing cannot be aimed: its own trace stands in for the one of the wrong target.
    """
    traces: dict[Job, Trace] = {}
    for job in jobs_of(setting.estimators, setting.seeds):
        start = None if job.start is None else traces[job.start]
        progress = _Steps(setting, f"prompt {case.index}: {job.estimator}, {job.target} target")
        traces[job] = made_or_read(
            None if setting.out is None else job.path(setting.out, case.index),
            _identity(setting, case, graph, job),
            partial(
                estimate,
                setting.model,
                graph,
                job.estimator,
                target=wrong.float().softmax(-1) if job.target == "wrong" else None,
                replacement=measuring.replacement,
                seed=job.seed,
                start=start,
                memory_budget=setting.gradient_budget,
                progress=progress,
            ),
            before=0.0 if start is None else start.made["seconds"],
        )
        progress(job.steps - progress.done)
    for name in setting.estimators:
        traces.setdefault(Job(name, 0, "wrong"), traces[Job(name, 0, "own")])
    return traces


class _Steps:
    """Counts the steps of one job while it tells of them."""

    def __init__(self, setting: Setting, what: str) -> None:
        self.setting, self.what, self.done = setting, what, 0
        self(0)

    def __call__(self, steps: int) -> None:
        self.done += steps
        self.setting.progress(self.what, steps)


def _identity(setting: Setting, case: Case, graph: TokenGraph, job: Job) -> dict[str, Any]:
    """What tells a saved trace from those of other trials."""
    return {
        "prompt": case.prompt.text,
        "token hash": case.prompt.sha256,
        "estimator": job.estimator,
        "seed": job.seed,
        "target": case.wrong.text if job.target == "wrong" else None,
        "ablation": setting.ablation,
        "model": graph.architecture.name,
        "dtype": str(next(cast(Any, setting.model).parameters()).dtype),
        "version": versions()["strace-lens"],
    }


def _measured(
    setting: Setting,
    case: Case,
    wrong: Float[Tensor, " vocab"],
    measuring: Measuring,
    traces: Mapping[Job, Trace],
) -> dict[tuple[Job, str], pd.DataFrame]:
    """A frame for each trace and role, by estimator, seed and role. A role shares its passes."""
    chosen = [job for job in traces if job.estimator in setting.estimators]
    own = [job for job in chosen if job.target == "own"]
    width = architecture_of(setting.model).d_model
    noise = embedding_noise(len(case.prompt.ids), width, seed=case.index)
    against = partial(measuring.against, prompt=case.prompt)
    measures: dict[str, tuple[list[Job], Callable[[Sequence[Trace]], list[pd.DataFrame]]]] = {
        "own": (own, measuring.own),
        "wrong": (
            [job for job in chosen if job.target == "wrong"],
            partial(against, target=wrong),
        ),
        "noise": (own, partial(against, hooks=[noise])),
    }
    if case.sibling is not None:
        measures["sibling"] = own, partial(measuring.against, prompt=case.sibling)
    frames: dict[tuple[Job, str], pd.DataFrame] = {}
    for role in ROLES:
        what = f"prompt {case.index}: measuring, {role}"
        setting.progress(what, 0)
        if role in measures:
            jobs, measure = measures[role]
            found = measure([traces[job] for job in jobs])
            frames.update({(j, role): frame for j, frame in zip(jobs, found, strict=True)})
        setting.progress(what, 1)
    order = setting.estimators.index
    keys = sorted(frames, key=lambda k: (order(k[0].estimator), k[0].seed, ROLES.index(k[1])))
    return {key: frames[key] for key in keys}


def _facts(trace: Trace, frame: pd.DataFrame) -> dict[str, float]:
    """Density, size of top-1 and cost of a trace."""
    over = frame.query("size in @DENSITY_SIZES")
    if len(over) < len(DENSITY_SIZES):
        over = frame
    passes = trace.made.get("passes", {})
    return {
        "density": density(over["size"].to_numpy(), over["tv"].to_numpy()),
        "top1_size": smallest_size_from_which(frame["size"].to_numpy(), frame["top1"].to_numpy()),
        "forward": passes.get("forward", 0),
        "backward": passes.get("backward", 0),
        "seconds": trace.made["seconds"],
    }
