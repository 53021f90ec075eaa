"""How well a model does a task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strace_lens.architecture import Model, device_of
from strace_lens.component_graph.metrics import METRICS, Reference, answers_win
from strace_lens.component_graph.task import Task
from strace_lens.contract import architecture_of
from strace_lens.hold import verb
from strace_lens.run import MEMORY_BUDGET, even_chunks, last_logits, rows_per_pass


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
    """

    task: str
    pairs: int
    accuracy: float | None
    metric: str
    clean: float
    corrupted: float


@verb
def accuracy(model: Model, task: Task, memory_budget: int = MEMORY_BUDGET) -> TaskAccuracy:
    """Run the model on both prompts of each pair and measure.

    Raises:
        FloatingPointError: a logit is NaN or infinite.
        ValueError: the task's metric is not defined for one of its pairs.
    """
    clean, corrupted, right = [], [], []
    for rows in _chunks(model, task, memory_budget):
        some = task.take(rows)
        reference = Reference(
            clean=task_logits(model, some, some.clean),
            corrupted=task_logits(model, some, some.corrupted),
            answers=some.answers,
            wrong=some.wrong,
        )
        metric = METRICS[task.metric]
        clean.append(metric(reference.clean, reference))
        corrupted.append(metric(reference.corrupted, reference))
        if task.metric == "probability_difference":
            right.append(clean[-1] > 0)
        elif bool((some.answers >= 0).any(-1).all()):
            right.append(answers_win(reference.clean, reference))
    known = len(right) == len(clean)
    return TaskAccuracy(
        task=task.name,
        pairs=len(task),
        accuracy=float(torch.cat(right).float().mean()) if known else None,
        metric=task.metric,
        clean=float(torch.cat(clean).mean()),
        corrupted=float(torch.cat(corrupted).mean()),
    )


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
