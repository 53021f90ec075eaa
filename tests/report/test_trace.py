"""The HTML page: complete, self-contained, escaped and the same each time."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from plotly.offline import get_plotlyjs

from strace_lens.density.causal import phase_ablation
from strace_lens.density.phases import find_phases
from strace_lens.density.ways import WAYS, top_size
from strace_lens.report.explorer import explorer
from strace_lens.report.page import trace_title
from strace_lens.report.trace import EXPLORED_EDGES, trace_report
from tests import tiny
from tests.plot import made
from tests.report.made import large_curve, large_lens

FIGURES = ("density", "kinds", "layers", "layer-phases", "layer-profiles")


class Page(HTMLParser):
    """Tags with their attributes, and the visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._hidden = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        self.text += data * (not self._hidden)


@pytest.fixture(scope="module")
def page() -> str:
    curve = made.curve()
    return trace_report(curve, find_phases(curve), phase_ablation(tiny.bridge("llama"), curve))


def test_the_same_results_make_the_same_page(page: str) -> None:
    curve = made.curve()
    table = phase_ablation(tiny.bridge("llama"), curve)
    assert trace_report(curve, find_phases(curve), table) == page


def test_it_holds_plotly_once_and_asks_for_nothing(page: str) -> None:
    assert page.count(get_plotlyjs()) == 1
    for tag, attributes in Page(page).tags:
        assert tag != "link"
        assert not (attributes.get("src") or "").startswith(("http", "//")), tag
    assert "mathjax" not in page.replace(get_plotlyjs(), "").lower()


def test_every_figure_is_there_once(page: str) -> None:
    ids = [a["id"] for tag, a in Page(page).tags if tag == "div" and "id" in a]
    assert ids == [f"figure-{name}" for name in FIGURES]
    assert sum(tag == "figcaption" for tag, _ in Page(page).tags) == len(FIGURES)


def explorers(page: str) -> list[str]:
    """The pages within frames."""
    return [a["srcdoc"] or "" for tag, a in Page(page).tags if tag == "iframe"]


def test_summary_explorer_and_curve_come_before_folded_sections(page: str) -> None:
    curve = made.curve()
    assert explorers(page) == [explorer([curve], most_edges=EXPLORED_EDGES)]
    body = page[page.index("<h1>") :]
    parts = ['class="finding"', "<iframe", 'id="figure-density"', "<details>"]
    assert [body.index(part) for part in parts] == sorted(map(body.index, parts))
    assert body.count("<h2>") == body.count("<details><summary><h2>") == 4
    assert " open" not in "".join(re.findall(r"<details[^>]*>", body))


def test_several_ways_are_compared_before_the_explorer() -> None:
    curve = made.curve()
    other = dataclasses.replace(curve, table=curve.table.assign(top1=False))
    page = trace_report(curve, find_phases(curve), ways={WAYS[0]: curve, WAYS[1]: other})
    first, *_ = tables(page)
    assert first["way of measuring"].tolist() == [way.title for way in WAYS[:2]]
    assert first.iloc[:, 1].tolist() == [f"s = {top_size(curve):.2g}", "–"]
    assert first["density"].tolist() == [f"{curve.density:.3g}", f"{other.density:.3g}"]
    body = page[page.index("<h1>") :]
    parts = ["<table", "<iframe", 'id="figure-ways"', "<details>", 'id="figure-density"']
    assert [body.index(part) for part in parts] == sorted(map(body.index, parts))


@pytest.mark.extended
def test_the_page_of_a_long_trace_takes_less_than_8_mb() -> None:
    curve = large_curve(128)
    page = trace_report(curve, find_phases(curve), lens=large_lens(128))
    (inner,) = explorers(page)
    assert f'"packed": {EXPLORED_EDGES}' in inner
    assert curve.trace.edges > EXPLORED_EDGES
    assert len(page.encode()) < 8e6


def test_heading_says_what_was_measured_and_how(page: str) -> None:
    curve = made.curve()
    text = Page(page).text
    for said in (
        curve.trace.metadata["model"],
        f"{curve.trace.edges:,} over 12 tokens",
        f"density{curve.density:.3f}",
        f"{curve.entropy:.3f} nats",
        f"{curve.logit_gap:.1e}",
        "seed0",
        "ablated edges carryzero",
        f"transformer-lens {curve.trace.metadata['versions']['transformer-lens']}",
        find_phases(curve).describe()[1:],
    ):
        assert said in text


def tables(page: str) -> list[pd.DataFrame]:
    found = re.findall(r"<table.*?</table>", page, re.DOTALL)
    return [_cells(table) for table in found]


def _cells(table: str) -> pd.DataFrame:
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", r, re.DOTALL) for r in table.split("<tr")[1:]]
    return pd.DataFrame(rows[1:], columns=rows[0])


def test_the_table_has_every_size_and_measure(page: str) -> None:
    curve = made.curve()
    first, second = tables(page)[-2:]
    assert second[["size", "edges"]].equals(first[["size", "edges"]])
    shown = first.assign(**second)
    assert set(shown.columns) == {c.replace("_", " ") for c in (*curve.table, "top")}
    assert shown["size"].astype(float).tolist() == curve.table["size"].tolist()
    for name in ("tv", "kl", "head_error", "random_tv", "mean_layer"):
        values = shown[name.replace("_", " ")].replace("–", "nan").astype(float)
        assert values.to_numpy() == pytest.approx(
            curve.table[name].to_numpy(), rel=5e-3, nan_ok=True
        )
    assert (shown["top1"] == "yes").tolist() == curve.table["top1"].tolist()
    assert shown["top"][0].startswith(f'"{curve.tops[0][0][0]}" ')


def test_the_ablation_table_is_shown(page: str) -> None:
    shown = tables(page)[-3]
    expected = phase_ablation(tiny.bridge("llama"), made.curve())
    assert shown["ablated"].tolist() == expected["ablated"].tolist()
    assert shown["matched head error"][0] == "–"  # nothing was ablated: no draws
    assert shown["tv"].astype(float).to_numpy() == pytest.approx(
        expected["tv"].to_numpy(), rel=5e-3
    )


def test_an_absent_ablation_is_explained() -> None:
    curve = made.curve()
    phases = find_phases(curve)
    no_tail = dataclasses.replace(phases, tail=None)
    assert "the ablation was not run" in trace_report(curve, phases)
    assert "has no head subgraph to ablate" in trace_report(curve, made.NO_PHASES, pd.DataFrame())
    assert "has no tail refinement to ablate" in trace_report(curve, no_tail)


def test_nothing_of_a_prompt_becomes_markup() -> None:
    curve = made.with_token("</script><script>alert(1)</script>")
    trace = dataclasses.replace(
        curve.trace, metadata={"model": "<script>m", "versions": {"<script>v": "1"}}
    )
    curve = dataclasses.replace(curve, trace=trace, ablation="<script>a")
    page = trace_report(curve, find_phases(curve))
    plain = trace_report(made.curve(), find_phases(made.curve()))
    tags = [tag for tag, _ in Page(page).tags]
    assert tags.count("script") == [tag for tag, _ in Page(plain).tags].count("script")
    assert "alert(1)" not in "".join(re.findall(r"<script[^>]*>(alert.*?)</script>", page))
    assert "</script><script>alert(1)</script>" in Page(page).text


@pytest.mark.parametrize("rows", [1, 3])
def test_few_sizes_without_controls_or_phases_make_a_page(rows: int) -> None:
    curve = made.bare(rows)
    page = trace_report(curve, find_phases(curve))
    text = Page(page).text
    assert "Controls, if they were run, are a random subgraph" in text
    assert "No head subgraph" in text
    assert ("needs two sizes" in text) == (rows == 1)
    assert tables(page)[-1]["random tv"].tolist() == ["–"] * rows


def test_the_title_is_the_text_of_the_prompt_cut_between_characters() -> None:
    curve = made.other_scripts()
    page = trace_report(curve, find_phases(curve))
    assert "<title>Trace of tiny-llama: \u2068日本 שלום 👩‍👩‍👧 e\u0301 is\u2069</title>" in page
    assert "<span>&lt;0xE6&gt;</span>" in page
    assert '<code>\u2068" שלום"\u2069</code>' in page

    prompt = dataclasses.replace(curve.trace.prompt, text=70 * "👩‍👩‍👧", strings=70 * ("<0xF0>",))
    long = dataclasses.replace(curve, trace=dataclasses.replace(curve.trace, prompt=prompt))
    assert trace_title(long) == f"Trace of tiny-llama: {59 * '👩‍👩‍👧'}…"
    nameless = dataclasses.replace(prompt, text="", strings=("a", "b"))
    bare = dataclasses.replace(curve, trace=dataclasses.replace(curve.trace, prompt=nameless))
    assert trace_title(bare) == "Trace of tiny-llama: a b"
