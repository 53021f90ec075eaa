"""Bootstrap and Wilson's intervals and mean curves against scipy and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import bootstrap

from strace_lens.measures.intervals import (
    draws_of,
    interval,
    interval_of,
    interval_text,
    means,
    percentiles,
    weights,
    wilson,
)

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


VALUES_MEANS = np.random.default_rng(0).random((9, 4, 3))


def scipy_interval(values: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    found = bootstrap(
        (values,), np.mean, axis=0, n_resamples=9999, method="percentile", rng=seed
    ).confidence_interval
    return found.low, found.high


def test_whole_values_have_the_intervals_of_scipy() -> None:
    for seed in (0, 5):
        found = means(VALUES_MEANS, seed)
        ends = scipy_interval(VALUES_MEANS, seed)
        inner = interval(VALUES_MEANS, seed)
        for ours, again, expected in zip((found.low, found.high), inner, ends, strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-12)
            np.testing.assert_allclose(again, expected, rtol=1e-12)
    np.testing.assert_allclose(found.mean, VALUES_MEANS.mean(0), rtol=1e-12)
    assert (found.prompts == 9).all()


def test_many_values_are_resampled_as_one_is() -> None:
    wide = np.random.default_rng(1).random((5, 600))
    found = means(wide)
    for column in (0, 300, 599):
        low, high = scipy_interval(wide[:, column])
        assert found.low[column] == pytest.approx(float(low), rel=1e-12)
        assert found.high[column] == pytest.approx(float(high), rel=1e-12)


hole = st.one_of(st.floats(-10, 10), st.just(float("nan")))


@given(arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 4)), elements=hole))
def test_a_hole_leaves_its_prompt_out_of_its_mean_alone(values) -> None:
    found = means(values)
    for i, column in enumerate(values.T):
        there = column[~np.isnan(column)]
        assert found.prompts[i] == len(there)
        if not len(there):
            assert np.isnan([found.mean[i], found.low[i], found.high[i]]).all()
            continue
        low, high = scipy_interval(there) if len(there) > 1 else (np.nan, np.nan)
        ours = [found.mean[i], found.low[i], found.high[i]]
        oracle = [there.mean(), float(low), float(high)]
        assert ours == pytest.approx(oracle, rel=1e-9, abs=1e-9, nan_ok=True)


def test_no_prompts_and_single_values() -> None:
    assert np.isnan(means(np.zeros((0, 2))).mean).all()
    one = means(np.array([0.25, 0.75, np.nan]))
    assert (float(one.mean), int(one.prompts)) == (0.5, 2)
    assert (float(one.low), float(one.high)) == (0.25, 0.75)


def test_equal_values_have_a_mean_of_no_width() -> None:
    found = means(np.full((7, 2), 0.1))
    assert found.low.tolist() == found.high.tolist() == [0.1, 0.1]


def test_weights_are_draws_with_replacement() -> None:
    drawn = weights(5, 4000, 3)
    np.testing.assert_allclose(drawn.sum(1), 1)
    assert set((drawn * 5).round(9).reshape(-1)) <= set(range(6))
    np.testing.assert_allclose(drawn.mean(0), 0.2, atol=0.01)
    np.testing.assert_allclose((drawn == 0).mean(), 0.8**5, atol=0.02)
    np.testing.assert_array_equal(drawn, weights(5, 4000, 3))


DRAWN = np.random.default_rng(0).random((7, 3))


def test_draws_are_places_of_prompts_and_come_again() -> None:
    draws = draws_of(5, 400, seed=3)
    assert draws.shape == (400, 5)
    assert np.unique(draws).tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(draws, draws_of(5, 400, seed=3))
    assert (draws != draws_of(5, 400, seed=4)).any()


@pytest.mark.parametrize("statistic", [np.mean, np.median])
@pytest.mark.parametrize("at_once", [1, 10**9])
def test_an_interval_is_that_of_a_loop(statistic, at_once) -> None:
    draws = draws_of(7, 300)
    low, high = interval_of(DRAWN, statistic, draws, at_once)
    for column in range(3):
        found = [statistic(DRAWN[draw, column]) for draw in draws]
        expected = np.quantile(found, [0.025, 0.975])
        assert [low[column], high[column]] == pytest.approx(expected.tolist())


def test_one_prompt_has_no_interval() -> None:
    low, high = interval_of(DRAWN[:1], np.mean, draws_of(1, 50))
    assert np.isnan([low, high]).all()


def test_percentiles_leave_out_resamples_without_a_value() -> None:
    found = np.array([[1.0, math.nan], [math.nan, math.nan], [3.0, math.nan]])
    low, high = percentiles(found)
    assert low.tolist() == pytest.approx([1.05, math.nan], nan_ok=True)
    assert high.tolist() == pytest.approx([2.95, math.nan], nan_ok=True)


def test_wilsons_interval_has_a_width_at_the_ends() -> None:
    z = 1.959963984540054
    for count, prompts in ((0, 5), (3, 8), (8, 8)):
        share, scale = count / prompts, 1 + z**2 / prompts
        middle = (share + z**2 / (2 * prompts)) / scale
        half = z / scale * math.sqrt(share * (1 - share) / prompts + (z / (2 * prompts)) ** 2)
        assert wilson(count, prompts) == pytest.approx((middle - half, middle + half), abs=1e-12)
    assert np.isnan(wilson(1, 1)).all()
