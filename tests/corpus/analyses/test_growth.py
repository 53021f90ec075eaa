"""Density along generated texts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from strace_lens.corpus.analyses.growth import growth, growth_lines
from strace_lens.measures.intervals import interval
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


def test_steps_are_numbers_in_whatever_order_the_prompts_come() -> None:
    run = synthetic_run(prompts=24)
    labels = {"label_of": ["3"] * 12 + ["15"] * 12, "label_step": [str(s) for s in range(12)] * 2}
    prompts = run.prompts.assign(**labels)
    table = growth(replace(run, prompts=prompts.sample(frac=1, random_state=0)))
    assert table["step"].tolist() == list(range(12))  # 10 comes after 9
    for step in (0, 5, 10):
        own = prompts.iloc[[step, 12 + step]]
        for name in ("density", "tokens", "entropy"):
            assert table[name][step] == pytest.approx(own[name].mean())
        low, high = interval(own["density"].to_numpy())
        assert table["low"][step] == pytest.approx(float(low))
        assert table["high"][step] == pytest.approx(float(high))
    assert growth_lines(replace(run, prompts=prompts))["of"].tolist() == [3] * 12 + [15] * 12


def test_texts_whose_start_failed_have_no_change() -> None:
    later = RUN.prompts[RUN.prompts["label_step"] != "0"]
    table = growth(replace(RUN, prompts=later))
    assert table["step"].tolist() == [1, 2]
    assert table["density"].notna().all()
    assert table["change"].isna().all()


@pytest.mark.parametrize(
    "labels",
    [
        {"label_step": ["0", "1"] * 3},
        {"label_of": ["tales", "birds"] * 3, "label_step": ["first", "last"] * 3},
        {"label_of": [None] * 6, "label_step": [None] * 6},
    ],
)
def test_labels_that_say_something_else_are_no_growth(labels) -> None:
    other = replace(PLAIN, prompts=PLAIN.prompts.assign(**labels))
    assert growth(other).empty
    assert list(growth(other)) == list(growth(RUN))
    assert list(growth_lines(other)) == list(growth_lines(RUN))
