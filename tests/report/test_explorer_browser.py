"""The explorer driven in a real browser: what it shows is what the curve says."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import networkx as nx
import pytest
from playwright.sync_api import Page

import strace_lens as sl
from strace_lens.density.phases import find_phases
from strace_lens.report.trace import trace_report
from strace_lens.traces.edges import edge_list, hook_name
from strace_lens.utils.choices import KINDS
from tests import tiny
from tests.browser import chromium, opened
from tests.plot import made
from tests.report.made import large_curve, large_lens

WIDTHS = (1280, 800)


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "one.html"
    path.write_text(sl.explorer([made.curve()]), encoding="utf-8")
    return path


def edges_by_rank(trace: sl.Trace) -> dict[int, tuple[int, ...]]:
    """(kind, layer, head, source level, source, target level, target) of every edge."""
    reach = trace.shape.reachable()
    columns = [c.tolist() for c in edge_list(trace.shape, reach)]
    ranks = [
        int(r) for tensor, there in zip(trace.ranks, reach, strict=True) for r in tensor[there]
    ]
    return dict(zip(ranks, zip(*columns, strict=True), strict=True))


def expected_lines(trace: sl.Trace, rank: int) -> list[str]:
    """What hovering the edge of a rank must say, but for its importance."""
    kind, layer, head, low, source, high, target = edges_by_rank(trace)[rank]
    hook = {
        "residual": "residual: residual stream",
        "attention": f"attention: blocks.{layer}.attn.hook_pattern, head {head}",
        "mlp": f"MLP: blocks.{layer}.hook_mlp_out",
    }[KINDS[kind]]
    strings = trace.prompt.strings
    return [
        hook,
        f'from "{strings[source]}" ({source}) at {hook_name(trace.shape, low)}',
        f'to "{strings[target]}" ({target}) at {hook_name(trace.shape, high)}',
    ]


def importance_of(trace: sl.Trace, rank: int) -> float:
    assert trace.importance is not None
    (index,) = (trace.ranks.flat() == rank).nonzero()[:, 0].tolist()
    return float(trace.importance.flat()[index])


def status(page: Page, panel: int = 0) -> str:
    return page.locator(".status").nth(panel).inner_text()


def predictions(page: Page, rows: str) -> list[list[str]]:
    """Token, model's and trace's probability of some rows of the table."""
    return [
        [
            row.locator("th").evaluate("e => e.firstChild.textContent"),
            *row.locator(".number").all_inner_texts(),
        ]
        for row in page.locator(f".prediction tbody {rows}").all()
    ]


@pytest.mark.extended
@pytest.mark.parametrize("width", WIDTHS)
def test_the_slider_moves_from_size_to_size_by_keys_and_pointer(browser, one, width) -> None:
    curve = made.curve()
    rows = zip(curve.table.to_dict("records"), curve.top_tokens, strict=True)
    with opened(browser, one, width) as page:
        slider = page.get_by_role("slider", name="Relative size s of the trace")
        slider.focus()
        page.keyboard.press("Home")
        for row, tokens in rows:
            assert status(page).startswith(f"s = {row['size']:.10g}: {row['edges']} edge")
            assert f"TV {row['tv']:.3f}" in status(page)
            assert slider.get_attribute("aria-valuetext") == status(page)
            assert predictions(page, "tr:not(.rest)") == [
                [b.token, f"{b.model:.3f}", f"{b.trace:.3f}"] for b in tokens
            ]
            parts = ["head" if b.head else "tail" for b in tokens]
            assert page.locator(".prediction tr:not(.rest) small").all_inner_texts() == parts
            for column in (1, 2):
                total = sum(float(line[column]) for line in predictions(page, "tr"))
                assert total == pytest.approx(1, abs=0.01)
            page.keyboard.press("ArrowRight")
        box = slider.bounding_box()
        page.mouse.click(box["x"] + 2, box["y"] + box["height"] / 2)
        assert status(page).startswith(f"s = {curve.table['size'][0]:.10g}:")
        page.get_by_role("button", name="Next larger size").click()
        assert status(page).startswith(f"s = {curve.table['size'][1]:.10g}:")


def inked(page: Page) -> int:
    """Pixels of the drawing that are not paper."""
    return page.evaluate(
        """() => { const c = document.querySelector(".layers canvas");
        return c.getContext("2d").getImageData(0, 0, c.width, c.height).data
          .filter((v, i) => i % 4 === 3 && v > 0).length; }"""
    )


@pytest.mark.extended
def test_more_is_drawn_as_s_grows_and_less_as_it_falls(browser, one) -> None:
    with opened(browser, one) as page:
        seen = []
        for size in (0.001, 0.1, 1.0, 0.1, 0.001):
            page.evaluate(f"explorer.pick({size})")
            page.wait_for_timeout(200)
            seen.append(inked(page))
        assert seen[0] < seen[1] < seen[2]
        assert seen[3:] == [seen[1], seen[0]]


@pytest.mark.extended
@pytest.mark.parametrize("width", WIDTHS)
def test_hover_names_the_edge_under_the_pointer(browser, one, width) -> None:
    trace = made.curve().trace
    with opened(browser, one, width) as page:
        page.evaluate("explorer.pick(0.03)")
        drawn = int(made.curve().table.set_index("size").loc[0.03, "edges"])
        for rank in range(drawn):
            x, y = page.evaluate(f"explorer.panels[0].graph.locate({rank})")
            page.mouse.move(x, y)
            lines = page.get_by_role("tooltip").inner_text().split("\n")
            found = re.fullmatch(rf"importance (\S+), rank {rank} of ([\d,]+)", lines[3])
            assert lines[:3] == expected_lines(trace, rank)
            assert found, lines
            assert float(found[1]) == pytest.approx(importance_of(trace, rank), rel=0.06)
            assert found[2] == f"{trace.edges:,}"
        page.mouse.move(5, 5)
        assert page.locator("#tip").is_hidden()


def test_a_click_lists_the_in_edges_of_a_node(browser, one) -> None:
    trace = made.curve().trace
    last = trace.shape.levels - 1
    token = trace.shape.tokens - 1
    entering = {
        rank
        for rank, (*_, level, target) in edges_by_rank(trace).items()
        if (level, target) == (last, token)
    }
    with opened(browser, one) as page:
        page.evaluate("explorer.pick(0.1)")
        x, y = page.evaluate(f"explorer.panels[0].graph.locateNode({token}, {last})")
        page.mouse.click(x, y)
        listed = page.locator(".in-edges")
        edges = int(made.curve().table.set_index("size").loc[0.1, "edges"])
        kept = sum(rank < edges for rank in entering)
        caption = listed.locator("caption").inner_text()
        assert f'{hook_name(trace.shape, last)} at "is" ({token})' in caption
        assert f"{kept} of {len(entering)} edges into it in the trace" in caption
        rows = [row.locator("td, th").all_inner_texts() for row in listed.locator("tbody tr").all()]
        assert {int(row[4]) for row in rows} == entering
        assert [row[5] == "yes" for row in rows] == [int(row[4]) < edges for row in rows]
        importances = [importance_of(trace, int(row[4])) for row in rows]
        assert importances == sorted(importances, reverse=True)


def test_the_keyboard_walks_over_the_nodes_and_is_heard(browser, one) -> None:
    shape, strings = made.curve().trace.shape, made.curve().trace.prompt.strings
    with opened(browser, one) as page:
        page.locator(".marks").focus()
        said = page.locator("#said")
        for key, token, level in (
            ("ArrowUp", shape.tokens - 1, shape.levels - 1),  # the first key finds the output
            ("ArrowLeft", shape.tokens - 2, shape.levels - 1),
            ("ArrowDown", shape.tokens - 2, shape.levels - 2),
            ("ArrowRight", shape.tokens - 1, shape.levels - 2),
        ):
            page.keyboard.press(key)
            name = f'{hook_name(shape, level)} at "{strings[token]}" ({token})'
            assert said.inner_text().startswith(name)
        page.keyboard.press("Escape")
        assert "Click a node" in page.locator(".in-edges").inner_text()


def test_results_stand_side_by_side_and_move_together(browser, tmp_path) -> None:
    path = tmp_path / "two.html"
    no_importance = dataclasses.replace(made.curve("gpt2").trace, importance=None)
    other = dataclasses.replace(made.curve("gpt2"), trace=no_importance)
    path.write_text(sl.explorer([made.curve(), other], most_edges=400), encoding="utf-8")
    with opened(browser, path) as page:
        page.evaluate("explorer.pick(1)")
        for panel, curve in enumerate((made.curve(), other)):
            assert f"{curve.trace.edges:,} edges" in status(page, panel)
            assert "(the first 200 are drawn)" in status(page, panel)
        boxes = [p.bounding_box() for p in page.locator(".panel").all()]
        assert boxes[0]["y"] == boxes[1]["y"]
        page.evaluate("explorer.pick(0.1)")
        x, y = page.evaluate("explorer.panels[1].graph.locate(0)")
        page.mouse.move(x, y)
        assert "importance not kept, rank" in page.get_by_role("tooltip").inner_text()


OVERFLOWING = """() => {
  const outside = [];
  for (const e of document.querySelectorAll("body *")) {
    const style = getComputedStyle(e), box = e.getBoundingClientRect();
    if (!box.width || e.classList.contains("unseen")) continue;
    if (e instanceof SVGTextElement) {
      const around = e.ownerSVGElement.getBoundingClientRect();
      if (box.left < around.left - 1 || box.right > around.right + 1) outside.push(e.textContent);
    } else if (!(e instanceof SVGElement) && style.overflowX === "visible"
        && e.scrollWidth > e.clientWidth + 1 && e.clientWidth && !e.closest(".drawing")) {
      outside.push(e.tagName + " " + e.textContent.slice(0, 60));
    }
  }
  if (document.documentElement.scrollWidth > innerWidth) outside.push("the page");
  return outside;
}"""


@pytest.mark.extended
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_text_overflows(browser, tmp_path, width, scheme) -> None:
    path = tmp_path / "large.html"
    long = made.with_token("Donaudampfschifffahrtsgesellschaftskapitän" * 5)
    path.write_text(sl.explorer([large_curve(), long]), encoding="utf-8")
    with opened(browser, path, width, scheme) as page:
        for size in (0.01, 1):
            page.evaluate(f"explorer.pick({size})")
            page.locator(".marks").first.focus()
            page.keyboard.press("ArrowLeft")
            page.locator("summary").first.click()
            assert page.evaluate(OVERFLOWING) == []


def test_the_theme_follows_the_system_and_the_button(browser, one) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    with opened(browser, one, scheme="dark") as page:
        dark = page.evaluate(paper)
        button = page.get_by_role("button", name="Dark")
        assert button.get_attribute("aria-pressed") == "true"
        button.click()
        assert button.get_attribute("aria-pressed") == "false"
        light = page.evaluate(paper)
    assert (dark, light) == ("rgb(21, 23, 28)", "rgb(255, 255, 255)")


def test_a_page_whose_data_is_torn_says_so(browser, one, tmp_path) -> None:
    torn = tmp_path / "torn.html"
    text = one.read_text(encoding="utf-8")
    torn.write_text(re.sub(r'"order": "[^"]{20}', '"order": "', text), encoding="utf-8")
    page = browser.new_page()
    page.goto(torn.as_uri())
    page.wait_for_selector("#notice:not([hidden])")
    assert "could not be shown" in page.locator("#notice").inner_text()
    page.close()


@pytest.mark.extended
def test_tokens_of_other_scripts_are_cut_and_isolated(browser, tmp_path) -> None:
    family, hebrew = "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\u05e9\u05dc\u05d5\u05dd"
    for token, shown in (
        (50 * family, 39 * family + "\u2026"),
        (40 * family, 40 * family),
        (hebrew, f"\u2068{hebrew}\u2069"),
    ):
        path = tmp_path / "page.html"
        path.write_text(sl.explorer([made.with_token(token)]), encoding="utf-8")
        with opened(browser, path) as page:
            assert page.locator(".tokens span").last.text_content() == shown
            assert ("\u2068" in status(page)) == (token == hebrew)


@pytest.mark.extended
@pytest.mark.parametrize("width", WIDTHS)
def test_it_works_within_the_page_of_a_trace(browser, tmp_path, width) -> None:
    curve = large_curve(12)  # of thirty layers
    path = tmp_path / "trace.html"
    path.write_text(trace_report(curve, find_phases(curve)), encoding="utf-8")
    context = browser.new_context(viewport={"width": width, "height": 900})
    page = context.new_page()
    errors: list[str] = []
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    frame = page.frame_locator("iframe")
    frame.locator("html[data-ready]").wait_for(timeout=30_000)
    frame.get_by_role("slider", name="Relative size s of the trace").press("End")
    assert frame.locator(".status").inner_text().startswith(f"s = 1: {curve.trace.edges:,} edges")
    # The frame is as high as the explorer, which says nothing that the page around it says.
    html, outer = frame.locator("html"), page.locator("iframe").bounding_box()
    frame.locator(".in-edges").wait_for()
    page.wait_for_function(
        "() => { const f = document.querySelector('iframe'), inner = f.contentDocument;"
        " return f.clientHeight === inner.body.offsetHeight; }"
    )
    assert html.evaluate("e => [e.scrollHeight > e.clientHeight, e.scrollWidth > innerWidth]") == [
        False,
        False,
    ]
    drawing = frame.locator(".layers").bounding_box()
    assert outer["y"] < drawing["y"] < 900
    assert frame.locator("h1").is_hidden()
    assert frame.locator(".tokens").is_hidden()
    assert page.evaluate("document.documentElement.scrollHeight") < 6000
    page.evaluate("window.scrollBy(0, 600)")
    slider = frame.get_by_role("slider", name="Relative size s of the trace")
    page.wait_for_timeout(100)
    assert slider.bounding_box()["y"] >= 0  # it stays in sight
    context.close()
    assert errors == []


def shown(page: Page, panel: int = 0) -> set[int]:
    """Ranks of the edges that the filters leave."""
    return set(page.evaluate(f"Array.from(explorer.panels[{panel}].graph.shown())"))


def test_it_opens_at_a_size_that_can_be_read(browser, one) -> None:
    curve = made.curve()
    few = curve.table[(curve.table["edges"] > 0) & (curve.table["edges"] <= 400)]
    with opened(browser, one) as page:
        top1, edges = curve.table["top1"].to_numpy(), curve.table["edges"].tolist()
        agrees = [edges[i] for i in range(len(top1)) if top1[i:].all() and edges[i]]
        expected = min(int(few["edges"].max()), agrees[0])
        assert f": {expected:,} edge" in status(page)


def test_pins_of_one_name_are_a_group_and_paths_between_groups_are_counted(browser, one) -> None:
    trace = made.curve().trace
    edges = int(made.curve().table.set_index("size").loc[0.2, "edges"])
    known = {rank: edge for rank, edge in edges_by_rank(trace).items() if rank < edges}
    graph = nx.DiGraph()
    for _, _, _, low, source, high, target in known.values():
        graph.add_edge((low, source), (high, target))
    # Two nodes that edges enter, in different layers, and the output.
    tokens, top = trace.shape.tokens, max(edge[5] for edge in known.values())
    ends = sorted({(edge[5], edge[6]) for edge in known.values() if edge[5] < top})
    low, *_, high = (node for node in ends if nx.has_path(graph, node, (top, tokens - 1)))
    groups = {"start": [low, high], "end": [(top, tokens - 1)]}

    def between(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> list[int]:
        above = set(some).union(*(nx.descendants(graph, node) for node in some))
        below = set(others).union(*(nx.ancestors(graph, node) for node in others))
        return [
            rank
            for rank, (_, _, _, one, source, other, target) in known.items()
            if (one, source) in above and (other, target) in below
        ]

    with opened(browser, one) as page:
        page.evaluate("explorer.pick(0.2)")
        for name, nodes in groups.items():
            for level, token in nodes:
                click_node(page, token, level)
                page.get_by_role("button", name="Pin the node").click()
                page.locator(".pins li:last-child input").fill(name)
        table = page.locator(".links table")
        (row,) = cells(table)
        with page.expect_download() as saved:
            page.get_by_role("button", name="Save JSON").click()
        links = json.loads(Path(saved.value.path()).read_text(encoding="utf-8"))["links"]
        assert (
            "Pins that are given the same name are a group." in page.locator(".links").inner_text()
        )
    ranks = between(groups["start"], groups["end"])
    assert 0 < len(ranks) < edges
    assert [(link["from"], link["to"], sorted(link["ranks"])) for link in links] == [
        ("start", "end", sorted(ranks))
    ]
    counts = [sum(known[rank][0] == kind for rank in ranks) for kind in (1, 2, 0)]
    assert row[:2] == ["start", "end"]
    assert [int(text) for text in row[2:-1]] == counts[: 3 if trace.shape.mlp else 1]
    best = max((r for r in ranks if known[r][0]), key=lambda r: importance_of(trace, r))
    kind, layer, head, *_ = known[best]
    assert row[-1] == f"L{layer} {'MLP' if kind == 2 else f'H{head}'}"


@pytest.mark.parametrize("through", [30, 60, 120])
def test_only_paths_through_a_node_are_left(browser, one, through) -> None:
    trace = made.curve().trace
    *_, level, token = edges_by_rank(trace)[through]  # where that edge ends
    edges = int(made.curve().table.set_index("size").loc[0.2, "edges"])
    known = {rank: edge for rank, edge in edges_by_rank(trace).items() if rank < edges}
    graph = nx.DiGraph()
    graph.add_node((level, token))
    for rank, (_, _, _, low, source, high, target) in known.items():
        graph.add_edge((low, source), (high, target), rank=rank)
    reached = {(level, token), *nx.descendants(graph, (level, token))}
    behind = {(level, token), *nx.ancestors(graph, (level, token))}
    expected = {
        rank
        for rank, (_, _, _, low, source, high, target) in known.items()
        if (low, source) in reached or (high, target) in behind
    }
    with opened(browser, one) as page:
        page.evaluate("explorer.pick(0.2)")
        assert shown(page) == set(known)
        x, y = page.evaluate(f"explorer.panels[0].graph.locateNode({token}, {level})")
        page.mouse.click(x, y)
        page.get_by_label("Only paths through the chosen node").check()
        assert shown(page) == expected
        assert through in expected
        page.get_by_role("button", name="Clear filters").click()
        assert shown(page) == set(known)


def test_the_grid_counts_the_edges_of_each_head_and_selects_them(browser, one) -> None:
    trace = made.curve().trace
    edges = int(made.curve().table.set_index("size").loc[0.2, "edges"])
    cells: dict[tuple[int, str, int], set[int]] = {}
    for rank, (kind, layer, head, *_) in edges_by_rank(trace).items():
        if rank < edges:
            cells.setdefault((layer, KINDS[kind], head), set()).add(rank)
    heads = trace.shape.heads
    with opened(browser, one) as page:
        page.evaluate("explorer.pick(0.2)")
        for layer in range(trace.shape.layers):
            columns = [("attention", head) for head in range(heads)]
            for column, (kind, head) in enumerate([*columns, ("mlp", -1), ("residual", -1)]):
                count = page.evaluate(f"explorer.panels[0].heads.count({layer}, {column})")
                assert count == len(cells.get((layer, kind, head), ()))
        x, y = page.evaluate("explorer.panels[0].heads.locate(1, 2)")
        page.mouse.move(x, y)
        tip = page.get_by_role("tooltip").inner_text()
        whole = int(trace.shape.reachable().attention[1, 2].sum())
        assert tip.startswith(f"L1 H2: {len(cells[1, 'attention', 2])} of {whole} edges")
        page.mouse.click(x, y)
        assert shown(page) == cells[1, "attention", 2]
        grid = page.locator("canvas.heads")
        grid.focus()
        page.keyboard.press("ArrowUp")  # the last layer's first head
        page.keyboard.press("Enter")
        last = trace.shape.layers - 1
        assert shown(page) == cells[1, "attention", 2] | cells.get((last, "attention", 0), set())
        assert page.locator("#said").inner_text().startswith(f"L{last} H0: ")
        page.keyboard.press("Escape")
        assert len(shown(page)) == edges


def test_the_threshold_leaves_the_important_edges(browser, one) -> None:
    trace = made.curve().trace
    with opened(browser, one) as page:
        page.evaluate("explorer.pick(0.2)")
        before = shown(page)
        slider = page.get_by_role("slider", name="Importance at least")
        slider.focus()
        slider.evaluate("e => { e.value = 190; e.dispatchEvent(new Event('input')); }")
        least = page.evaluate("Number(new URLSearchParams(explorer.fragment()).get('least'))")
        kept = shown(page)
        assert 0 < len(kept) < len(before)
        for rank in before:
            importance = importance_of(trace, rank)
            if abs(importance / least - 1) > 0.01:  # packed with eight bits
                assert (rank in kept) == (importance >= least)


def test_bundles_hold_the_edges_of_a_kind_layer_and_pair_of_tokens(browser, one) -> None:
    curve = made.curve()
    edges = int(curve.table.set_index("size").loc[0.4, "edges"])
    together: dict[tuple[int, ...], int] = {}
    for rank, (kind, _, _, low, source, _, target) in edges_by_rank(curve.trace).items():
        if rank < edges:
            key = (kind, low, source, target)
            together[key] = together.get(key, 0) + 1
    with opened(browser, one) as page:
        page.evaluate("explorer.pick(0.4)")
        assert f"{edges} edges, drawn one by one" in page.locator(".drawn").inner_text()
        page.get_by_role("combobox", name="Draw").select_option("bundles")
        bundles = page.evaluate(
            """() => { const { items } = explorer.panels[0].graph.view();
            return items.first.map((_, i) =>
              ["kind", "level", "source", "target", "number"].map((name) => items[name][i])); }"""
        )
        assert {tuple(bundle[:4]): bundle[4] for bundle in bundles} == together
        said = page.locator(".drawn").inner_text()
        assert f"{len(together)} bundles of {edges} edges" in said
        heavy = max(range(len(bundles)), key=lambda i: bundles[i][4])
        x, y = page.evaluate(f"explorer.panels[0].graph.locate({heavy})")
        page.mouse.move(x, y)
        assert " attention edges: blocks." in page.get_by_role("tooltip").inner_text()


@pytest.mark.extended
def test_more_edges_than_can_be_told_apart_are_bundled(browser, tmp_path) -> None:
    path = tmp_path / "large.html"
    path.write_text(sl.explorer([large_curve()]), encoding="utf-8")
    with opened(browser, path) as page:
        assert "drawn one by one" in page.locator(".drawn").inner_text()
        page.evaluate("explorer.pick(1)")
        assert "The 1,500 heaviest of" in page.locator(".drawn").inner_text()


def ways_page(folder: Path) -> Path:
    curve = made.curve()
    early = dataclasses.replace(curve, table=curve.table.assign(tv=curve.table["tv"] / 2))
    path = folder / "ways.html"
    path.write_text(sl.explorer([curve, early], names=["as defined", "halved"]), encoding="utf-8")
    return path


def test_curves_are_switched_in_one_place_and_keep_what_was_chosen(browser, tmp_path) -> None:
    tv = made.curve().table.set_index("size").loc[0.1, "tv"]
    with opened(browser, ways_page(tmp_path)) as page:
        page.evaluate("explorer.pick(0.1)")
        x, y = page.evaluate("explorer.panels[0].heads.locate(1, 2)")
        page.mouse.click(x, y)
        before = shown(page)
        assert page.locator(".panel:visible").count() == 1
        assert f"TV {tv:.3f}" in status(page)
        page.get_by_label("halved").check()
        assert page.locator(".panel:visible").count() == 1
        assert f"TV {tv / 2:.3f}" in status(page, 1)
        assert shown(page, 1) == before


def test_the_phases_are_marked_under_the_slider(browser, one) -> None:
    phases = find_phases(made.curve()).along_sizes
    with opened(browser, one) as page:
        marks = page.locator("#phases .phase")
        assert marks.locator("b").all_text_contents() == [phase.name for phase in phases]
        box = page.locator("#phases").bounding_box()
        logs = [math.log10(s) for s in made.curve().table["size"]]
        for mark, phase in zip(marks.all(), phases, strict=True):
            at = (math.log10(phase.start) - logs[0]) / (logs[-1] - logs[0])
            assert mark.bounding_box()["x"] == pytest.approx(box["x"] + at * box["width"], abs=1)


def test_a_link_shows_again_what_was_chosen(browser, tmp_path) -> None:
    path = ways_page(tmp_path)
    with opened(browser, path) as page:
        page.get_by_label("halved").check()
        page.evaluate("explorer.pick(0.2)")
        x, y = page.evaluate("explorer.panels[1].graph.locateNode(5, 3)")
        page.mouse.click(x, y)
        visible = page.locator(".panel:visible")
        visible.get_by_role("button", name="Pin the node").click()
        visible.get_by_label("Name of").fill("naïve & <b>bold</b>")
        visible.get_by_label("Only paths through the chosen node").check()
        before, said = shown(page, 1), status(page, 1)
        page.wait_for_timeout(600)
        link = page.url
        assert page.evaluate("explorer.fragment().toString()") == link.partition("#")[2]
    again = browser.new_page()
    again.goto(link)
    again.wait_for_selector("html[data-ready]")
    assert status(again, 1) == said
    assert shown(again, 1) == before
    named = again.locator(".panel:visible").get_by_label("Name of")
    assert named.input_value() == "naïve & <b>bold</b>"
    again.close()


@pytest.mark.parametrize(
    "fragment",
    ["s=x&node=99.99&heads=7.1+a&least=-3&curve=8&pin=1", "s=0&through=1&draw=all", "%%%"],
)
def test_a_link_that_does_not_fit_is_left_aside(browser, one, fragment) -> None:
    with opened(browser, one) as page:
        first = status(page)
    page = browser.new_page()
    page.goto(f"{one.as_uri()}#{fragment}")
    page.wait_for_selector("html[data-ready]")
    assert status(page) == first
    assert page.locator("#notice").is_hidden()
    page.close()


def test_the_drawing_is_saved_as_svg_and_json(browser, one) -> None:
    trace = made.curve().trace
    with opened(browser, one) as page:
        page.evaluate("explorer.pick(0.1)")
        x, y = page.evaluate("explorer.panels[0].graph.locateNode(5, 3)")
        page.mouse.click(x, y)
        page.get_by_role("button", name="Pin the node").click()
        files = {}
        for name in ("Save SVG", "Save JSON"):
            with page.expect_download() as saved:
                page.get_by_role("button", name=name).click()
            files[name] = Path(saved.value.path()).read_text(encoding="utf-8")
    drawing = ElementTree.fromstring(files["Save SVG"])
    edges = int(made.curve().table.set_index("size").loc[0.1, "edges"])
    paths = [e.get("d", "") for e in drawing if e.tag.endswith("path")]
    assert sum(path.count("M") for path in paths) == edges
    found = json.loads(files["Save JSON"])
    pin = f"{trace.prompt.strings[5]}"
    assert found["pins"][0]["token"] == pin
    assert found["pins"][0]["hook"] == hook_name(trace.shape, 3)
    known = edges_by_rank(trace)
    assert len(found["edges"]) == edges
    for edge in found["edges"]:
        kind, layer, head, low, source, high, target = known[edge["rank"]]
        assert (edge["kind"], edge["layer"]) == (KINDS[kind], layer)
        assert edge["head"] == (None if head < 0 else head)
        assert edge["from"]["hook"] == hook_name(trace.shape, low)
        assert edge["to"]["position"] == target
        assert (edge["from"]["position"], edge["to"]["hook"]) == (
            source,
            hook_name(trace.shape, high),
        )


def cells(table) -> list[list[str]]:
    """The texts of the cells of a table's body."""
    rows = table.locator("tbody tr").all()
    return [row.locator("th, td").all_inner_texts() for row in rows]


def number(text: str) -> float:
    """A number with its sign, as the page writes it."""
    return float(text.replace("−", "-"))


@pytest.fixture(scope="module")
def read(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "read.html"
    path.write_text(sl.explorer([made.curve()], lenses=[made.lens()]), encoding="utf-8")
    return path


def click_node(page: Page, token: int, level: int) -> None:
    x, y = page.evaluate(f"explorer.panels[0].graph.locateNode({token}, {level})")
    page.mouse.click(x, y)


@pytest.mark.extended
def test_a_node_says_what_it_promotes_and_what_is_written_into_it(browser, read) -> None:
    lens, model = made.lens(), tiny.bridge("llama")
    graph = sl.token_graph(model, tiny.PROMPT)
    table = sl.readout(model, graph, tokens=3)
    parts = sl.logit_attribution(model, graph).set_index("name")["contribution"]
    last, level = lens.shape.tokens - 1, 3  # behind the heads of layer 1
    with opened(browser, read) as page:
        click_node(page, last, level)
        node = table[table["name"] == hook_name(lens.shape, level)]
        said = cells(page.locator(".said"))
        assert [float(row[1]) for row in said] == pytest.approx(node["value"].tolist(), abs=6e-4)
        assert [row[0].replace("·", " ") for row in said] == node["token"].tolist()
        rows = {row[0]: row for row in cells(page.locator(".writers"))}
        assert set(rows) == {f"L1 H{head}" for head in range(lens.shape.heads)}
        for head in range(lens.shape.heads):
            assert number(rows[f"L1 H{head}"][1]) == pytest.approx(parts[f"a1.h{head}"], rel=0.02)
        heads = [row for row in cells(page.locator(".in-edges table")) if row[0] == "attention"]
        assert sum(number(row[-1]) for row in heads) == pytest.approx(
            sum(parts[f"a1.h{head}"] for head in range(lens.shape.heads)), abs=0.02
        )
        click_node(page, 2, level)
        assert "by way of later heads alone" in page.locator(".readout").inner_text()
        assert page.locator(".writers").count() == 0
        page.keyboard.press("Escape")
        assert page.locator(".readout").inner_text() == ""


def test_a_head_shows_its_attention_and_what_it_writes(browser, read) -> None:
    lens = made.lens()
    with opened(browser, read) as page:
        assert page.locator(".pattern").inner_text() == ""
        x, y = page.evaluate("explorer.panels[0].heads.locate(1, 2)")
        page.mouse.click(x, y)
        assert page.locator(".pattern h3").inner_text() == "L1 H2"
        row = lens.pattern[1, 2, -1]
        keys = [int(text) for text in page.locator(".attended small").all_inner_texts()]
        assert keys[0] == int(row.argmax())
        rows = cells(page.locator(".attended"))
        for key, (_, attention, adds) in zip(keys, rows, strict=True):
            assert float(attention) == pytest.approx(float(row[key]), abs=5e-3)
            assert number(adds) == pytest.approx(float(lens.heads[1, 2, key]), rel=0.06, abs=1e-6)
        canvas = page.locator(".pattern canvas")
        assert "L1 H2" in (canvas.get_attribute("aria-label") or "")
        canvas.scroll_into_view_if_needed()
        page.mouse.move(*page.evaluate("explorer.panels[0].pattern.locate(9, 4)"))
        lines = page.get_by_role("tooltip").inner_text().split("\n")
        strings = lens.prompt.strings
        assert lines[:2] == [f'from "{strings[9]}" (9)', f'to "{strings[4]}" (4)']
        shown = float(lines[2].removeprefix("attention "))
        assert shown == pytest.approx(float(lens.pattern[1, 2, 9, 4]), abs=0.01)
        grid = page.locator("canvas.heads")
        grid.focus()
        page.keyboard.press("Escape")
        assert page.locator(".pattern").inner_text() == ""


def test_a_page_says_why_its_nodes_are_not_read(browser, tmp_path) -> None:
    path = tmp_path / "page.html"
    why = "What nodes and heads promote is not shown: <b>the norm</b> does not give the logits."
    path.write_text(sl.explorer([made.curve()], lenses=[why]), encoding="utf-8")
    with opened(browser, path) as page:
        click_node(page, 5, 3)
        assert page.locator(".readout").inner_text() == why
        assert "adds to" not in page.locator(".in-edges").inner_text()


@pytest.mark.extended
@pytest.mark.parametrize("width", WIDTHS)
def test_no_readout_overflows(browser, tmp_path, width) -> None:
    path = tmp_path / "large.html"
    path.write_text(sl.explorer([large_curve()], lenses=[large_lens()]), encoding="utf-8")
    with opened(browser, path, width) as page:
        click_node(page, 63, 59)
        page.locator("canvas.heads").scroll_into_view_if_needed()
        x, y = page.evaluate("explorer.panels[0].heads.locate(12, 2)")
        page.mouse.click(x, y)
        assert page.locator(".writers").count() == page.locator(".attended").count() == 1
        assert page.evaluate(OVERFLOWING) == []
