"""The table of phases against loops over made-up prompts."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from strace_lens.corpus.trials.phase_table import SIZES, phase_table
from strace_lens.measures.intervals import interval

QUANTITIES = ("construction_start", "head_size", "head_depth", "depth_gap")


def made_up(prompts: int = 6, names: tuple[str, ...] = ("greedy", "best")) -> pd.DataFrame:
    """Random numbers; prompt 1 has no head with best, prompt 2 none with greedy."""
    draw = np.random.default_rng(0)
    rows = [
        {
            **{"prompt": prompt, "kind": "", "estimator": name, "head_edges": 3, "tail_edges": 4},
            **{quantity: draw.uniform(0.01, 1) for quantity in QUANTITIES},
        }
        for prompt in range(prompts)
        for name in names
    ]
    frame = pd.DataFrame(rows)
    for prompt, name in ((1, "best"), (2, "greedy")):
        frame.loc[(frame["prompt"] == prompt) & (frame["estimator"] == name), "head_size"] = None
    return frame


def row_of(table: pd.DataFrame, estimator: str, quantity: str) -> dict:
    (row,) = table.query("estimator == @estimator and quantity == @quantity").to_dict("records")
    return row


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("name", ["greedy", "best"])
def test_means_and_paired_comparisons(quantity: str, name: str) -> None:
    frame = made_up()
    row = row_of(phase_table(frame), name, quantity)
    by_name = {
        n: dict(zip(rows["prompt"], rows[quantity], strict=True))
        for n, rows in frame.groupby("estimator")
    }
    forth, back = (math.log, math.exp) if quantity in SIZES else (float, float)
    values = [forth(v) for v in by_name[name].values() if not math.isnan(v)]
    paired = [
        forth(v) - forth(g)
        for v, g in zip(by_name[name].values(), by_name["greedy"].values(), strict=True)
        if not math.isnan(v + g)
    ]
    assert row["prompts"] == len(values) == 6 - (quantity == "head_size")
    for column, numbers in (("mean", values), ("vs_greedy", paired)):
        assert row[column] == pytest.approx(back(np.mean(numbers)))
        ends = ("low", "high") if column == "mean" else (f"{column}_low", f"{column}_high")
        for end, expected in zip(ends, interval(np.array(numbers)), strict=True):
            assert row[end] == pytest.approx(back(float(expected)))
    assert len(paired) == 6 - (quantity == "head_size") * (1 if name == "greedy" else 2)


def test_every_quantity_of_every_estimator_has_a_row() -> None:
    table = phase_table(made_up())
    assert table["estimator"].unique().tolist() == ["greedy", "best"]
    assert table["quantity"].unique().tolist() == list(QUANTITIES)
    assert len(table) == 8
    assert table.equals(phase_table(made_up()))


def test_one_prompt_has_means_without_intervals() -> None:
    table = phase_table(made_up(prompts=1))
    assert table[["mean", "vs_greedy"]].notna().all(axis=None)
    assert table[["low", "high", "vs_greedy_low", "vs_greedy_high"]].isna().all(axis=None)


def test_without_greedy_nothing_is_compared() -> None:
    table = phase_table(made_up(names=("best", "other")))
    assert table[["vs_greedy", "vs_greedy_low", "vs_greedy_high"]].isna().all(axis=None)
    assert table["mean"].notna().all()


def test_a_phase_that_no_prompt_has_is_counted_as_none() -> None:
    frame = made_up().assign(head_size=math.nan)
    row = row_of(phase_table(frame), "best", "head_size")
    assert row["prompts"] == 0
    assert math.isnan(row["mean"])
    assert math.isnan(row["vs_greedy"])
