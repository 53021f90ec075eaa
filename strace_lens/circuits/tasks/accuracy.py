"""How well a model does a task."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from strace_lens.circuits.experiment import Experiment
from strace_lens.circuits.metrics import METRICS, Logits, Reference, answers_win
from strace_lens.circuits.outputs import read_logits
from strace_lens.circuits.task import Task
from strace_lens.model.architecture import Model, describe, device_of
from strace_lens.model.checks import architecture_of
from strace_lens.model.forward import byte_budget, even_chunks, rows_per_pass
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
def accuracy(model: Model, task: Task, memory_budget: int | None = None) -> TaskAccuracy:
    """Measure how well a model does a task, on both prompts of each pair.

    Raises:
        FloatingPointError: a logit is NaN or infinite.
        ValueError: the task's metric is not defined for one of its pairs.

    Example:
        >>> model = sl.load_model()
        >>> sl.accuracy(model, sl.make_task(model, "ioi", pairs=4)).accuracy
        1.0
    """
    largest = len(task)
    if not task.every_position:  # all at once where every position is read, as on tiny models
        budget = byte_budget(memory_budget, device_of(model))
        largest = rows_per_pass(architecture_of(model), task.clean.shape[1], budget)
    chunks = [task.take(rows) for rows in even_chunks(len(task), largest)]
    clean = torch.cat([task_logits(model, some, some.clean) for some in chunks])
    corrupted = torch.cat([task_logits(model, some, some.corrupted) for some in chunks])
    reference = Reference(clean, corrupted, task.answers, task.incorrect)
    return _standing(task, task.metric, reference)


def standing_of(experiment: Experiment) -> TaskAccuracy:
    """The same from an experiment, by its own metric, from the runs that it keeps.

    Raises:
        ValueError: the metric is not defined for one of its pairs.
    """
    return _standing(experiment.task, experiment.metric, experiment.reference)


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


def _standing(task: Task, metric: str, run: Reference) -> TaskAccuracy:
    """What the runs of all pairs of a task make of a metric."""
    clean, corrupted = (METRICS[metric](logits, run) for logits in (run.clean, run.corrupted))
    chance, right = None, right_answers(run.clean, run, metric)
    if metric == "probability_difference":
        chance = 0.5
    elif right is not None:
        answers, wrong = ((ids >= 0).sum(-1) for ids in (run.answers, run.incorrect))
        compared = torch.where(wrong > 0, answers + wrong, run.clean.shape[-1])
        chance = float((answers / compared).mean())
    return TaskAccuracy(
        task=task.name,
        pairs=len(task),
        accuracy=None if right is None else float(right.float().mean()),
        metric=metric,
        clean=float(clean.mean()),
        corrupted=float(corrupted.mean()),
        chance=chance,
    )


def right_answers(logits: Logits, run: Reference, metric: str) -> Bool[Tensor, " row"] | None:
    """Which rows are right, as `TaskAccuracy.accuracy` counts them; None without answers."""
    if metric == "probability_difference":
        return METRICS[metric](logits, run) > 0
    return answers_win(logits, run) if bool((run.answers >= 0).any(-1).all()) else None


def task_logits(
    model: Model, task: Task, tokens: Int[Tensor, "pair pos"]
) -> Float[Tensor, "pair read vocab"]:
    """The model's logits on prompts of a task's shape, where the task reads them."""
    every = task.every_position
    # A model that is read at every position may read in both directions, as compiled ones do.
    architecture = describe(model, causal_only=False) if every else architecture_of(model)
    return read_logits(model, architecture, tokens, task.lengths, every_position=every)
