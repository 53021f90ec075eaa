"""Density along generated texts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from strace_lens.corpus.analyses.growth import growth, growth_lines
from tests.corpus.synthetic import synthetic_run

PLAIN = synthetic_run(prompts=6)
RUN = replace(
    PLAIN,
    prompts=PLAIN.prompts.assign(
        label_of=["0", "0", "0", "1", "1", "1"], label_step=["0", "1", "2", "0", "1", "2"]
    ),
)


def test_lines_follow_each_text() -> None:
    lines = growth_lines(RUN)
    assert lines["of"].tolist() == [0, 0, 0, 1, 1, 1]
    assert lines["step"].tolist() == [0, 1, 2] * 2
    assert lines["density"].tolist() == RUN.prompts["density"].tolist()


def test_means_and_changes_over_texts() -> None:
    density = RUN.prompts["density"].to_numpy()
    table = growth(RUN)
    for step in range(3):
        both = density[[step, 3 + step]]
        assert table["density"][step] == pytest.approx(both.mean())
        assert table["change"][step] == pytest.approx((both - density[[0, 3]]).mean())
        assert table["prompts"][step] == 2
        assert table["low"][step] == pytest.approx(both.min())
    assert table["change"][0] == 0


def test_steps_that_not_all_texts_reach() -> None:
    short = replace(RUN, prompts=RUN.prompts.iloc[:5].reset_index(drop=True))
    table = growth(short)
    assert table["prompts"].tolist() == [2, 2, 1]
    assert np.isnan(table["low"][2])


def test_a_run_that_did_not_generate_has_no_row() -> None:
    assert growth(PLAIN).empty
    assert growth_lines(PLAIN).empty
