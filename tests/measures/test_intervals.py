"""Bootstrap intervals and mean curves against plain numpy."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from strace_lens.measures.intervals import interval, interval_text, mean_curve

VALUES = np.random.default_rng(0).random((8, 3))


def by_hand(values: np.ndarray) -> tuple[float, float]:
    draws = np.random.default_rng(9).choice(values, (40000, len(values))).mean(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def test_an_interval_is_that_of_a_plain_bootstrap() -> None:
    found = interval(VALUES)
    for i in range(VALUES.shape[1]):
        low, high = by_hand(VALUES[:, i])
        for end, expected in zip(found, (low, high), strict=True):
            assert end[i] == pytest.approx(expected, abs=0.03 * (high - low))
        # The same draws whatever stands beside it.
        alone = [float(end) for end in interval(VALUES[:, i])]
        assert [end[i] for end in found] == pytest.approx(alone, rel=1e-12)


def test_a_seed_gives_the_same_draws() -> None:
    first, again, other = interval(VALUES), interval(VALUES), interval(VALUES, seed=1)
    np.testing.assert_array_equal(first, again)
    assert (first[0] != other[0]).any()


def test_a_missing_value_leaves_its_place_without_an_interval() -> None:
    holed = VALUES.copy()
    holed[2, 1] = math.nan
    low, high = interval(holed)
    assert np.isnan(low).tolist() == np.isnan(high).tolist() == [False, True, False]
    np.testing.assert_array_equal(low[[0, 2]], interval(VALUES)[0][[0, 2]])


@pytest.mark.parametrize("prompts", [0, 1])
def test_fewer_than_two_prompts_give_no_interval(prompts: int) -> None:
    for end in interval(VALUES[:prompts]):
        assert end.shape == (3,)
        assert np.isnan(end).all()


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert [float(end) for end in interval(np.full(4, 0.5))] == [0.5, 0.5]


def test_a_mean_curve_counts_each_prompt_once() -> None:
    rows = pd.DataFrame(
        {
            "prompt": [0, 0, 0, 0, 1, 1],
            "seed": [0, 0, 1, 1, 0, 0],
            "size": [0.1, 0.2] * 3,
            "tv": [0.2, 0.0, 0.4, 0.2, 0.9, 0.5],
        }
    )
    curve = mean_curve(rows, "tv")
    assert curve["size"].tolist() == [0.1, 0.2]
    assert curve["mean"].tolist() == pytest.approx([(0.3 + 0.9) / 2, (0.1 + 0.5) / 2])
    assert curve["low"].tolist() == pytest.approx([0.3, 0.1])  # of two prompts: from one to both
    assert curve["high"].tolist() == pytest.approx([0.9, 0.5])


def test_a_mean_curve_of_nothing_is_empty() -> None:
    rows = pd.DataFrame({"prompt": [0], "size": [0.1], "tv": [math.nan]})
    for empty in (rows, rows.head(0)):
        curve = mean_curve(empty, "tv")
        assert curve.empty
        assert list(curve) == ["size", "mean", "low", "high"]


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((0.12345, 0.1, 0.2), "0.123 [0.1, 0.2]"),
        ((0.5, math.nan, math.nan), "0.5"),
        ((math.nan,) * 3, "-"),
    ],
)
def test_an_interval_as_text(numbers, text) -> None:
    assert interval_text(*numbers) == text
