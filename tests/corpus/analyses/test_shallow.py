"""Distances to shallow statistics against loops over prompts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from strace_lens.corpus.analyses.shallow import TARGETS, full_model, nearest, shallow
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
