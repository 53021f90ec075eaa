"""The common grid and the bootstrap against loops over prompts and resamples."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from strace_lens.corpus.analyses import resample
from tests.corpus.synthetic import synthetic_run

VALUES = np.random.default_rng(0).random((7, 3))


def test_curves_are_read_off_between_two_measured_sizes() -> None:
    run = synthetic_run(prompts=3)
    grid = resample.log_grid(run, 40)
    assert (grid[0], grid[-1]) == (run.grid[0], run.grid[-1])
    np.testing.assert_allclose(np.diff(np.log(grid)), np.log(grid[1] / grid[0]))
    found = resample.on_grid(run, "tv", grid)
    for p in range(3):
        rows = run.sizes.query("prompt == @p")
        sizes, tv = rows["size"].to_numpy(), rows["tv"].to_numpy()
        for at, size in enumerate(grid[:-1]):
            below = max(k for k in range(len(sizes)) if sizes[k] <= size * (1 + 1e-12))
            share = math.log(size / sizes[below]) / math.log(sizes[below + 1] / sizes[below])
            line = tv[below] + share * (tv[below + 1] - tv[below])
            assert found[p, at] == pytest.approx(line, abs=1e-12)
        assert found[p, -1] == tv[-1]


def test_a_missing_value_is_missing_beside_it() -> None:
    run = synthetic_run(prompts=2)
    run.sizes.loc[run.sizes.index[4], "tv"] = math.nan
    grid = resample.log_grid(run)
    holed = np.isnan(resample.on_grid(run, "tv", grid))
    between = (grid > run.grid[3]) & (grid < run.grid[5])
    np.testing.assert_array_equal(holed[0], between)
    assert not holed[1].any()


def test_one_size_is_no_curve() -> None:
    one = dataclasses.replace(synthetic_run(prompts=2), manifest={"sizes": [0.5]})
    with pytest.raises(ValueError, match="made-up has 1: sweep at more sizes"):
        resample.log_grid(one)


def test_draws_are_places_of_prompts_and_come_again() -> None:
    draws = resample.resamples(5, 400, seed=3)
    assert draws.shape == (400, 5)
    assert np.unique(draws).tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(draws, resample.resamples(5, 400, seed=3))
    assert (draws != resample.resamples(5, 400, seed=4)).any()


@pytest.mark.parametrize("statistic", [np.mean, np.median])
@pytest.mark.parametrize("at_once", [1, 10**9])
def test_an_interval_is_that_of_a_loop(statistic, at_once) -> None:
    draws = resample.resamples(7, 300)
    low, high = resample.interval_of(VALUES, statistic, draws, at_once)
    for column in range(3):
        found = [statistic(VALUES[draw, column]) for draw in draws]
        expected = np.quantile(found, [0.025, 0.975])
        assert [low[column], high[column]] == pytest.approx(expected.tolist())


def test_one_prompt_has_no_interval() -> None:
    low, high = resample.interval_of(VALUES[:1], np.mean, resample.resamples(1, 50))
    assert np.isnan([low, high]).all()


def test_percentiles_leave_out_resamples_without_a_value() -> None:
    found = np.array([[1.0, math.nan], [math.nan, math.nan], [3.0, math.nan]])
    low, high = resample.percentiles(found)
    assert low.tolist() == pytest.approx([1.05, math.nan], nan_ok=True)
    assert high.tolist() == pytest.approx([2.95, math.nan], nan_ok=True)
