"""What a notebook shows of each result: escaped, small, and with its numbers."""

from __future__ import annotations

import unicodedata

import pandas as pd
import pytest

import strace_lens as sl
from strace_lens.density.phases import find_phases
from strace_lens.density.traced import TracedPrompt
from strace_lens.utils.html_repr import ROWS, facts, isolated, short
from tests import tiny
from tests.corpus import made as corpus
from tests.plot import made, made_comparison


def test_text_is_escaped_cut_and_counted() -> None:
    table = pd.DataFrame({"text": ["<b>" + "x" * 500] * (ROWS + 3), "value": 1 / 3})
    shown = facts("a < b", table, ["<script>"] * 70)
    assert "<p>a &lt; b</p>" in shown
    assert "&lt;script&gt;" in shown
    assert "and 6 more</p>" in shown
    assert "<script>" not in shown
    assert "<b>" not in shown
    assert "x" * 100 not in shown
    assert "0.3333" in shown
    assert "and 3 more rows" in shown


def test_a_token_of_a_prompt_is_no_markup() -> None:
    curve = made.with_token("<img src=x>")
    for result in (curve, curve.trace, curve.trace.subgraph(0.3)):
        assert "<img" not in result._repr_html_()
        assert "&lt;img src=x&gt;" in result._repr_html_()


def test_every_result_says_what_it_holds_in_less_than_20_kb(tmp_path) -> None:
    curve = made.curve()
    task = made_comparison.task()
    comparison = made_comparison.comparison()
    result = comparison.results[0]
    run = sl.sweep(corpus.model(), corpus.prompts(3), tmp_path / "run", corpus.options())
    for shown, words in (
        (sl.token_graph(tiny.bridge("llama"), tiny.PROMPT), ["12 tokens", "France"]),
        (curve, [f"density {curve.density:.3f}", "0.001", "France"]),
        (curve.trace, [f"{curve.trace.edges:,} edges", "France"]),
        (curve.trace.subgraph(1.0), ["hook_resid_mid", "more rows"]),
        (find_phases(curve), [find_phases(curve).describe()[:20]]),
        (TracedPrompt(curve, find_phases(curve)), ["top token", "France"]),
        (task, [task.name, f"{len(task)} pairs"]),
        (result.scores, [result.scores.method, "embed"]),
        (result.scores.top(3), ["3 of", "embed"]),
        (result.faithfulness, [f"CPR {result.faithfulness.cpr:.3f}", "fraction"]),
        (comparison, [r.scores.method for r in comparison.results]),
        (run, ["3 prompts", "density"]),
    ):
        text = shown._repr_html_()
        assert all(word in text for word in words), (shown, words)
        assert len(text) < 20_000


FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467"  # one emoji of five code points
ACCENTED = "e\u0301"


@pytest.mark.parametrize("sign", ["a", "\u65e5", FAMILY, ACCENTED, "\U0001f1eb\U0001f1f7"])
def test_a_text_is_cut_between_what_a_reader_sees_as_characters(sign) -> None:
    assert short(9 * sign, 9) == 9 * sign
    assert short(10 * sign, 9) == 8 * sign + "\u2026"
    assert short(sign, 1) == sign


def test_only_right_to_left_scripts_are_isolated() -> None:
    for text in ("Rome", "\u65e5\u672c", FAMILY, "<0xE6>", ""):
        assert isolated(text) == text
    for text in ("\u05e9\u05dc\u05d5\u05dd", " \u0633\u0644\u0627\u0645", "a \u05d0 b"):
        shown = isolated(text)
        assert shown[1:-1] == text
        assert [unicodedata.bidirectional(sign) for sign in (shown[0], shown[-1])] == ["FSI", "PDI"]
