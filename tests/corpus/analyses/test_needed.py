"""Sizes needed against a search prompt by prompt; quartiles where some prompts never get there."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from strace_lens.corpus.analyses.needed import ERRORS, size_needed
from strace_lens.corpus.run_folder import Run
from strace_lens.measures.distributions import NUCLEI
from tests.corpus.synthetic import synthetic_run


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
