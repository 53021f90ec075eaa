"""A task's parts fit together, or one error says which does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from jaxtyping import config

from strace_lens.circuits.task import Task, TaskError


def task(**changes: Any) -> Task:
    """Three pairs of up to four tokens."""
    parts: dict[str, Any] = {
        "name": "made by hand",
        "clean": torch.tensor([[1, 2, 3, 0], [4, 5, 6, 7], [8, 9, 0, 0]]),
        "corrupted": torch.tensor([[1, 2, 4, 0], [4, 5, 7, 7], [9, 9, 0, 0]]),
        "lengths": torch.tensor([3, 4, 2]),
        "answers": torch.tensor([[10, 11], [12, -1], [13, -1]]),
        "incorrect": torch.tensor([[12], [11], [10]]),
        "metric": "logit_difference",
        "texts": (("a", "b"), ("c", "d"), ("e", "f")),
        "dropped": 2,
        "metadata": {"seed": 0},
    }
    return Task(**{**parts, **changes})


def test_some_pairs_of_a_task() -> None:
    whole = task()
    assert len(whole) == 3
    assert not whole.equal_lengths
    assert task(lengths=torch.tensor([4, 4, 4])).equal_lengths
    for rows, indices in (
        (slice(1, None), [1, 2]),
        (slice(None, None, -1), [2, 1, 0]),
        ([2, 0, 2], [2, 0, 2]),
        ([-1], [2]),
    ):
        some = whole.take(rows)
        for part in ("clean", "corrupted", "lengths", "answers", "incorrect"):
            assert torch.equal(getattr(some, part), getattr(whole, part)[indices])
        assert some.texts == tuple(whole.texts[i] for i in indices)
        assert (some.metric, some.dropped, some.metadata) == (whole.metric, 2, {"seed": 0})
    assert task(texts=()).take([0]).texts == ()
    with pytest.raises(TaskError, match="no pairs"):
        whole.take([])
    with pytest.raises(IndexError):
        whole.take([3])


def test_a_sample_is_drawn_by_its_seed() -> None:
    whole = Task(
        name="long",
        clean=torch.arange(40)[:, None],
        corrupted=torch.arange(40)[:, None] + 50,
        lengths=torch.ones(40, dtype=torch.int64),
        answers=torch.full((40, 1), 3),
        incorrect=torch.full((40, 1), 4),
        metric="logit_difference",
    )
    drawn, again, other = (whole.sample(12, seed) for seed in (0, 0, 1))
    rows = drawn.clean[:, 0].tolist()
    assert len(set(rows)) == 12
    assert rows == again.clean[:, 0].tolist() != other.clean[:, 0].tolist()
    assert max(rows) >= 12  # not the first twelve
    assert torch.equal(drawn.corrupted, drawn.clean + 50)
    everything = whole.sample(seed=3).clean[:, 0].tolist()
    assert sorted(everything) == list(range(40)) != everything
    assert len(whole.sample(99)) == 40
    with pytest.raises(TaskError, match="no pairs"):
        whole.sample(0)


def test_a_metric_that_reads_no_answers_needs_none() -> None:
    none = torch.full((3, 1), -1)
    for metric in ("kl_divergence", "recovered"):
        assert len(task(metric=metric, answers=none, incorrect=none)) == 3
        assert len(task(metric=metric, answers=none[:, :0], incorrect=none[:, :0])) == 3
    assert len(task(metric="answer_rank", incorrect=none)) == 3
    with pytest.raises(TaskError, match="pair 0 has no answers, which answer_rank needs"):
        task(metric="answer_rank", answers=none)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": torch.tensor([3, 5, 2])}, "lie in 1 to 4, the width of a row; got 5"),
        ({"lengths": torch.tensor([3, 4, 0])}, "lie in 1 to 4, the width of a row; got 0"),
        ({"clean": -torch.ones(3, 4, dtype=torch.int64)}, "clean prompts hold the token id -1"),
        ({"corrupted": torch.full((3, 4), -7)}, "corrupted prompts hold the token id -7"),
        ({"every_position": True}, "every position needs prompts of one length"),
        ({"texts": (("a", "b"),)}, "1 texts for 3 pairs"),
        ({"metric": "logits"}, "unknown metric 'logits'; choose from logit_difference, "),
        (
            {"incorrect": torch.tensor([[12], [-1], [10]])},
            "pair 1 has no incorrect answers, which logit_diff",
        ),
        ({"incorrect": torch.tensor([[12], [-2], [10]])}, "pair 1 has"),
        ({"incorrect": torch.tensor([[12, -2], [11, 1], [10, 1]])}, "pair 0 has the answer id -2"),
        ({"incorrect": torch.tensor([[11], [11], [10]])}, "pair 0 names the token 11 twice"),
        ({"answers": torch.tensor([[9], [8], [8]]).expand(3, 2)}, "pair 0 names the token 9 twice"),
    ],
)
def test_parts_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        task(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corrupted": torch.ones(3, 5, dtype=torch.int64)}, r"align .* \(3, 4\) and \(3, 5\)"),
        ({"corrupted": torch.ones(2, 4, dtype=torch.int64)}, r"align .* \(3, 4\) and \(2, 4\)"),
        ({"lengths": torch.tensor([3, 4])}, r"lengths of shape \(2,\) for 3 pairs"),
        ({"answers": torch.tensor([[10], [12]])}, r"answers of shape \(2, 1\) for 3 pairs"),
        ({"clean": torch.zeros(0, 4).long(), "corrupted": torch.zeros(0, 4).long()}, "no pairs"),
    ],
)
def test_shapes_that_do_not_fit_are_named(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # users run without type checks
    with pytest.raises(TaskError, match=message):
        task(**changes)
