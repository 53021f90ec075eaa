"""Searches run in step, against each run alone."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from strace_lens.utils.in_step import Search, in_step, run_search, translated

SECRETS = st.lists(st.integers(0, 40), max_size=5)


def bisect(secret: int, width: int) -> Search[tuple[int, int]]:
    """Find a number by asking for the signs of a few at once; none are asked where it is 0."""
    low, high, rounds = 0, secret, 0
    while low < high:
        middle = (low + high) // 2
        found = yield [middle - secret + i for i in range(width)]
        assert found.tolist() == [float(middle - secret + i) for i in range(width)]
        low, rounds = (middle + 1 if found[0] < 0 else low), rounds + 1
    return low, rounds


@given(secrets=SECRETS, widths=st.lists(st.integers(1, 3), min_size=5, max_size=5))
def test_searches_in_step_end_as_alone_in_as_many_rounds_as_the_longest(
    secrets: list[int], widths: list[int]
) -> None:
    rounds: list[int] = []

    def measure(asked: list[int]) -> Tensor:
        rounds.append(len(asked))
        return torch.tensor(asked, dtype=torch.float64)

    searches = [bisect(*one) for one in zip(secrets, widths, strict=False)]
    found = run_search(in_step(searches), measure)
    assert [secret for secret, _ in found] == secrets
    assert len(rounds) == max([own for _, own in found], default=0)
    assert sum(rounds) == sum(n * width for (_, n), width in zip(found, widths, strict=False))


def test_a_translated_search_asks_for_other_things_and_reads_other_answers() -> None:
    asked: list[str] = []

    def measure(questions: list[str]) -> Tensor:
        asked.extend(questions)
        return torch.tensor([-float(question) for question in questions])

    assert run_search(translated(bisect(5, 1), str, torch.neg), measure) == (5, 2)
    assert asked == ["-3", "-1"]
