"""Mean curves and TV to shallow statistics against prompts taken one by one."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from strace_lens.corpus.analyses.curves import (
    CURVES,
    TARGETS,
    log_grid,
    mean_curves,
    nearest,
    on_grid,
    shallow,
    shallow_full_model,
)
from strace_lens.corpus.run_folder import Run
from strace_lens.measures.intervals import interval
from tests.corpus.synthetic import synthetic_run

RUN = synthetic_run(prompts=6)


def test_a_curve_is_the_mean_and_the_median_of_the_prompts() -> None:
    found = mean_curves(RUN, resamples=50)
    middles = [f"{name}{end}" for name in ("mean", "median") for end in ("", "_low", "_high")]
    assert list(found) == ["curve", "size", *middles, "prompts"]
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


def test_curves_are_read_off_between_two_measured_sizes() -> None:
    run = synthetic_run(prompts=3)
    grid = log_grid(run, 40)
    assert (grid[0], grid[-1]) == (run.grid[0], run.grid[-1])
    np.testing.assert_allclose(np.diff(np.log(grid)), np.log(grid[1] / grid[0]))
    found = on_grid(run, "tv", grid)
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
    grid = log_grid(run)
    holed = np.isnan(on_grid(run, "tv", grid))
    between = (grid > run.grid[3]) & (grid < run.grid[5])
    np.testing.assert_array_equal(holed[0], between)
    assert not holed[1].any()


def test_one_size_is_no_curve() -> None:
    one = dataclasses.replace(synthetic_run(prompts=2), manifest={"sizes": [0.5]})
    with pytest.raises(ValueError, match="made-up has 1: sweep at more sizes"):
        log_grid(one)


RUN_SHALLOW = synthetic_run(prompts=6)


def test_means_over_prompts() -> None:
    table = shallow(RUN_SHALLOW).set_index(["target", "size"])
    for target, column in TARGETS.items():
        for size in RUN_SHALLOW.grid:
            values = RUN_SHALLOW.sizes.loc[RUN_SHALLOW.sizes["size"] == size, column]
            row = table.loc[(target, size)]
            assert row["tv"] == pytest.approx(values.mean())
            assert row["low"] - 1e-12 <= row["tv"] <= row["high"] + 1e-12
            assert row["prompts"] == 6
    full = shallow_full_model(RUN_SHALLOW).set_index("target")
    assert list(full.index) == ["unigram", "no_context"]
    assert full.loc["unigram", "tv"] == pytest.approx(RUN_SHALLOW.prompts["unigram_tv"].mean())


def test_how_often_the_trace_is_nearer_than_the_model() -> None:
    table = nearest(RUN_SHALLOW).set_index(["size", "target"])
    for size in RUN_SHALLOW.grid:
        rows = RUN_SHALLOW.sizes[RUN_SHALLOW.sizes["size"] == size].reset_index(drop=True)
        for target in ("unigram", "no_context"):
            own = RUN_SHALLOW.prompts[f"{target}_tv"]
            truth = float((rows[f"{target}_tv"] < own).mean())
            assert table.loc[(size, target), "nearer"] == pytest.approx(truth)
        distances = rows[list(TARGETS.values())].to_numpy()
        for place, target in enumerate(TARGETS):
            truth = float(np.mean(distances.argmin(1) == place))
            assert table.loc[(size, target), "nearest"] == pytest.approx(truth)


def test_an_unknown_target_is_left_out() -> None:
    unknown = replace(
        RUN_SHALLOW,
        sizes=RUN_SHALLOW.sizes.assign(no_context_tv=np.nan),
        prompts=RUN_SHALLOW.prompts.assign(no_context_tv=np.nan),
    )
    assert set(shallow(unknown)["target"]) == {"full", "unigram"}
    assert set(nearest(unknown)["target"]) == {"full", "unigram"}
    assert shallow_full_model(unknown)["target"].tolist() == ["unigram"]


def test_one_prompt_has_no_interval() -> None:
    alone = synthetic_run(prompts=1)
    assert shallow(alone)["low"].isna().all()
    assert nearest(alone)["nearest_low"].isna().all()
    assert shallow(alone)["tv"].notna().all()


def holed(prompts: int = 9) -> Run:
    """A run in which each target is at times the nearest, and two prompts lack unigrams."""
    run = synthetic_run(prompts=prompts, sizes=(0.01, 0.1, 0.5, 1.0))
    draw = np.random.default_rng(2)
    columns = list(TARGETS.values())
    sizes = run.sizes.assign(**{c: draw.random(len(run.sizes)) for c in columns})
    own = run.prompts.assign(**{c: draw.random(prompts) for c in columns[1:]})
    return without(replace(run, sizes=sizes, prompts=own), "unigram_tv", [1, 4])


def without(run: Run, column: str, prompts: list[int]) -> Run:
    sizes, own = run.sizes.copy(), run.prompts.copy()
    sizes.loc[sizes["prompt"].isin(prompts), column] = math.nan
    own.loc[own["prompt"].isin(prompts), column] = math.nan
    return replace(run, sizes=sizes, prompts=own)


def wilson(count: int, prompts: int) -> list[float]:
    z, share = norm.ppf(0.975), count / prompts
    middle = share + z * z / (2 * prompts)
    half = z * math.sqrt(share * (1 - share) / prompts + z * z / (4 * prompts**2))
    return [end / (1 + z * z / prompts) for end in (middle - half, middle + half)]


def test_prompts_without_a_target_are_left_out_of_its_mean() -> None:
    run = holed()
    for row in shallow(run).to_dict("records"):
        here = run.sizes[run.sizes["size"] == row["size"]][TARGETS[row["target"]]]
        values = here.dropna().to_numpy()
        expected = [values.mean(), *(float(end) for end in interval(values))]
        assert [row["tv"], row["low"], row["high"]] == pytest.approx(expected)
        assert row["prompts"] == len(values) == (7 if row["target"] == "unigram" else 9)
    assert shallow_full_model(run)["prompts"].tolist() == [7, 9]


def test_only_prompts_with_all_targets_are_compared() -> None:
    run = holed()
    own, whole = run.prompts.set_index("prompt"), [0, 2, 3, 5, 6, 7, 8]
    for row in nearest(run).to_dict("records"):
        here = run.sizes[run.sizes["size"] == row["size"]].set_index("prompt")
        column = TARGETS[row["target"]]
        first = sum(here[column][p] == min(here[c][p] for c in TARGETS.values()) for p in whole)
        assert row["prompts"] == 7
        assert row["nearest"] == pytest.approx(first / 7)
        assert [row["nearest_low"], row["nearest_high"]] == pytest.approx(wilson(first, 7))
        if row["target"] == "full":
            assert np.isnan([row["nearer"], row["nearer_low"], row["nearer_high"]]).all()
            continue
        nearer = sum(here[column][p] < own[column][p] for p in whole)
        assert row["nearer"] == pytest.approx(nearer / 7)
        assert [row["nearer_low"], row["nearer_high"]] == pytest.approx(wilson(nearer, 7))


def test_a_prompt_whose_full_model_is_not_known_is_not_compared() -> None:
    run = holed()
    own = run.prompts.assign(unigram_tv=run.prompts["unigram_tv"].where(run.prompts["prompt"] != 0))
    assert (nearest(replace(run, prompts=own))["prompts"] == 6).all()


def test_targets_that_no_prompt_has_together_leave_none_to_compare() -> None:
    run = without(without(holed(), "unigram_tv", [0, 1, 2, 3, 4]), "no_context_tv", [5, 6, 7, 8])
    table = nearest(run)
    assert (table["prompts"] == 0).all()
    assert table[["nearer", "nearest", "nearest_low"]].isna().all(axis=None)


def test_no_shallow_target_leaves_the_full_model_alone() -> None:
    every = list(range(9))
    bare = without(without(holed(), "unigram_tv", every), "no_context_tv", every)
    assert shallow(bare)["target"].unique().tolist() == ["full"]
    assert list(shallow_full_model(bare)) == ["target", "tv", "low", "high", "prompts"]
    assert shallow_full_model(bare).empty
