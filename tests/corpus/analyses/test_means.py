"""Means with holes against `interval` and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from strace_lens.corpus.analyses.means import means, weights
from strace_lens.measures.intervals import interval

VALUES = np.random.default_rng(0).random((9, 4, 3))


def test_whole_values_have_the_intervals_of_trials() -> None:
    for seed in (0, 5):
        found = means(VALUES, seed)
        low, high = interval(VALUES, seed)
        np.testing.assert_allclose(found.low, low, rtol=1e-12)
        np.testing.assert_allclose(found.high, high, rtol=1e-12)
    np.testing.assert_allclose(found.mean, VALUES.mean(0), rtol=1e-12)
    assert (found.prompts == 9).all()


def test_many_values_are_resampled_as_one_is() -> None:
    wide = np.random.default_rng(1).random((5, 600))
    found = means(wide)
    for column in (0, 300, 599):
        low, high = interval(wide[:, column])
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
        low, high = interval(there)
        ours = [found.mean[i], found.low[i], found.high[i]]
        oracle = [there.mean(), float(low), float(high)]
        assert ours == pytest.approx(oracle, rel=1e-9, abs=1e-9, nan_ok=True)


def test_no_prompts_and_single_values() -> None:
    assert np.isnan(means(np.zeros((0, 2))).mean).all()
    one = means(np.array([0.25, 0.75, np.nan]))
    assert (float(one.mean), int(one.prompts)) == (0.5, 2)
    assert (float(one.low), float(one.high)) == (0.25, 0.75)


def test_equal_values_have_an_interval_of_no_width() -> None:
    found = means(np.full((7, 2), 0.1))
    assert found.low.tolist() == found.high.tolist() == [0.1, 0.1]


def test_weights_are_draws_with_replacement() -> None:
    drawn = weights(5, 4000, 3)
    np.testing.assert_allclose(drawn.sum(1), 1)
    assert set((drawn * 5).round(9).reshape(-1)) <= set(range(6))
    np.testing.assert_allclose(drawn.mean(0), 0.2, atol=0.01)
    np.testing.assert_allclose((drawn == 0).mean(), 0.8**5, atol=0.02)
    np.testing.assert_array_equal(drawn, weights(5, 4000, 3))
