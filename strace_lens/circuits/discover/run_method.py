"""The function that runs a method of discovery, and refuses tasks on which it gives no ranking."""

from __future__ import annotations

import inspect
import time
from typing import Any

import torch
from torch import Tensor

from strace_lens.circuits.discover.methods import METHODS
from strace_lens.circuits.experiment import Experiment, make_experiment
from strace_lens.circuits.graph import EdgeValues
from strace_lens.circuits.scores import Scores
from strace_lens.circuits.task import Task
from strace_lens.circuits.tasks.accuracy import task_logits
from strace_lens.model.architecture import Model
from strace_lens.model.hold import noted, verb
from strace_lens.model.weights import remembered_hash
from strace_lens.utils.progress import warn


@verb
def discover(
    model: Model,
    task: Task,
    method: str = "eap-ig",
    *,
    metric: str | None = None,
    ablation: str = "resample",
    seed: int = 0,
    memory_budget: int | None = None,
    **options: Any,
) -> Scores:
    """Score every edge of a model for a task.

    The parameters `metric`, `ablation` and `memory_budget` are as for `run_circuits`.

    Args:
        model: the model.
        task: pairs of clean and corrupted prompts.
        method: a key of `METHODS`; the docstrings of the methods cite their sources.
        seed: seed of methods with random draws.
        options: options of the method, such as `steps` of "eap-ig".

    Raises:
        ValueError: an unknown method or option, a task that does not fit the model, a method that
            would take too many passes, or resample ablation on a task whose clean and corrupted
            prompts do not differ, so that nothing can be found. If only some pairs do not differ, a
            UserWarning names them.
        UnsupportedModelError: the model cannot be patched, or gives no gradients.
        FloatingPointError: logits or gradients are NaN or infinite.

    Example:
        >>> from strace_lens.ground_truth.models import ground_truth
        >>> known = ground_truth("linear")  # a small model whose circuit is known, and its task
        >>> sl.discover(known.model, known.task, "eap").top(2).edge_names()
        ['embed->logits', 'embed->a0.h0<v>']
    """
    experiment = make_experiment(
        model, task, metric=metric, ablation=ablation, memory_budget=memory_budget
    )
    said = unchanged_pairs(task, ablation)
    if said:
        warn(said)
    return discover_in(experiment, method, seed=seed, **options)


@verb
def discover_in(experiment: Experiment, method: str, *, seed: int = 0, **options: Any) -> Scores:
    """Score every edge for an experiment; passes count from here on."""
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose from {', '.join(METHODS)}")
    known = [p for p in inspect.signature(METHODS[method].find).parameters if p not in _SHARED]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"{method} has no option {unknown[0]!r}; "
            + (f"it has {', '.join(known)}" if known else "it has none")
        )
    experiment.expect_unchanged()
    _expect_difference(experiment, in_outputs=not METHODS[method].first_order)
    passes, pairs, facts = experiment.passes, len(experiment.task), METHODS[method].facts
    forward, backward = passes.forward_rows, passes.backward_rows
    began = time.perf_counter()
    values = METHODS[method].find(experiment, seed=seed, **options)
    seconds = time.perf_counter() - began
    forward, backward = passes.forward_rows - forward, passes.backward_rows - backward
    values = _checked(experiment, method, values)
    _check_ranks(experiment, method, values)
    by_span = values.ndim == 3 and experiment.task.spans is not None
    return Scores(
        graph=experiment.graph,
        values=values.float(),
        method=method,
        task=experiment.task.name,
        forwards=forward / pairs,
        backwards=backward / pairs,
        seconds=seconds,
        signed=METHODS[method].signed,
        metadata={
            "weights": noted(remembered_hash, experiment.model),
            "metric": experiment.metric,
            "ablation": experiment.ablation,
            "pairs": pairs,
            "seed": seed,
            **options,
            **({"task_spans": experiment.task.positions} if by_span else {}),
            **({} if facts is None else facts(experiment, options)),
        },
    )


def unchanged_pairs(task: Task, ablation: str) -> str | None:
    """A sentence that names the pairs, if some, in which a resampled edge changes nothing."""
    same = task.unchanged
    if ablation != "resample" or not 0 < len(same) < len(task):
        return None
    more = len(same) - _NAMED
    named = ", ".join(map(str, same[:_NAMED])) + (f" and {more} more" if more > 0 else "")
    return (
        f"clean and corrupted are the same tokens in {len(same)} of {len(task)} pairs of task "
        f"{task.name!r} ({named}, counted from 0); they say nothing of any edge"
    )


def _checked(experiment: Experiment, method: str, values: object) -> EdgeValues:
    """What a method returned, zero where there is no edge, or an error that says what is wrong."""
    graph = experiment.graph
    wanted = (graph.destinations, graph.sources)
    if not isinstance(values, Tensor) or tuple(values.shape[:2]) != wanted or values.ndim > 3:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"{method} must return a tensor [destination, source] of {wanted}, with an optional "
            f"third axis of token positions; it returned {got}"
        )
    exists = graph.exists_like(values)
    if not bool(torch.isfinite(values[exists]).all()):
        raise ValueError(f"{method} gave NaN or infinite scores; check its options")
    return values.detach().masked_fill(~exists, 0)


def _check_ranks(experiment: Experiment, method: str, values: EdgeValues) -> None:
    """Refuse scores that are zero, or zero but for rounding where they are effects."""
    largest, least = float(values.abs().max()), 0.0
    if METHODS[method].first_order and largest < _SUSPICIOUS:
        _expect_difference(experiment, in_outputs=True)
    if METHODS[method].signed and largest < _SUSPICIOUS:  # the runs of the reference are not free
        ends = (experiment.clean[1], experiment.corrupted[1])
        metrics = [experiment.score(logits, experiment.reference).abs().max() for logits in ends]
        least = _ROUNDING * float(max(metrics))
    if not largest > least:
        raise ValueError(
            f"{method} scores every edge of task {experiment.task.name!r} zero, so there is no "
            f"ranking: it finds no effect of {experiment.ablation} ablation on "
            f"{experiment.metric}; choose another metric, ablation or method, or other prompts"
        )


def _expect_difference(experiment: Experiment, *, in_outputs: bool) -> None:
    """Refuse a task on which a resampled edge carries what it carries anyway.

    The tokens of some pair must differ, and `in_outputs` its logits too: pairs are run until one
    does, which is the first one of any sound task. The passes are not counted as a method's.
    """
    task = experiment.task
    if experiment.ablation != "resample":
        return
    changed = sorted(set(range(len(task))).difference(task.unchanged))
    if changed and not in_outputs:
        return
    for one in (task.take([pair]) for pair in changed):
        clean, corrupted = (
            task_logits(experiment.model, one, tokens) for tokens in (one.clean, one.corrupted)
        )
        if float((clean - corrupted).abs().max()) > _ROUNDING * float(clean.abs().max()):
            return
    what = "tokens or output" if changed else "tokens"
    raise ValueError(
        f"clean and corrupted do not differ in the {what} of any pair of task {task.name!r}, so "
        "resampling an edge changes nothing: give different corrupted prompts, or another ablation"
    )


_NAMED = 8
_ROUNDING, _SUSPICIOUS = 1e-6, 1e-3
_SHARED = ("experiment", "seed")
