"""The page of a comparison: complete, self-contained, escaped and the same each time."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs

from strace_lens.comparison.comparison import COLUMNS
from strace_lens.comparison.comparison import FIGURES as WITH_INTERVALS
from strace_lens.measures.intervals import interval_text
from strace_lens.report.compare import comparison_page, comparison_report
from tests.plot import made_comparison as made
from tests.report.test_trace import Page, tables

FIGURES = (
    *(
        "faithfulness",
        "differences",
        "auroc",
        "found",
        "circuits",
        "quality",
        "overlap",
        "agreement",
    ),
    "projection",
)


@pytest.fixture(scope="module")
def page() -> str:
    return comparison_page(made.comparison())


def test_the_same_results_make_the_same_page(page: str) -> None:
    assert comparison_page(made.comparison()) == page


def test_the_page_is_written_whole(page: str, tmp_path: Path) -> None:
    comparison_report(made.comparison(), tmp_path / "compare.html")
    assert (tmp_path / "compare.html").read_text(encoding="utf-8") == page
    assert [path.name for path in tmp_path.iterdir()] == ["compare.html"]


def test_it_holds_plotly_once_and_asks_for_nothing(page: str) -> None:
    assert page.count(get_plotlyjs()) == 1
    for tag, attributes in Page(page).tags:
        assert tag != "link"
        assert not (attributes.get("src") or "").startswith(("http", "//")), tag
    assert "mathjax" not in page.replace(get_plotlyjs(), "").lower()


def test_every_figure_is_there_once_with_a_caption(page: str) -> None:
    ids = [a["id"] for tag, a in Page(page).tags if tag == "div" and "id" in a]
    assert ids == [f"figure-{name}" for name in FIGURES]
    assert sum(tag == "figcaption" for tag, _ in Page(page).tags) == len(FIGURES)


def test_table_and_main_figures_come_before_folded_sections(page: str) -> None:
    body = page[page.index("<h1>") :]
    parts = ["<table", 'id="figure-faithfulness"', 'id="figure-differences"', "<details>"]
    assert [body.index(part) for part in parts] == sorted(map(body.index, parts))
    assert body.count("<h2>") == body.count("<details><summary><h2>") == 6
    assert "How this was made" in body


def test_it_says_what_was_run_and_how(page: str) -> None:
    text = Page(page).text
    whole = made.comparison()
    for said in (
        "Circuits of made-up in tiny-gpt2",
        f"component graph{whole.graph.edges} edges",
        "pairs of prompts2 seen by the methods, circuits evaluated on the same; 1 dropped",
        f"logit_difference: mean {whole.metric_clean:.4g} on the clean prompts",
        "50 % right",
        "ablated edges carryresample: their value on the corrupted prompt",
        "seed7",
        "versionstorch 2",
        f"true circuit{made.TRUE_EDGES} edges, those whose resampling alone",
        "The model does the task on half of the pairs only.",
        "Skipped acdc: the graph has too many edges.",
        "Mean logit_difference over 2 pairs",
        "Edges are ranked by magnitude of score.",
    ):
        assert said in text


def test_the_table_has_every_method_and_number(page: str) -> None:
    shown, *_ = tables(page)
    whole = made.comparison()
    assert shown["method"].tolist() == list(made.METHODS)
    costs = tables(page)[-1]
    assert costs["method"].tolist() == list(made.METHODS)
    assert len({*shown.columns, *costs.columns}) == len(COLUMNS) - 2 * len(WITH_INTERVALS)
    forwards = costs["forwards"].astype(float)
    assert forwards.to_numpy() == pytest.approx(whole.table["forwards"].to_numpy(), rel=5e-3)
    for heading, column in (("CPR", "cpr"), ("AUROC", "auroc"), ("edges at 85 %", "edges_at_85")):
        values = (
            shown[heading].str.split(" [", regex=False).str[0].str.replace(",", "").astype(float)
        )
        assert values.to_numpy() == pytest.approx(whole.table[column].to_numpy(), rel=5e-3)
    edges = [
        interval_text(
            float(r.faithfulness.edges_at_85), *r.interval("edges_at_85"), "{:,.0f}"
        ).replace(", ", ",\xa0")
        for r in whole.results
    ]
    assert shown["edges at 85 %"].tolist() == edges
    assert "[" in edges[0]
    assert shown["completeness"].tolist() == ["0"] * len(shown)  # rounding error is no result
    beats = {True: "yes", False: "no", None: "–"}
    assert shown["beats random"].tolist() == [beats[whole.beats_random(r)] for r in whole.results]


@pytest.mark.parametrize(
    ("drawn", "said"),
    [
        (1, "the value of the one random ranking drawn"),
        (3, "the best value of the 3 random rankings drawn"),
        (99, "the value that at most one in twenty of the 99 random rankings drawn exceed"),
    ],
)
def test_it_says_how_many_random_rankings_were_drawn(drawn: int, said: str) -> None:
    whole = made.comparison()
    level = whole.random_cmd[0]
    more = dataclasses.replace(whole, random_cmd=(level,) * drawn, random_auroc=(0.5,) * drawn)
    text = Page(comparison_page(more)).text
    assert text.count(said) == 2
    assert ("one in twenty" in text) == (drawn == 99)


def test_missed_edges_are_named(page: str) -> None:
    text = Page(page).text
    for result in made.comparison().results:
        start = f"{result.method} ({len(result.missed)} of {made.TRUE_EDGES}): "
        assert start + (", ".join(result.missed) or "none") in text
    whole = made.comparison()
    many = tuple(f"e{i}" for i in range(15))
    first = dataclasses.replace(whole.results[0], missed=many)
    text = Page(comparison_page(dataclasses.replace(whole, results=(first,)))).text
    assert "e10, e11 and 3 more" in text
    assert "e12" not in text


@pytest.mark.extended
def test_without_truth_and_projection_the_page_says_so() -> None:
    bare = dataclasses.replace(
        made.comparison(known=False),
        projection=None,
        accuracy=None,
        held_out=True,
        skipped={},
        warnings=(),
    )
    page = comparison_page(bare)
    text = Page(page).text
    assert "Against the true circuit" not in text
    assert "this model has no token graph" in text
    assert "circuits evaluated on 2 others" in text
    assert "% right" not in text
    assert "finding" not in [a.get("class") for _, a in Page(page).tags]
    shown, *_ = tables(page)
    assert {"AUROC", "precision"}.isdisjoint(shown.columns)
    assert "nan" not in text.lower()


def test_nothing_of_a_comparison_becomes_markup(page: str) -> None:
    hostile = "</script><script>alert(1)</script>"
    marked = Page(comparison_page(made.renamed(made.comparison(), hostile)))
    count = [tag for tag, _ in Page(page).tags].count("script")
    assert [tag for tag, _ in marked.tags].count("script") == count
    assert f"Circuits of {hostile} in {hostile}" in marked.text


@pytest.mark.extended
def test_grouped_queries_are_explained() -> None:
    said = "Diamonds are key-value heads"
    assert said in Page(comparison_page(made.comparison("llama"))).text
    assert said not in Page(comparison_page(made.comparison())).text


def test_a_comparison_without_methods_is_refused() -> None:
    with pytest.raises(ValueError, match="no method"):
        comparison_page(dataclasses.replace(made.comparison(), results=()))


def test_heads_are_counted_by_the_edges_that_enter_and_leave_them(page: str) -> None:
    whole = made.comparison()
    heads = tables(page)[-2].set_index("head")
    circuits = {r.method: r.circuit for r in whole.results}
    assert list(heads.columns) == [*circuits, "true circuit"]
    seen = set()
    for method, circuit in circuits.items():
        graph = circuit.to_networkx()
        for head, cell in heads[method].items():
            enter, leave = 0, 0
            if head in graph:
                enter, leave = graph.in_degree(head), graph.out_degree(head)
            assert cell == (f"{enter} in, {leave} out" if enter or leave else "–")
        seen |= {node for node in graph if ".h" in node}
    assert set(heads.index) >= seen


def test_the_projection_is_left_out_where_circuits_have_the_same_nodes() -> None:
    whole = made.comparison(known=False)
    same = tuple(dataclasses.replace(r, circuit=whole.results[0].circuit) for r in whole.results)
    read = Page(comparison_page(dataclasses.replace(whole, results=same)))
    assert "all circuits have the same heads and MLPs" in read.text
    assert "figure-projection" not in [a.get("id") for _, a in read.tags]
