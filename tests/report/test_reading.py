"""Sentences of the page of estimators: the numbers are the tables', the verdicts the intervals'."""

from __future__ import annotations

import math

import pandas as pd
import pytest

import strace_lens as sl
from strace_lens.corpus.trials.phase_table import phase_table
from strace_lens.report.reading import (
    read_compute,
    read_controls,
    read_depth,
    read_fidelity,
    read_kinds,
    read_phases,
)
from tests.plot import made_trials as made

TABLE = sl.estimator_table(made.trials())
PHASES = made.means()


def mean(name: str, quantity: str, column: str = "mean") -> float:
    return PHASES.set_index(["estimator", "quantity"]).loc[(name, quantity), column]


def test_density_is_told_with_its_interval_and_beside_greedys() -> None:
    lines = read_fidelity(TABLE)
    for line, row in zip(lines, TABLE.to_dict("records"), strict=True):
        assert line.startswith(f"{row['estimator']}: density {row['density']:.3f} [")
        assert ("beside greedy's" in line) == (row["estimator"] != "greedy")
    assert f"{TABLE['density_vs_greedy'][1]:+.3f} [" in lines[1]


def test_without_greedy_nothing_is_beside_it() -> None:
    names = ("pruned", "learned")
    table = sl.estimator_table(made.trials(names=names))
    assert "greedy" not in " ".join(read_fidelity(table) + read_depth(made.means(names=names)))


def test_controls_name_the_worst_prompt() -> None:
    for line, row in zip(read_controls(TABLE), TABLE.to_dict("records"), strict=True):
        assert f"{row['wrong_tv_mean']:.2f}, on the worst prompt {row['wrong_tv_min']:.2f}" in line
        assert f"{row['sibling_0.1']:.2f} at s = 0.1" in line
    without = read_controls(TABLE.assign(**{"sibling_0.1": math.nan}))
    assert "sibling" not in " ".join(without)


def test_phases_are_counted_and_located() -> None:
    for line, name in zip(read_phases(PHASES), made.NAMES, strict=True):
        assert line.startswith(f"{name}: construction in 4 of 4 prompts, from s = ")
        for quantity in ("construction_start", "construction_stop", "construction_tv"):
            assert f"{mean(name, quantity):.3g} [" in line
    none = phase_table(made.no_phases().prompts)
    assert read_phases(none)[0] == "greedy: no prompt has a construction phase."
    assert read_depth(none)[0] == "greedy: no prompt has its head restored at a measured size."


def test_depth_counts_the_prompts_that_have_a_head() -> None:
    lines = read_depth(PHASES)
    assert "in 4 of 4 prompts" in lines[0]
    assert "in 3 of 4 prompts" in lines[-1]
    assert f"{mean('pruned', 'block_depth_0.05'):.3g}" in lines[1]


@pytest.mark.parametrize(
    ("bounds", "verdict"),
    [
        ((-0.2, -0.1), "earlier than the refinement"),
        ((0.1, 0.2), "later than the refinement"),
        ((-0.1, 0.1), "not told apart from the refinement"),
        ((math.nan, math.nan), "beside the refinement"),
    ],
)
def test_a_verdict_is_what_the_interval_says(bounds, verdict) -> None:
    table = PHASES.copy()
    table.loc[table["quantity"] == "block_depth_gap", ["low", "high"]] = bounds
    for line in read_depth(table):
        assert verdict in line


def test_kinds_and_compute_stand_by_size() -> None:
    for line, name in zip(read_kinds(PHASES), made.NAMES, strict=True):
        assert line.startswith(f"{name}, at s = 0.01, 0.05, 0.2: residual ")
        assert f"{mean(name, 'attention_0.05'):.0%} [" in line
    for line, row in zip(read_compute(TABLE), TABLE.to_dict("records"), strict=True):
        assert f"{row['compute_0.05']:.2f} at s = 0.05 (TV {row['tv_0.05']:.2f})" in line


def test_sizes_that_were_not_measured_are_left_out() -> None:
    fewer = TABLE.drop(columns="compute_0.05")
    assert "s = 0.05" not in " ".join(read_compute(fewer))
    kinds = PHASES[~PHASES["quantity"].str.endswith("_0.05")]
    assert read_kinds(kinds)[0].startswith("greedy, at s = 0.01, 0.2: residual ")
    assert isinstance(kinds, pd.DataFrame)
    assert "At s = 0.05" not in " ".join(read_depth(kinds))
