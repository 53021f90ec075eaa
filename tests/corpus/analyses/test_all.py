"""Runs on the same prompts against scipy and against runs cut by hand."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from strace_lens.corpus.analyses.all import analyse, between_runs, on_shared_prompts, side_by_side
from strace_lens.corpus.analyses.curves import mean_curves
from strace_lens.corpus.analyses.sizes import corpus_boundaries
from strace_lens.corpus.run_folder import Run
from tests.corpus.synthetic import synthetic_run

TEXTS = [f"text {k}" for k in range(10)]


def run_of(name: str, texts: list[str], seed: int = 0) -> Run:
    return synthetic_run(prompts=len(texts), texts=texts, name=name, seed=seed)


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    """Three runs in different orders, of which some lack some prompts."""
    return [
        run_of("one", TEXTS, 1),
        run_of("two", TEXTS[:7][::-1], 2),
        run_of("three", [*TEXTS[2:], "another"], 3),
    ]


def test_pairs_are_matched_by_their_text(runs) -> None:
    table = between_runs(runs, resamples=100).set_index(["a", "b"])
    assert len(table) == 9
    by_text = {run.name: run.prompts.set_index("text")["density"] for run in runs}
    shared = {("one", "two"): 7, ("one", "three"): 8, ("two", "three"): 5}
    for (a, b), prompts in shared.items():
        both = pd.concat([by_text[a], by_text[b]], axis=1, join="inner").to_numpy()
        row, mirror = table.loc[(a, b)], table.loc[(b, a)]
        assert row["prompts"] == mirror["prompts"] == len(both) == prompts
        assert row["rho"] == pytest.approx(spearmanr(*both.T).statistic)
        assert row["mean_difference"] == pytest.approx(np.mean(both[:, 0] - both[:, 1]))
        assert row["low"] <= row["rho"] <= row["high"]
        assert row["difference_low"] < row["mean_difference"] < row["difference_high"]
        same = ["rho", "low", "high"]
        assert row[same].tolist() == pytest.approx(mirror[same].tolist())
        assert row["difference_low"] == pytest.approx(-mirror["difference_high"])


def test_a_run_agrees_with_itself(runs) -> None:
    table = between_runs(runs, resamples=50)
    own = table[table["a"] == table["b"]]
    assert own["prompts"].tolist() == [10, 7, 9]
    for column, expected in {"rho": 1, "low": 1, "high": 1, "mean_difference": 0}.items():
        assert own[column].tolist() == pytest.approx([expected] * 3)


def test_few_prompts_have_no_correlation() -> None:
    three = between_runs([run_of("one", TEXTS[:3], 1), run_of("two", TEXTS[:3], 2)], resamples=20)
    assert three[["rho", "low", "high"]].isna().all().all()
    assert three["difference_low"].notna().all()
    one = between_runs([run_of("one", TEXTS, 1), run_of("two", TEXTS[:1], 2)], resamples=20)
    row = one.set_index(["a", "b"]).loc[("one", "two")]
    assert row["prompts"] == 1
    assert not math.isnan(row["mean_difference"])
    assert row[["difference_low", "difference_high"]].isna().all()


def test_a_text_that_comes_twice_counts_once() -> None:
    twice = run_of("twice", [*TEXTS[:5], TEXTS[0]], 1)
    other = run_of("other", TEXTS[:5], 2)
    table = between_runs([twice, other], resamples=20).set_index(["a", "b"])
    row = table.loc[("twice", "other")]
    first = twice.prompts["density"][:5].to_numpy()
    assert row["prompts"] == 5
    assert row["rho"] == pytest.approx(spearmanr(first, other.prompts["density"]).statistic)
    assert len(on_shared_prompts([twice, other])[0].prompts) == 5


def test_runs_are_cut_to_the_prompts_that_all_have(runs) -> None:
    cut = on_shared_prompts(runs)
    assert sorted(cut[0].prompts["text"]) == TEXTS[2:7]
    for run, whole in zip(cut, runs, strict=True):
        assert run.prompts["text"].tolist() == cut[0].prompts["text"].tolist()
        assert run.sizes["prompt"].tolist() == [p for p in run.prompts["prompt"] for _ in run.grid]
        for at, prompt in enumerate(run.prompts["prompt"]):
            place = whole.prompts["prompt"].tolist().index(prompt)
            np.testing.assert_array_equal(run.usage[at], whole.usage[place])
            np.testing.assert_array_equal(run.reachable[at], whole.reachable[place])
            for mine, theirs in ((run.geometry, whole.geometry), (run.path, whole.path)):
                for name, values in mine.items():
                    np.testing.assert_array_equal(values[at], theirs[name][place])
            mine = run.sizes[run.sizes["prompt"] == prompt].reset_index(drop=True)
            theirs = whole.sizes[whole.sizes["prompt"] == prompt].reset_index(drop=True)
            assert len(mine) > 0
            pd.testing.assert_frame_equal(mine, theirs)


def test_runs_without_geometry_are_cut_too() -> None:
    run = synthetic_run(prompts=3, texts=TEXTS[:3], geometry=False)
    one, _ = on_shared_prompts([run, run_of("two", TEXTS[1:])])
    assert one.prompts["prompt"].nunique() == 2
    assert one.geometry["cosine"].shape == (2, len(run.grid), 0)


@pytest.mark.extended
def test_runs_side_by_side_are_each_on_the_shared_prompts(runs) -> None:
    curves, boundaries = side_by_side(runs, seed=3)
    for run in on_shared_prompts(runs):
        for mine, expected in (
            (curves, mean_curves(run, seed=3)),
            (boundaries, corpus_boundaries(run, seed=3)),
        ):
            one = mine[mine["run"] == run.name].drop(columns="run").reset_index(drop=True)
            pd.testing.assert_frame_equal(one, expected)
            assert set(one["prompts"]) == {5}


def test_a_run_beside_itself_has_the_same_curves() -> None:
    one = run_of("one", TEXTS[:4])
    again = dataclasses.replace(one, name="again")
    curves, _ = side_by_side([one, again])
    first, second = (rows.drop(columns="run") for _, rows in curves.groupby("run"))
    pd.testing.assert_frame_equal(first.reset_index(drop=True), second.reset_index(drop=True))


def test_the_same_prompts_have_the_same_intervals_alone_and_beside_others() -> None:
    whole, part = run_of("whole", TEXTS[:5], 1), run_of("part", TEXTS[2:4], 2)
    same = run_of("same", TEXTS[:5], 3)
    for runs, alike in (([whole, same], [whole, same]), ([part, whole], [part])):
        curves, boundaries = side_by_side(runs)
        for run in alike:
            for found, alone in ((curves, mean_curves(run)), (boundaries, corpus_boundaries(run))):
                own = found[found["run"] == run.name].drop(columns="run").reset_index(drop=True)
                pd.testing.assert_frame_equal(own, alone)


@pytest.mark.extended
def test_the_tables_of_all_are_those_of_one_where_the_prompts_are() -> None:
    tables = analyse([run_of("part", TEXTS[2:6], 2), run_of("whole", TEXTS, 1)])
    for beside, alone in (
        ("shared_curves", "mean_curves"),
        ("shared_boundaries", "corpus_boundaries"),
    ):
        first, second = (
            tables[table][tables[table]["run"] == "part"].reset_index(drop=True)
            for table in (beside, alone)
        )
        pd.testing.assert_frame_equal(first, second)


@pytest.mark.parametrize("compare", [between_runs, side_by_side])
def test_runs_that_cannot_be_compared_are_named(compare) -> None:
    one, two = run_of("one", TEXTS[:2]), run_of("two", TEXTS[2:4])
    with pytest.raises(ValueError, match="one and two share no prompt"):
        compare([one, two])
    with pytest.raises(ValueError, match="two runs are named one"):
        compare([one, run_of("one", TEXTS[:2])])
    with pytest.raises(ValueError, match="no run to compare"):
        compare([])


def test_each_two_may_share_what_not_all_do() -> None:
    ring = [run_of(str(k), [TEXTS[k], TEXTS[(k + 1) % 3]]) for k in range(3)]
    assert len(between_runs(ring, resamples=5)) == 9
    with pytest.raises(ValueError, match="no prompt is in all of 0, 1, 2"):
        side_by_side(ring)
