"""Boundaries on curves whose breaks are known, and their intervals against loops."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from strace_lens.corpus.analyses.boundaries import (
    QUANTITIES,
    corpus_boundaries,
    prompt_boundaries,
)
from strace_lens.corpus.run_folder import Run
from strace_lens.density.change_points import change_points
from tests.corpus.synthetic import synthetic_run

LOG = np.linspace(-5, 0, 27)


def run_of(*curves: list[tuple[float, float]], noise: float = 0.0) -> Run:
    """A run whose prompts have the given polylines (log10 s, TV) for their curves."""
    run = synthetic_run(prompts=len(curves), sizes=(10**LOG).tolist())
    lines = [np.interp(LOG, *zip(*points, strict=True)) for points in curves]
    tv = np.concatenate(lines)
    run.sizes["tv"] = tv + np.random.default_rng(0).normal(0, noise, len(tv)) if noise else tv
    return run


def three(start: float, stop: float) -> list[tuple[float, float]]:
    return [(-5, 1.0), (start, 0.95), (stop, 0.2), (0, 0.0)]


def row(table: pd.DataFrame, quantity: str) -> pd.Series:
    return table.set_index("quantity").loc[quantity]


def test_the_boundaries_of_alike_prompts_are_where_they_were_put() -> None:
    table = corpus_boundaries(run_of(*[three(-3, -2)] * 5, noise=0.01), resamples=40)
    assert tuple(table["quantity"]) == QUANTITIES
    assert row(table, "phases")["value"] == 3
    for name, at in (("construction_start", -3), ("construction_stop", -2)):
        found = np.log10(row(table, name)[["value", "low", "high"]].astype(float))
        assert found.tolist() == pytest.approx([at] * 3, abs=0.2)
        assert row(table, name)["found"] == 1
    assert row(table, "tv_at_start")["value"] == pytest.approx(0.95, abs=0.08)
    assert row(table, "tv_at_stop")["value"] == pytest.approx(0.2, abs=0.08)
    assert row(table, "construction_pace")["value"] == pytest.approx(0.75, abs=0.1)
    assert row(table, "refinement_pace")["value"] == pytest.approx(0.1, abs=0.03)


def test_the_interval_is_that_of_a_loop_over_drawn_prompts() -> None:
    run = run_of(three(-4, -2), three(-3, -2), three(-3, -1), three(-2, -1))
    curves = [rows["tv"].to_numpy() for _, rows in run.sizes.groupby("prompt")]
    table = corpus_boundaries(run, seed=7, resamples=12)
    stops = []
    for draw in np.random.default_rng(7).integers(4, size=(12, 4)):
        phases = change_points(run.grid, np.mean([curves[k] for k in draw], axis=0))
        stops += [p.start for p in phases if p.name == "refinement"]
    found = row(table, "construction_stop")
    assert [found["low"], found["high"]] == pytest.approx(np.quantile(stops, [0.025, 0.975]))
    assert found["found"] == len(stops) / 12
    assert table.equals(corpus_boundaries(run, seed=7, resamples=12))


def test_a_straight_fall_has_no_boundary() -> None:
    run = run_of(*[[(-5, 1.0), (0, 0.0)]] * 3)
    table = corpus_boundaries(run, resamples=10)
    assert row(table, "phases")[["value", "found"]].tolist() == [1, 0]
    for name in ("construction_start", "construction_stop", "tv_at_stop", "refinement_pace"):
        assert row(table, name)[["value", "low", "high"]].isna().all()
        assert row(table, name)["found"] == 0
    assert row(table, "construction_pace")["value"] == pytest.approx(0.2)
    by_prompt = prompt_boundaries(run, resamples=5)
    assert by_prompt["phases"].tolist() == [1, 1, 1]
    assert by_prompt[["construction_start", "construction_stop"]].isna().all().all()


def test_some_resamples_may_lack_a_phase() -> None:
    straight = [(-5.0, 1.0), (0.0, 0.0)]
    bent = [(-5.0, 1.0), (-3.0, 0.1), (0.0, 0.0)]
    found = row(corpus_boundaries(run_of(bent, straight), resamples=60), "construction_stop")
    assert 0 < found["found"] < 1
    assert found["low"] == pytest.approx(1e-3, rel=0.3)


def test_without_a_plateau_construction_has_no_start() -> None:
    one = prompt_boundaries(run_of([(-5, 1.0), (-3, 0.2), (0, 0.0)]), resamples=10).iloc[0]
    assert one["phases"] == 2
    assert math.isnan(one["construction_start"])
    assert np.log10(one["construction_stop"]) == pytest.approx(-3, abs=0.15)


def test_a_curve_that_does_not_fall_has_no_phase() -> None:
    table = prompt_boundaries(run_of([(-5, 0.9), (0, 0.9)], three(-3, -2)), resamples=10)
    assert table["prompt"].tolist() == [0, 1]
    assert table["phases"].tolist() == [0, 3]
    assert table.iloc[0].drop(["prompt", "phases"]).isna().all()
    assert table.iloc[1].notna().all()


def test_the_interval_of_a_prompt_holds_where_the_break_is() -> None:
    table = prompt_boundaries(run_of(*[three(-3, -2)] * 6, noise=0.02), resamples=60)
    for name, at in (("construction_start", 1e-3), ("construction_stop", 1e-2)):
        low, high = table[f"{name}_low"], table[f"{name}_high"]
        assert (low < high).all()
        assert ((low <= table[name]) & (table[name] <= high)).mean() > 0.6
        assert ((low < at * 10**0.1) & (high > at * 10**-0.1)).mean() > 0.6
        assert table[f"{name}_found"].between(0.5, 1).all()
    wide = prompt_boundaries(run_of(*[three(-3, -2)] * 6, noise=0.05), resamples=60)
    narrow_width, wide_width = (
        np.log10(t["construction_stop_high"] / t["construction_stop_low"]).mean()
        for t in (table, wide)
    )
    assert narrow_width < wide_width


def test_one_prompt_has_values_but_no_interval() -> None:
    table = corpus_boundaries(run_of(three(-3, -2)))
    assert table["value"].notna().all()
    assert table[["low", "high", "found"]].isna().all().all()
    assert prompt_boundaries(run_of(three(-3, -2)), resamples=0)["construction_stop_low"].isna()[0]


def test_three_sizes_are_too_few_to_count_phases() -> None:
    run = synthetic_run(prompts=3, sizes=[0.01, 0.1, 1.0])
    assert corpus_boundaries(run, resamples=5)[["value", "low", "high"]].isna().all().all()
    assert prompt_boundaries(run, resamples=5)["phases"].isna().all()
