"""Boundaries and sizes needed, against polylines and plain loops."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from strace_lens.corpus.analyses.layer_phases import head_and_tail
from strace_lens.corpus.analyses.sizes import (
    ERRORS,
    QUANTITIES,
    corpus_boundaries,
    per_prompt,
    prompt_boundaries,
    size_needed,
)
from strace_lens.corpus.read import read_corpus
from strace_lens.corpus.run_folder import Run
from strace_lens.corpus.setting import Options
from strace_lens.corpus.sweep import sweep
from strace_lens.density.change_points import change_points
from strace_lens.measures.distributions import NUCLEI
from strace_lens.utils.choices import BUILTIN
from tests.corpus.synthetic import synthetic_run
from tests.real import smollm2

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


@pytest.mark.extended
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


def needed(run: Run, holds, rule: str) -> list[float]:
    """The size from which a row of each prompt and all later ones hold, or the first whose row
    holds; infinite if none."""
    found = []
    for prompt, rows in run.sizes.groupby("prompt"):
        mass = run.prompts.set_index("prompt").loc[prompt, "head_mass"]
        flags = [bool(holds(row, mass)) for _, row in rows.iterrows()]
        sizes = rows["size"].tolist()
        enough = flags if rule == "first" else [all(flags[k:]) for k in range(len(flags))]
        found.append(next((s for s, yes in zip(sizes, enough, strict=True) if yes), math.inf))
    return sorted(found)


BOTH = {
    **{("nucleus", p): lambda row, _, p=p: row["nucleus"] >= p for p in NUCLEI},
    ("top1", None): lambda row, _: row["top1"],
}
ASKED = {
    **{(*key, rule): holds for key, holds in BOTH.items() for rule in ("stable", "first")},
    ("head_share", 0.1, "stable"): lambda row, mass: row["head_error"] < 0.1 * mass,
    ("tail_share", 0.1, "stable"): lambda row, mass: row["tail_error"] < 0.1 * (1 - mass),
    **{
        (part, e, "stable"): lambda row, _, part=part, e=e: row[part] < e
        for part in ("head_error", "tail_error")
        for e in ERRORS
    },
}


@pytest.fixture(scope="module")
def run() -> Run:
    """Nine prompts whose curves jump about, so that what holds once need not hold later."""
    made = synthetic_run(prompts=9)
    noise = np.random.default_rng(0).uniform(0.5, 2, len(made.sizes))
    made.sizes["head_error"] *= noise
    made.sizes["tail_error"] *= noise
    made.sizes["top1"] = made.sizes["tv"] * noise < 0.3
    made.sizes["nucleus"] = np.random.default_rng(1).choice([0, *NUCLEI], len(made.sizes))
    return made


def test_each_row_is_what_a_search_finds(run: Run) -> None:
    table = size_needed(run)
    assert len(table) == len(ASKED)
    for (what, level, rule), holds in ASKED.items():
        rows = table[(table["what"] == what) & (table["rule"] == rule)]
        (row,) = (rows if level is None else rows[rows["level"] == level]).to_dict("records")
        expected = needed(run, holds, rule)
        assert row["never"] == sum(map(math.isinf, expected))
        assert row["prompts"] == 9
        quartiles = [expected[2], expected[4], expected[6]]  # 3, 5 and 7 of 9 prompts have it
        shown = [math.nan if math.isinf(q) else q for q in quartiles]
        assert [row["q1"], row["median"], row["q3"]] == pytest.approx(shown, nan_ok=True)
    assert table[table["what"] == "top1"]["level"].isna().all()
    for _, own in table[table["what"] == "nucleus"].groupby("rule"):
        assert own["never"].gt(0).any()
    assert table["never"].eq(0).any()
    held, first = (table[table["rule"] == rule].head(len(BOTH)) for rule in ("stable", "first"))
    assert (first["median"].to_numpy() <= held["median"].fillna(math.inf).to_numpy()).all()


@pytest.mark.parametrize(("never", "median_known"), [(0, True), (4, True), (5, False), (8, False)])
def test_the_median_is_known_if_half_of_the_prompts_get_there(never, median_known) -> None:
    run = synthetic_run(prompts=8)
    run.sizes["top1"] = run.sizes["size"].ge(0.2) & run.sizes["prompt"].ge(never)
    row = size_needed(run).set_index(["what", "rule"]).loc[("top1", "stable")]
    assert row["never"] == never
    assert row["median"] == pytest.approx(0.2 if median_known else math.nan, nan_ok=True)


def test_one_prompt_needs_what_it_needs() -> None:
    table = size_needed(synthetic_run(prompts=1))
    known = table[table["never"] == 0]
    assert len(known) > 10
    for name in ("q1", "q3"):
        pd.testing.assert_series_equal(known[name], known["median"], check_names=False)


def test_a_first_size_that_is_lost_again_counts_by_its_rule_alone() -> None:
    run = synthetic_run(prompts=4)
    lucky, lost = run.grid[2], run.sizes["prompt"] == 3
    run.sizes["top1"] = run.sizes["size"].eq(lucky) | run.sizes["size"].ge(0.4)
    run.sizes.loc[lost, "top1"] = False
    rows = size_needed(run).set_index(["what", "rule"])
    assert rows.loc[("top1", "stable"), "median"] == 0.4
    assert rows.loc[("top1", "first"), "median"] == lucky
    # The prompt that never has it counts as infinite; the authors' code leaves it out.
    assert rows.loc[("top1", "first"), "never"] == rows.loc[("top1", "stable"), "never"] == 1
    assert rows.loc[("top1", "first"), "q3"] == lucky
    run.sizes.loc[run.sizes["prompt"] == 2, "top1"] = False
    assert math.isnan(size_needed(run).set_index(["what", "rule"]).loc[("top1", "first"), "q3"])


STUDY = Path(__file__).parents[3] / "docs" / "phases"
RERUN = (27, 42, 52, 78)
"""Short prompts of four kinds; in two of them the tail is restored later than the head."""


def first_from_which(run: Run, prompt: int, holds: np.ndarray) -> float:
    sizes = run.sizes[run.sizes["prompt"] == prompt]["size"].tolist()
    return next((s for i, s in enumerate(sizes) if holds[i:].all()), np.nan)


def test_a_row_is_what_the_run_holds_of_its_prompt() -> None:
    run = synthetic_run(prompts=7)
    run.sizes.loc[run.sizes["prompt"] == 3, "top1"] = False
    run.sizes.loc[run.sizes.index[run.sizes["prompt"] == 1][:3], "top1"] = [False, True, False]
    table = per_prompt(run)
    given = ("prompt", "sha256", "tokens", "edges", "density", "auc_paper")
    for name in (*given, "entropy", "head_mass", "loss"):
        pd.testing.assert_series_equal(table[name], run.prompts[name])
    for number, row in table.iterrows():
        rows, mass = run.sizes[run.sizes["prompt"] == number], row["head_mass"]
        for name, holds in {
            "top1_size": rows["top1"],
            "nucleus_size": rows["nucleus"] >= 0.5,
            "head_size": rows["head_error"] < 0.1 * mass,
            "tail_size": rows["tail_error"] < 0.1 * (1 - mass),
        }.items():
            expected = first_from_which(run, int(str(number)), holds.to_numpy())
            np.testing.assert_equal(row[name], expected)
            if name in ("top1_size", "nucleus_size"):
                first = next((s for s, yes in zip(rows["size"], holds, strict=True) if yes), np.nan)
                np.testing.assert_equal(row[name.replace("_size", "_first")], first)
    assert table["top1_size"].isna().tolist() == [n == 3 for n in range(7)]


@pytest.fixture(scope="module", params=[(), ("attention",)], ids=["greedy", "attention-kept"])
def rerun(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Prompts of the study swept again, one after another: four, or two with attention kept."""
    keep = request.param
    prompts = read_corpus(BUILTIN)
    options = Options(keep=keep, controls="none", hidden=False)
    folder = tmp_path_factory.mktemp("runs") / f"greedy{'-keep-attention' * bool(keep)}"
    chosen = [prompts[number] for number in (RERUN[:2] if keep else RERUN)]
    return sweep(smollm2(), chosen, folder, options)


def published(name: str, rerun: Run) -> pd.DataFrame:
    table = pd.read_csv(STUDY / f"{name}.csv")
    table = table[table["run"] == rerun.name].drop(columns="run").set_index("prompt")
    return table.loc[list(RERUN[: len(rerun.prompts)])].reset_index(drop=True)


@pytest.mark.extended
def test_the_published_head_and_tail_are_those_of_a_rerun(rerun: Run) -> None:
    table = published("head_and_tail", rerun)
    found = head_and_tail(rerun).drop(columns="prompt")
    np.testing.assert_allclose(found[list(table)].to_numpy(float), table.to_numpy(float), rtol=1e-3)


@pytest.mark.extended
def test_the_published_scalars_are_those_of_a_rerun(rerun: Run) -> None:
    table = published("prompts", rerun)
    found = per_prompt(rerun).drop(columns="prompt")
    assert table["sha256"].tolist() == found["sha256"].tolist()
    numbers = [name for name in table if name != "sha256"]
    np.testing.assert_allclose(
        found[numbers].to_numpy(float), table[numbers].to_numpy(float), rtol=1e-3, atol=1e-4
    )
