"""Metrics of a task: two tokens worked by hand, slow formulas, gradients by finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from strace_lens.circuits.metrics import METRICS, NEEDS, Reference, answers_win

LOG3 = math.log(3.0)


def rows(*values: list[float]) -> Float[Tensor, "row 1 vocab"]:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def reference(
    clean: Tensor, corrupted: Tensor, answers: list[list[int]], incorrect: list[list[int]]
) -> Reference:
    return Reference(clean, corrupted, torch.tensor(answers), torch.tensor(incorrect))


# Two tokens: probabilities 1/4 and 3/4, then the other way round, then even.
TWO = rows([0.0, LOG3], [LOG3, 0.0], [2.0, 2.0])
CLEAN, CORRUPTED = rows(*[[0.0, LOG3]] * 3), rows(*[[LOG3, 0.0]] * 3)
BY_HAND = {
    "logit_difference": [LOG3, -LOG3, 0.0],
    "probability_difference": [0.5, -0.5, 0.0],
    # 1/4 log(1/3) + 3/4 log 3, and 1/4 log(1/2) + 3/4 log(3/2)
    "kl_divergence": [0.0, -LOG3 / 2, -(0.25 * math.log(0.5) + 0.75 * math.log(1.5))],
    "answer_rank": [0.0, -1.0, -1.0],  # token 0 comes first in the tie
    # clean - corrupted = (-LOG3, LOG3); the last row less corrupted is (2 - LOG3, 2)
    "recovered": [1.0, 0.0, 0.5],
}


@pytest.mark.parametrize("name", METRICS)
def test_two_tokens_by_hand(name: str) -> None:
    of = reference(CLEAN, CORRUPTED, [[1]] * 3, [[0]] * 3)
    found = METRICS[name](TWO, of)
    torch.testing.assert_close(found, torch.tensor(BY_HAND[name], dtype=torch.float64))
    assert METRICS[name](TWO.float(), of).shape == (3,)


def test_the_dicts_name_the_same_metrics() -> None:
    assert set(NEEDS) == set(METRICS)


@given(
    seed=st.integers(0, 2**16),
    answers=st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True),
    incorrect=st.lists(st.integers(5, 9), min_size=1, max_size=4, unique=True),
)
def test_sets_of_answers_against_loops(seed: int, answers: list[int], incorrect: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Whole numbers, so that logits tie.
    logits = torch.randint(-2, 3, (2, 2, 10), generator=generator).double()
    pad = [-1] * 2
    of = reference(logits, logits, [[*answers, *pad], [*pad, *answers]], [incorrect, incorrect])
    for row in range(2):
        last = logits[row, -1].tolist()
        mean = sum(last[i] for i in answers) / len(answers)
        other = sum(last[i] for i in incorrect) / len(incorrect)
        assert METRICS["logit_difference"](logits, of)[row] == pytest.approx(mean - other)
        total = sum(map(math.exp, last))
        mass = sum(math.exp(last[i]) for i in answers) - sum(math.exp(last[i]) for i in incorrect)
        assert METRICS["probability_difference"](logits, of)[row] == pytest.approx(mass / total)
        order = sorted(range(10), key=lambda i: (-last[i], i))
        rank = min(order.index(i) for i in answers)
        assert METRICS["answer_rank"](logits, of)[row] == -rank
        assert answers_win(logits, of)[row] == (
            max(last[i] for i in answers) > max(last[i] for i in incorrect)
        )
        alone = Reference(logits, logits, of.answers, torch.full((2, 1), -1))
        assert answers_win(logits, alone)[row] == (rank == 0)


@pytest.mark.parametrize("name", [name for name in METRICS if name != "answer_rank"])
def test_gradients_by_finite_differences(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    clean, corrupted, logits = torch.randn(3, 2, 2, 6, generator=generator, dtype=torch.float64)
    of = reference(clean, corrupted, [[0, 1], [2, -1]], [[3, 4], [5, 0]])
    assert torch.autograd.gradcheck(
        lambda x: METRICS[name](x, of), logits.requires_grad_(), eps=1e-6, atol=1e-8
    )


def test_the_rank_has_no_gradient() -> None:
    of = reference(CLEAN, CORRUPTED, [[1]] * 3, [[0]] * 3)
    assert not METRICS["answer_rank"](TWO.clone().requires_grad_(), of).requires_grad


def test_every_position_counts_where_the_whole_output_is_compared() -> None:
    generator = torch.Generator().manual_seed(1)
    clean, corrupted, logits = torch.randn(3, 2, 3, 5, generator=generator, dtype=torch.float64)
    of = reference(clean, corrupted, [[0]] * 2, [[1]] * 2)
    for row in range(2):
        p, q = clean[row].softmax(-1), logits[row].softmax(-1)
        kl = sum(float((p[i] * (p[i] / q[i]).log()).sum()) for i in range(3)) / 3
        assert METRICS["kl_divergence"](logits, of)[row] == pytest.approx(-kl)
        along, moved = (clean - corrupted)[row].flatten(), (logits - corrupted)[row].flatten()
        share = float(along @ moved / (along @ along))
        assert METRICS["recovered"](logits, of)[row] == pytest.approx(share)
    halfway = METRICS["recovered"](0.3 * clean + 0.7 * corrupted, of)
    torch.testing.assert_close(halfway, torch.full((2,), 0.3, dtype=torch.float64))


def test_half_precision_is_widened() -> None:
    logits = torch.full((1, 1, 4096), 1.0, dtype=torch.bfloat16)  # 4096 small summands
    of = Reference(logits, logits, torch.arange(2048)[None], torch.arange(2048, 4096)[None, :1024])
    found = METRICS["probability_difference"](logits, of)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "answers", "incorrect", "message"),
    [
        ("logit_difference", [[0], [-1]], [[1], [1]], "row 1 names no answer"),
        ("logit_difference", [[0], [0]], [[-1], [1]], "row 0 names no wrong answer"),
        ("probability_difference", [[0], [0]], [[1], [-1]], "row 1 names no wrong answer"),
        ("answer_rank", [[-1], [0]], [[1], [1]], "row 0 names no answer"),
        ("recovered", [[0], [0]], [[1], [1]], "row 1 has equal clean and corrupted outputs"),
    ],
)
def test_what_is_not_defined_is_refused(
    name: str, answers: list[list[int]], incorrect: list[list[int]], message: str
) -> None:
    clean, corrupted = rows([0.0, 1.0], [0.0, 1.0]), rows([1.0, 0.0], [0.0, 1.0])
    with pytest.raises(ValueError, match=message):
        METRICS[name](clean, reference(clean, corrupted, answers, incorrect))
