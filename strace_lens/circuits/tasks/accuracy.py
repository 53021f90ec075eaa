"""How well a model does a task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strace_lens.circuits.experiment import Experiment
from strace_lens.circuits.metrics import METRICS, Reference, answers_win
from strace_lens.circuits.task import Task
from strace_lens.model.architecture import Model, device_of
from strace_lens.model.checks import architecture_of
from strace_lens.model.forward import MEMORY_BUDGET, even_chunks, last_logits, rows_per_pass
from strace_lens.model.hold import verb


@dataclass(frozen=True)
class TaskAccuracy:
    """What a model makes of a task.

    Attributes:
        task: name.
        pairs: how many.
        accuracy: share of clean prompts the model gets right: the metric is above 0 if it is a
            probability difference, else the best answer's logit is above the best wrong one's
            (above all others', where no wrong ones are named). None for a task without answers.
        metric: key of `METRICS`.
        clean, corrupted: mean metric on the clean and on the corrupted prompts.
        chance: the accuracy that guessing among the tokens compared would have: a half for a
            probability difference. None for a task without answers.
    """

    task: str
    pairs: int
    accuracy: float | None
    metric: str
    clean: float
    corrupted: float
    chance: float | None = None


@verb
def accuracy(model: Model, task: Task, memory_budget: int = MEMORY_BUDGET) -> TaskAccuracy:
    """Run the model on both prompts of each pair and measure.

    Raises:
        FloatingPointError: a logit is NaN or infinite.
        ValueError: the task's metric is not defined for one of its pairs.
    """
    runs = []
    for rows in _chunks(model, task, memory_budget):
        some = task.take(rows)
        runs.append(
            Reference(
                clean=task_logits(model, some, some.clean),
                corrupted=task_logits(model, some, some.corrupted),
                answers=some.answers,
                incorrect=some.incorrect,
            )
        )
    return _standing(task, task.metric, runs)


def standing_of(experiment: Experiment) -> TaskAccuracy:
    """The same from an experiment, by its own metric, from the runs that it keeps.

    Raises:
        ValueError: the metric is not defined for one of its pairs.
    """
    return _standing(experiment.task, experiment.metric, [experiment.reference])


def failure(standing: TaskAccuracy) -> str | None:
    """A sentence that says how a model fails a task; None where it does it better than by chance.

    A model fails where the mean metric of the clean prompts is not above that of the corrupted
    ones, or where its accuracy is at or below chance.
    """
    means = f"{standing.clean:.3g} on clean prompts and {standing.corrupted:.3g} on corrupted ones"
    if not standing.clean > standing.corrupted:
        return (
            f"the mean {standing.metric} of task {standing.task!r} is {means}; the model does not "
            "do the task, so there is nothing to restore"
        )
    right, chance = standing.accuracy, standing.chance
    if right is not None and chance is not None and right <= chance:
        return (
            f"the model is right on {right:.0%} of the pairs of task {standing.task!r}, where "
            f"chance is {chance:.0%} (mean {standing.metric}: {means}); circuits of a task that "
            "the model cannot do explain little"
        )
    return None


def _standing(task: Task, name: str, runs: Sequence[Reference]) -> TaskAccuracy:
    """What the runs of all pairs of a task make of a metric."""
    metric = METRICS[name]
    clean, corrupted, right, chance = [], [], [], []
    for run in runs:
        clean.append(metric(run.clean, run))
        corrupted.append(metric(run.corrupted, run))
        if name == "probability_difference":
            right.append(clean[-1] > 0)
            chance.append(torch.full(clean[-1].shape, 0.5))
        elif bool((run.answers >= 0).any(-1).all()):
            right.append(answers_win(run.clean, run))
            chance.append(_chance(run))
    known = len(right) == len(clean)
    return TaskAccuracy(
        task=task.name,
        pairs=len(task),
        accuracy=float(torch.cat(right).float().mean()) if known else None,
        metric=name,
        clean=float(torch.cat(clean).mean()),
        corrupted=float(torch.cat(corrupted).mean()),
        chance=float(torch.cat(chance).mean()) if known else None,
    )


def _chance(run: Reference) -> Float[Tensor, " row"]:
    """How often a guess would win each row: among the tokens named, or among all of them."""
    right = (run.answers >= 0).sum(-1).cpu()
    wrong = (run.incorrect >= 0).sum(-1).cpu()
    others = torch.where(wrong > 0, right + wrong, run.clean.shape[-1])
    return right / others


def task_logits(
    model: Model, task: Task, tokens: Int[Tensor, "pair pos"]
) -> Float[Tensor, "pair read vocab"]:
    """The model's logits where a task reads them: after the last token, or at every position."""
    if not task.every_position:
        architecture = architecture_of(model)
        return last_logits(model, architecture, tokens, task.lengths)[:, None]
    with torch.no_grad():
        logits = cast(Any, model)(
            tokens.to(device_of(model)), return_type="logits", padding_side="right"
        )
    if not bool(torch.isfinite(logits).all()):
        raise FloatingPointError(f"task {task.name!r}: the model gave NaN or infinite logits")
    return logits


def _chunks(model: Model, task: Task, memory_budget: int) -> Iterator[slice]:
    """Rows that fit the budget; all at once where every position is read (tiny models)."""
    if task.every_position:
        return even_chunks(len(task), len(task))
    largest = rows_per_pass(architecture_of(model), task.clean.shape[1], memory_budget)
    return even_chunks(len(task), largest)
