"""Distances to shallow statistics against loops over prompts."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from strace_lens.corpus.analyses.shallow import TARGETS, full_model, nearest, shallow
from strace_lens.corpus.run_folder import Run
from strace_lens.measures.intervals import interval
from tests.corpus.synthetic import synthetic_run

RUN = synthetic_run(prompts=6)


def test_means_over_prompts() -> None:
    table = shallow(RUN).set_index(["target", "size"])
    for target, column in TARGETS.items():
        for size in RUN.grid:
            values = RUN.sizes.loc[RUN.sizes["size"] == size, column]
            row = table.loc[(target, size)]
            assert row["tv"] == pytest.approx(values.mean())
            assert row["low"] - 1e-12 <= row["tv"] <= row["high"] + 1e-12
            assert row["prompts"] == 6
    full = full_model(RUN).set_index("target")
    assert list(full.index) == ["unigram", "no_context"]
    assert full.loc["unigram", "tv"] == pytest.approx(RUN.prompts["unigram_tv"].mean())


def test_how_often_the_trace_is_nearer_than_the_model() -> None:
    table = nearest(RUN).set_index(["size", "target"])
    for size in RUN.grid:
        rows = RUN.sizes[RUN.sizes["size"] == size].reset_index(drop=True)
        for target in ("unigram", "no_context"):
            own = RUN.prompts[f"{target}_tv"]
            truth = float((rows[f"{target}_tv"] < own).mean())
            assert table.loc[(size, target), "nearer"] == pytest.approx(truth)
        distances = rows[list(TARGETS.values())].to_numpy()
        for place, target in enumerate(TARGETS):
            truth = float(np.mean(distances.argmin(1) == place))
            assert table.loc[(size, target), "nearest"] == pytest.approx(truth)


def test_an_unknown_target_is_left_out() -> None:
    unknown = replace(
        RUN,
        sizes=RUN.sizes.assign(no_context_tv=np.nan),
        prompts=RUN.prompts.assign(no_context_tv=np.nan),
    )
    assert set(shallow(unknown)["target"]) == {"full", "unigram"}
    assert set(nearest(unknown)["target"]) == {"full", "unigram"}
    assert full_model(unknown)["target"].tolist() == ["unigram"]


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
    assert full_model(run)["prompts"].tolist() == [7, 9]


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
    assert list(full_model(bare)) == ["target", "tv", "low", "high", "prompts"]
    assert full_model(bare).empty
