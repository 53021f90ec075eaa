"""The explorer driven in a real browser: what it shows is what the curve says."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page

import strace_lens as sl
from strace_lens.density.phases import find_phases
from strace_lens.report.trace import trace_report
from strace_lens.traces.edges import KINDS, edge_list, hook_name
from tests.browser import chromium, opened
from tests.plot import made
from tests.report.made import large_curve

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
def test_it_works_within_the_page_of_a_trace(browser, tmp_path) -> None:
    curve = made.curve()
    path = tmp_path / "trace.html"
    path.write_text(trace_report(curve, find_phases(curve)), encoding="utf-8")
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    errors: list[str] = []
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    frame = page.frame_locator("iframe")
    frame.locator("html[data-ready]").wait_for(timeout=30_000)
    frame.get_by_role("slider", name="Relative size s of the trace").press("End")
    assert frame.locator(".status").inner_text().startswith(f"s = 1: {curve.trace.edges} edges")
    context.close()
    assert errors == []
