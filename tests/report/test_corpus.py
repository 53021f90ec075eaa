"""The page of a corpus: complete, self-contained, escaped and the same each time."""

from __future__ import annotations

import dataclasses
import functools
import html
import re

import pandas as pd
import pytest
from plotly.offline import get_plotlyjs

from strace_lens.corpus.analyses.all import analyse
from strace_lens.corpus.run_folder import Run
from strace_lens.report.corpus import corpus_report, run_colours
from tests.plot.corpus import made_runs as made
from tests.report.test_trace import Page, tables

SEVERAL = ("density-of-prompts",)
SUMMARY = ("shared-curves", "between-runs", "sizes-needed")
SUMMARY_OF_ONE = ("mean-curves", "kinds", "sizes-needed")
FIGURES = (
    *("mean-curves", "head-tail", "prompt-boundaries", "kinds", "quarters"),
    *("phase-diagram", "head-and-tail", "lorenz", "gini", "core", "density-by-label"),
    *("density-parts", "density-against", "shallow", "nearest", "geometry", "path"),
    *("states-alike", "states-apart", "state-path", "growth"),
)


@functools.cache
def found(count: int = 2, prompts: int = 8) -> dict[str, pd.DataFrame]:
    return analyse(made.runs(count, prompts))


def page_of(runs: tuple[Run, ...], of: dict[str, pd.DataFrame]) -> Page:
    return Page(corpus_report(runs, of))


@pytest.fixture(scope="module")
def page() -> str:
    return corpus_report(made.runs(), found())


def figures(page: Page) -> list[str]:
    ids = [a["id"] or "" for tag, a in page.tags if tag == "div" and "id" in a]
    return [name.removeprefix("figure-") for name in ids]


@pytest.mark.extended
def test_the_same_tables_make_the_same_page(page: str) -> None:
    assert corpus_report(made.runs(), found()) == page


def test_it_holds_plotly_once_and_asks_for_nothing(page: str) -> None:
    assert page.count(get_plotlyjs()) == 1
    for tag, attributes in Page(page).tags:
        assert tag != "link"
        assert not (attributes.get("src") or "").startswith(("http", "//")), tag
    assert "mathjax" not in page.replace(get_plotlyjs(), "").lower()


def test_every_figure_is_there_once_with_a_caption(page: str) -> None:
    read = Page(page)
    every = [*SUMMARY, *SEVERAL, *FIGURES]
    assert figures(read) == every
    assert sum(tag == "figcaption" for tag, _ in read.tags) == len(every)


def test_everything_but_the_summary_is_folded(page: str) -> None:
    body = page[page.index("<body>") :]
    opened = re.sub(r"<details>.*?</details>", "", body, flags=re.DOTALL)
    assert figures(Page(opened)) == list(SUMMARY)
    assert opened.count("<table") == 2  # the verdicts and the boundaries
    assert "Phase boundaries of the mean curve" in opened
    folded = [f"<details><summary><h2>{heading}</h2></summary>" for heading in ("The runs",)]
    assert all(heading in body for heading in folded)
    assert "open" not in [name for tag, of in Page(page).tags if tag == "details" for name in of]


def test_captions_name_the_files_of_their_numbers(page: str) -> None:
    text = Page(page).text
    beside = {"prompts"}  # drawn by no figure
    for name in set(found()) - beside:
        assert f"{name}.csv" in text, name


def test_it_says_what_was_run(page: str) -> None:
    text = Page(page).text
    tokens = made.runs()[1].prompts["tokens"]
    for said in (
        "Phases over many prompts: first, se<b>cond",
        "modelmade-up model",
        f"prompts8, of {tokens.min()} to {tokens.max()} tokens",
        "relative sizes9, from 0.0001 to 1",
        "With 8 prompts they are rough",
        "Mean total variation of the traces over the prompts that all runs have, a line a run.",
    ):
        assert said in text


def test_the_claims_come_first(page: str) -> None:
    body = page[page.index("<body>") :]
    claims, runs = body.index("The paper's claims"), body.index("<h2>The runs</h2>")
    assert claims < body.index("<figure>") < runs
    assert body.index('<table class="claims">') < runs


def test_the_tables_hold_every_run(page: str) -> None:
    first = next(table for table in tables(page) if "density" in table)
    assert first["run"].map(html.unescape).tolist() == list(made.NAMES)
    means = [run.prompts["density"].mean() for run in made.runs()]
    assert [cell.split(" ")[0] for cell in first["density"]] == [f"{m:.3g}" for m in means]


@pytest.mark.extended
def test_names_of_runs_and_labels_are_no_markup() -> None:
    hostile = "</script><script>alert(1)</script>"
    run = made.runs(1)[0]
    prompts = run.prompts.assign(label_kind=run.prompts["label_kind"].replace("code", hostile))
    named = dataclasses.replace(run, name=hostile, model=hostile, prompts=prompts)
    swap = {"first": hostile, "code": hostile}  # "first" is a rule of sizes too
    of = {
        name: frame.replace({column: swap for column in frame if column != "rule"})
        for name, frame in found(1).items()
    }
    plain, other = page_of((run,), found(1)), page_of((named,), of)
    count = [tag for tag, _ in plain.tags].count("script")
    assert [tag for tag, _ in other.tags].count("script") == count
    assert hostile in other.text


@pytest.mark.extended
def test_one_prompt_makes_a_page_that_says_there_are_no_intervals() -> None:
    read = page_of(made.runs(1, 1), found(1, 1))
    assert "A single prompt gives no interval" in read.text
    assert "prompts1, of" in read.text
    assert "nan" not in read.text
    assert "density-by-label" not in figures(read)
    assert set(figures(read)) == {*SUMMARY_OF_ONE, *FIGURES} - {"density-by-label"}


@pytest.mark.extended
@pytest.mark.parametrize(
    ("table", "gone", "why"),
    [
        ("geometry_by_layer", {"geometry", "path"}, "Hidden states were not kept"),
        ("state_matrices", {"states-alike", "states-apart"}, "Hidden states were not kept in"),
        ("state_curvature", {"state-path"}, "or a single size was measured"),
        ("growth", {"growth"}, "No prompt was grown"),
        ("density_by_label", {"density-by-label"}, "No label has two to twelve values"),
        ("lorenz", {"lorenz"}, "lorenz has no row"),
    ],
)
def test_a_figure_without_rows_is_left_out_with_a_line_why(table, gone, why) -> None:
    of = found(1)
    read = page_of(made.runs(1), {**of, table: of[table].head(0)})
    assert set(figures(read)) == {*SUMMARY_OF_ONE, *FIGURES} - gone
    assert why in read.text


@pytest.mark.extended
def test_failed_prompts_are_named_with_their_error() -> None:
    run = made.runs(1)[0]
    failures = pd.DataFrame({"prompt": [3], "text": ["a"], "error": ["NaN logits <here>"]})
    read = page_of((dataclasses.replace(run, failures=failures),), found(1))
    assert "1; prompt 3: NaN logits <here>" in read.text


def test_runs_have_one_colour_each_and_a_run_without_data_is_named() -> None:
    of = found()
    first, second = made.NAMES
    kept = of["geometry_by_layer"][of["geometry_by_layer"]["run"] == second]
    page = corpus_report(made.runs(), {**of, "geometry_by_layer": kept})
    colours = run_colours(made.runs())
    assert len(set(colours.values())) == 2
    body = page.replace(get_plotlyjs(), "")
    for name in made.NAMES:
        # in the key, twice in the heads of claims, and above the facts of the run
        swatch = f'<i class="run" style="background:{colours[name]}"></i>&nbsp;'
        assert body.count(swatch + html.escape(name)) == 4
    assert f"Left out: {first}. Hidden states were not kept" in Page(page).text
    alone = corpus_report(made.runs(1), found(1))
    assert 'class="run"' not in alone
