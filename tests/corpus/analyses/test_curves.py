"""Mean and median curves against prompts taken one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from strace_lens.corpus.analyses.curves import COLUMNS, CURVES, mean_curves
from strace_lens.corpus.analyses.resample import log_grid
from tests.corpus.synthetic import synthetic_run

RUN = synthetic_run(prompts=6)


def test_a_curve_is_the_mean_and_the_median_of_the_prompts() -> None:
    found = mean_curves(RUN, resamples=50)
    assert tuple(found) == COLUMNS
    assert found["curve"].unique().tolist() == list(CURVES)
    grid = log_grid(RUN)
    for curve, column in CURVES.items():
        one = found[found["curve"] == curve]
        np.testing.assert_array_equal(one["size"], grid)
        lines = [
            np.interp(np.log10(grid), np.log10(rows["size"]), rows[column])
            for _, rows in RUN.sizes.groupby("prompt")
        ]
        np.testing.assert_allclose(one["mean"], [np.mean(x) for x in zip(*lines, strict=True)])
        np.testing.assert_allclose(one["median"], [np.median(x) for x in zip(*lines, strict=True)])
        assert set(one["prompts"]) == {6}


def test_bands_hold_their_curve_and_come_again() -> None:
    found = mean_curves(RUN, resamples=200, seed=1)
    for name in ("mean", "median"):
        assert (found[f"{name}_low"] <= found[name] + 1e-12).all()
        assert (found[f"{name}_high"] >= found[name] - 1e-12).all()
        assert (found[f"{name}_high"] > found[f"{name}_low"] + 1e-6).any()
    assert found.equals(mean_curves(RUN, resamples=200, seed=1))
    assert not found.equals(mean_curves(RUN, resamples=200, seed=2))


def test_the_ends_of_a_band_are_those_of_a_loop_over_resamples() -> None:
    found = mean_curves(RUN, resamples=100, seed=5).query("curve == 'head'").iloc[0]
    first = [rows["head_error"].iloc[0] for _, rows in RUN.sizes.groupby("prompt")]
    draws = np.random.default_rng(5).integers(6, size=(100, 6))
    means = [np.mean([first[k] for k in draw]) for draw in draws]
    assert found["mean_low"] == pytest.approx(np.quantile(means, 0.025))
    assert found["mean_high"] == pytest.approx(np.quantile(means, 0.975))


def test_a_curve_without_values_is_left_out() -> None:
    run = synthetic_run(prompts=3)
    run.sizes["random_tv"] = math.nan
    run.sizes.loc[run.sizes["prompt"] == 1, "inverse_tv"] = math.nan
    found = mean_curves(run, resamples=20)
    prompts = found.groupby("curve")["prompts"].first()
    left = {"trace": 3, "inverse": 2, "random_inverse": 3, "head": 3, "tail": 3}
    assert prompts.to_dict() == left


def test_one_prompt_has_values_but_no_band() -> None:
    found = mean_curves(synthetic_run(prompts=1), resamples=20)
    assert found[["mean", "median"]].notna().all().all()
    bands = [f"{name}_{end}" for name in ("mean", "median") for end in ("low", "high")]
    assert found[bands].isna().all().all()
