"""Verdicts from intervals: a range, three answers, and no answer from too few prompts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strace_lens.corpus.analyses.claim_rules import (
    CANNOT_TELL,
    CLAIMS,
    HOLDS,
    HOLDS_NOT,
    LEAST_PROMPTS,
    STATISTICS,
    VERDICTS,
    Statistic,
    claim_verdict,
)

ABOVE = Statistic(1, "any", within=(0.5, math.inf))
BELOW = Statistic(1, "any", within=(-math.inf, 0.0))
WITHIN = Statistic(1, "any", within=(0.001, 0.1))
AT_MOST = Statistic(1, "any", within=(0.0, 0.01))


@pytest.mark.parametrize(
    ("asked", "low", "high", "expected"),
    [
        (ABOVE, 0.51, 1.0, HOLDS),
        (ABOVE, 0.5, 1.0, CANNOT_TELL),
        (ABOVE, 0.1, 0.49, HOLDS_NOT),
        (ABOVE, 0.1, 0.6, CANNOT_TELL),
        (BELOW, -0.2, -0.1, HOLDS),
        (BELOW, -0.2, 0.0, CANNOT_TELL),
        (BELOW, 0.0, 0.0, CANNOT_TELL),
        (BELOW, 0.1, 0.2, HOLDS_NOT),
        (WITHIN, 0.001, 0.1, HOLDS),
        (WITHIN, 0.0001, 0.0009, HOLDS_NOT),
        (WITHIN, 0.2, 0.3, HOLDS_NOT),
        (WITHIN, 0.05, 0.2, CANNOT_TELL),
        (WITHIN, 0.0001, 0.5, CANNOT_TELL),
        (AT_MOST, 0.001, 0.01, HOLDS),
        (AT_MOST, 0.011, 0.4, HOLDS_NOT),
        (AT_MOST, 0.005, 0.02, CANNOT_TELL),
    ],
)
def test_an_interval_inside_outside_or_across(asked, low, high, expected) -> None:
    assert asked.verdict(low, high, 100) == expected
    assert asked.verdict(low, high, LEAST_PROMPTS) == expected
    assert asked.verdict(low, high, LEAST_PROMPTS - 1) == CANNOT_TELL


@pytest.mark.parametrize("name", list(STATISTICS))
def test_without_an_interval_nothing_can_be_told(name: str) -> None:
    assert STATISTICS[name].verdict(math.nan, math.nan, 100) == CANNOT_TELL


@given(st.floats(-2, 2), st.floats(0, 2), st.floats(0, 1), st.sampled_from(sorted(STATISTICS)))
def test_a_wider_interval_never_says_more(low, width, wider, name) -> None:
    asked = STATISTICS[name]
    narrow = asked.verdict(low, low + width, 50)
    wide = asked.verdict(low - wider, low + width + wider, 50)
    assert wide in (narrow, CANNOT_TELL)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([HOLDS], HOLDS),
        ([HOLDS, HOLDS], HOLDS),
        ([HOLDS, HOLDS_NOT], HOLDS_NOT),
        ([CANNOT_TELL, HOLDS_NOT], HOLDS_NOT),
        ([CANNOT_TELL, HOLDS], CANNOT_TELL),
        ([], CANNOT_TELL),
    ],
)
def test_a_claim_holds_if_all_its_parts_do(parts, expected) -> None:
    assert claim_verdict(parts) == expected
    assert claim_verdict(reversed(parts)) == expected
    assert expected in VERDICTS


def test_every_claim_is_decided_by_a_statistic_with_one_rule() -> None:
    assert {asked.claim for asked in STATISTICS.values() if asked.decides} == set(CLAIMS)
    assert [asked.claim for asked in STATISTICS.values()] == sorted(
        asked.claim for asked in STATISTICS.values()
    )
    for asked in STATISTICS.values():
        least, most = asked.within
        assert least < most
        assert math.isfinite(least) or math.isfinite(most)
        assert asked.rule.startswith("holds if the interval lies ")


def test_rules_in_words_name_their_limits() -> None:
    assert ABOVE.rule == "holds if the interval lies above 0.5, does not hold if it lies below"
    assert BELOW.rule == "holds if the interval lies below 0, does not hold if it lies above"
    assert "from 0.001 to 0.1, does not hold if it lies outside" in WITHIN.rule
    assert "at or below 0.01, does not hold if it lies above" in AT_MOST.rule
