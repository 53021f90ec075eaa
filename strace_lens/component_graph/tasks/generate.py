"""Tasks made from a seed, with no download, on the tokenizer of the loaded model."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Mapping

from strace_lens.component_graph.metrics import METRICS
from strace_lens.component_graph.task import Task, TaskError
from strace_lens.component_graph.tasks.agreement import agreement, agreement_attractor
from strace_lens.component_graph.tasks.alignment import Example, Pair, Vocabulary, align, task_of
from strace_lens.component_graph.tasks.greater_than import greater_than
from strace_lens.component_graph.tasks.names import gendered_pronoun, indirect_object
from strace_lens.component_graph.tasks.recall import country_capital, docstring, induction
from strace_lens.model.architecture import Model
from strace_lens.model.checks import architecture_of
from strace_lens.model.hold import verb

TASKS: dict[str, Callable[[random.Random, Vocabulary], Example]] = {
    "ioi": indirect_object,
    "greater-than": greater_than,
    "agreement": agreement,
    "agreement-attractor": agreement_attractor,
    "gendered-pronoun": gendered_pronoun,
    "docstring": docstring,
    "country-capital": country_capital,
    "induction": induction,
}
"""Generators by name of the task: each draws one pair of prompts."""

DEFAULT_METRIC: Mapping[str, str] = {"greater-than": "probability_difference"}
"""Metric of a task where it is not `logit_difference`."""

_DRAWS_PER_PAIR = 50


@verb
def make_task(
    model: Model, name: str, pairs: int = 32, seed: int = 0, metric: str | None = None
) -> Task:
    """Generate a task for a model.

    Pairs that do not align token by token on the model's tokenizer are dropped and counted; more
    are drawn in their place. No pair comes twice, so a task may end up with fewer pairs than asked.

    Args:
        model: any model with a tokenizer (`induction` needs none).
        name: key of `TASKS`.
        pairs: how many pairs, at least 1.
        seed: the same seed gives the same task.
        metric: key of `METRICS`; by default the task's own.

    Raises:
        TaskError: an unknown task or metric, no pairs asked for, or fewer than 2 that align.
        PromptError: no tokenizer, or a prompt longer than the model's context.
    """
    if name not in TASKS:
        raise TaskError(f"unknown task {name!r}; choose from {', '.join(TASKS)}")
    if operator.index(pairs) < 1:
        raise TaskError(f"a task needs at least one pair; got pairs={pairs}")
    metric = DEFAULT_METRIC.get(name, "logit_difference") if metric is None else metric
    if metric not in METRICS:
        raise TaskError(f"unknown metric {metric!r}; choose from {', '.join(METRICS)}")
    vocabulary = Vocabulary(model, architecture_of(model))
    kept, dropped = _draw(TASKS[name], vocabulary, pairs, random.Random(f"{name} {seed}"))
    if len(kept) < min(2, pairs):
        raise TaskError(
            f"of {len(kept) + dropped} pairs of {name}, {len(kept)} align on the tokenizer of "
            f"{vocabulary.architecture.name}; give pairs of your own with read_task"
        )
    made = {"seed": seed, "pairs": pairs, "model": vocabulary.architecture.name}
    return task_of(name, kept, metric, dropped, made)


def _draw(
    draw: Callable[[random.Random, Vocabulary], Example],
    vocabulary: Vocabulary,
    pairs: int,
    generator: random.Random,
) -> tuple[list[Pair], int]:
    """The first different pairs that align, and how many did not."""
    seen: set[Example] = set()
    kept: list[Pair] = []
    for _ in range(_DRAWS_PER_PAIR * pairs):
        example = draw(generator, vocabulary)
        if example in seen:
            continue
        seen.add(example)
        pair = align(vocabulary, example)
        if pair is not None:
            kept.append(pair)
        if len(kept) == pairs:
            break
    return kept, len(seen) - len(kept)
