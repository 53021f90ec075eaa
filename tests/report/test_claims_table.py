"""The table of claims as a page and a terminal show it: every verdict in words, text escaped."""

from __future__ import annotations

import dataclasses
import io

import pandas as pd
import pytest
from rich.console import Console

from strace_lens.corpus.analyses.claim_rules import CLAIMS, STATISTICS
from strace_lens.corpus.analyses.claims import claims
from strace_lens.report.claims_table import MARKS, claims_html, print_claims
from tests.corpus.planted import planted_run, with_options
from tests.report.test_trace import Page, tables

GOOD = with_options(planted_run(hold=True, model="org/some-model"), estimator="greedy")
BAD = with_options(
    planted_run(hold=False, name="greedy-keep-attention", model="org/some-model"),
    estimator="greedy",
    keep=["attention"],
)
RUNS = (GOOD.name, BAD.name)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return claims([GOOD, BAD])


def cells(page: str, number: int) -> list[list[str]]:
    """The rows of a table below its head, each cell as text."""
    rows = tables(page)[number].to_numpy().tolist()
    return [[Page(cell).text for cell in row] for row in rows]


def printed(table: pd.DataFrame, width: int = 180) -> str:
    out = io.StringIO()
    print_claims(Console(file=out, width=width, markup=False, highlight=False), table)
    return out.getvalue()


def test_verdicts_at_a_glance_are_those_of_the_table(table: pd.DataFrame) -> None:
    page = claims_html(table)
    for number, row in zip(CLAIMS, cells(page, 0), strict=True):
        assert row[0] == f"{number}. {CLAIMS[number]}"
        for cell, run in zip(row[1:], RUNS, strict=True):
            of_run = table[(table["run"] == run) & (table["claim"] == number)]
            (verdict,) = of_run["claim_verdict"].unique()
            assert cell == f"{MARKS[verdict]} {verdict}"
        assert [row[0], "", *row[1:]] in cells(page, 1)


def test_heads_name_model_estimator_and_what_is_kept(table: pd.DataFrame) -> None:
    text = Page(claims_html(table)).text
    assert "some-modelgreedy, keep noneplanted" in text
    assert "some-modelgreedy, keep attentiongreedy-keep-attention" in text


def test_every_statistic_has_its_rule_the_papers_value_and_a_verdict_first(table) -> None:
    shown = {row[0]: row[1:] for row in cells(claims_html(table), 1)}
    for name, asked in STATISTICS.items():
        paper, *of_runs = shown[asked.text + asked.rule]
        assert paper == asked.paper
        for cell, run in zip(of_runs, RUNS, strict=True):
            (row,) = table[(table["run"] == run) & (table["statistic"] == name)].to_dict("records")
            assert cell.startswith(f"{MARKS[row['verdict']]} {row['verdict']}")
            assert cell.endswith(f"{row['prompts']} prompts")
            if row["value"] == row["value"]:
                assert asked.shown.format(row["value"]) in cell


def test_other_runs_are_named_with_why_they_are_no_test(table: pd.DataFrame) -> None:
    page = Page(claims_html(table)).text
    assert "with greedy-keep-attentionno test of the claim: both are of one model12 prompts" in page


def test_names_are_no_markup() -> None:
    hostile = "</td><script>alert(1)</script>"
    runs = [
        dataclasses.replace(GOOD, name=hostile, model=hostile),
        dataclasses.replace(BAD, model=hostile),
    ]
    page = claims_html(claims(runs))
    assert "<script" not in page
    assert hostile in Page(page).text


def test_a_terminal_shows_every_run_and_statistic(table: pd.DataFrame) -> None:
    text = printed(table)
    assert text.startswith("The paper's claims")
    for said in ("greedy, keep none", "greedy, keep attention", "✓ HOLDS", "✗ DOES NOT HOLD"):
        assert said in text
    assert text.count("✓ HOLDS") == 5
    assert "with planted" in text
    words = " ".join(text.split())
    assert "✓ holds, ✗ does not hold, ? cannot be told; * decides the claim" in words


@pytest.mark.extended
def test_more_runs_than_fit_make_several_tables() -> None:
    runs = [dataclasses.replace(GOOD, name=f"run{n}") for n in range(5)]
    text = printed(claims(runs))
    assert text.count("claim and statistic") == 2
    for n in range(5):
        assert f"run{n}" in text
    assert "…" not in text
