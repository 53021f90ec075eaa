"""How well a model does a task, against one forward pass a prompt."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from strace_lens.circuits.discover.run_method import discover
from strace_lens.circuits.experiment import make_experiment
from strace_lens.circuits.metrics import METRICS, Reference
from strace_lens.circuits.task import Task
from strace_lens.circuits.tasks.accuracy import (
    TaskAccuracy,
    accuracy,
    failure,
    standing_of,
    task_logits,
)
from strace_lens.ground_truth.linear import linear_task, linear_weights
from strace_lens.ground_truth.weights import model_of
from strace_lens.model.architecture import UnsupportedModelError
from strace_lens.model.checks import architecture_of
from tests import cases, tiny

PAIRS = 5


def random_task(*, every_position: bool = False, metric: str = "logit_difference") -> Task:
    """Random tokens; pairs of 4 to 8 tokens, or all of 6."""
    lengths = torch.full((PAIRS,), 6) if every_position else torch.arange(4, 4 + PAIRS)
    width = int(lengths.max())
    clean = torch.tensor([tiny.token_ids(width, seed=i) for i in range(PAIRS)])
    corrupted = torch.tensor([tiny.token_ids(width, seed=100 + i) for i in range(PAIRS)])
    padding = torch.arange(width) >= lengths[:, None]
    answers = torch.tensor([[10, 11], [12, -1], [13, 14], [-1, 15], [16, 17]])
    return Task(
        name="random",
        clean=clean.masked_fill(padding, 0),
        corrupted=corrupted.masked_fill(padding, 0),
        lengths=lengths,
        answers=answers,
        incorrect=torch.tensor([[20], [21], [22], [23], [24]]),
        metric=metric,
        every_position=every_position,
    )


@pytest.mark.parametrize("name", cases.NAMES)
@pytest.mark.parametrize("every_position", [False, True])
def test_logits_are_those_of_each_prompt_alone(name: str, every_position: bool) -> None:
    task = random_task(every_position=every_position)
    logits = task_logits(cases.model_of(name), task, task.clean)
    for pair, length in enumerate(task.lengths.tolist()):
        with torch.no_grad():
            alone = cases.model_of(name)(task.clean[pair : pair + 1, :length])[0]
        alone = alone if every_position else alone[-1:]
        torch.testing.assert_close(logits[pair], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("budget", [1, 2**27])
def test_the_means_are_over_pairs_and_the_share_over_right_ones(metric: str, budget: int) -> None:
    model, task = cases.model_of("llama"), random_task(metric=metric)
    found = accuracy(model, task, memory_budget=budget)
    reference = Reference(
        task_logits(model, task, task.clean),
        task_logits(model, task, task.corrupted),
        task.answers,
        task.incorrect,
    )
    for mean, logits in ((found.clean, reference.clean), (found.corrupted, reference.corrupted)):
        assert mean == pytest.approx(float(METRICS[metric](logits, reference).mean()), abs=1e-5)
    right = 0
    for pair, last in enumerate(reference.clean[:, -1]):
        answers = [i for i in task.answers[pair].tolist() if i >= 0]
        if metric == "probability_difference":
            probabilities = last.softmax(-1)
            right += bool(probabilities[answers].sum() > probabilities[task.incorrect[pair]].sum())
        else:
            right += bool(last[answers].max() > last[task.incorrect[pair]].max())
    assert found.accuracy == pytest.approx(right / PAIRS)
    assert (found.task, found.pairs, found.metric) == ("random", PAIRS, metric)


@pytest.mark.parametrize("metric", METRICS)
def test_a_task_made_ready_stands_as_the_task_does(metric: str) -> None:
    model, task = cases.model_of("llama"), random_task(metric=metric)
    found, ready = accuracy(model, task), standing_of(make_experiment(model, task))
    assert (ready.accuracy, ready.chance, ready.metric) == (found.accuracy, found.chance, metric)
    assert ready.clean == pytest.approx(found.clean, abs=1e-4)
    assert ready.corrupted == pytest.approx(found.corrupted, abs=1e-4)
    if metric == "probability_difference":
        assert found.chance == 0.5
    else:  # one of three tokens is the wrong one in three pairs, one of two in the others
        assert found.chance == pytest.approx((3 * 2 / 3 + 2 / 2) / PAIRS)


def test_without_wrong_answers_chance_is_one_of_the_vocabulary() -> None:
    model = cases.model_of("llama")
    task = random_task(metric="answer_rank")
    task = dataclasses.replace(task, incorrect=torch.full((PAIRS, 1), -1))
    vocabulary = architecture_of(model).d_vocab
    assert accuracy(model, task).chance == pytest.approx(8 / PAIRS / vocabulary)


@pytest.mark.parametrize(
    ("clean", "corrupted", "right", "words"),
    [
        (-14.0, 14.0, 0.9, "is -14 on clean prompts and 14 on corrupted ones; the model does not"),
        (1.0, 1.0, 1.0, "is 1 on clean prompts and 1 on corrupted ones"),
        (2.0, 1.0, 0.5, "right on 50% of the pairs of task 'any', where chance is 50%"),
        (2.0, 1.0, 0.6, None),
        (2.0, 1.0, None, None),
    ],
)
def test_a_task_that_the_model_fails_is_said_to_be_so(clean, corrupted, right, words) -> None:
    chance = None if right is None else 0.5
    said = failure(TaskAccuracy("any", 10, right, "logit_difference", clean, corrupted, chance))
    assert said is None if words is None else words in str(said)


def test_a_task_without_answers_has_no_accuracy() -> None:
    none = torch.full((PAIRS, 1), -1)
    task = random_task(every_position=True)
    task = dataclasses.replace(task, answers=none, incorrect=none, metric="recovered")
    found = accuracy(cases.model_of("llama"), task)
    assert found.accuracy is None
    assert found.clean == pytest.approx(1)
    assert found.corrupted == pytest.approx(0, abs=1e-6)


def test_a_model_that_reads_in_both_directions_has_its_outputs_read_at_every_position() -> None:
    weights = dataclasses.replace(linear_weights(), causal=False)
    model = model_of(weights, "both directions")
    task = dataclasses.replace(linear_task(3), every_position=True)
    found = accuracy(model, task)
    assert (found.clean, found.corrupted) == pytest.approx((1, 0), abs=1e-6)
    # A method that takes no gradients looks at the outputs before it begins.
    assert float(discover(model, task, "edge-patching").values.abs().max()) > 0.1


def test_logits_that_are_no_numbers_are_refused() -> None:
    model = cases.fresh_bridge("llama")
    architecture_of(model)
    with torch.no_grad():
        next(iter(model.parameters())).fill_(torch.nan)
    for every_position in (False, True):
        task = random_task(every_position=every_position)
        # The proof of the changed model may meet them before the task's own logits do.
        refused = (FloatingPointError, UnsupportedModelError)
        with pytest.raises(refused, match=r"NaN or infinite|gap nan"):
            task_logits(model, task, task.clean)
