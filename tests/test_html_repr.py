"""What a notebook shows of each result: escaped, small, and with its numbers."""

from __future__ import annotations

import pandas as pd

import strace_lens as sl
from strace_lens.html_repr import ROWS, facts
from tests import tiny
from tests.corpus import made as corpus
from tests.plots import made, made_comparison, made_trials


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
    trials = made_trials.trials()
    for shown, words in (
        (sl.token_graph(tiny.bridge("llama"), tiny.PROMPT), ["12 tokens", "France"]),
        (curve, [f"density {curve.density:.3f}", "0.001", "France"]),
        (curve.trace, [f"{curve.trace.edges:,} edges", "France"]),
        (curve.trace.subgraph(1.0), ["hook_resid_mid", "more rows"]),
        (curve.phases(), [curve.phases().describe()[:20]]),
        (task, [task.name, f"{len(task)} pairs"]),
        (result.scores, [result.scores.method, "embed"]),
        (result.scores.top(3), ["3 of", "embed"]),
        (result.faithfulness, [f"CPR {result.faithfulness.cpr:.3f}", "fraction"]),
        (comparison, [r.scores.method for r in comparison.results]),
        (run, ["3 prompts", "density"]),
        (trials, [*made_trials.NAMES, "density"]),
    ):
        text = shown._repr_html_()
        assert all(word in text for word in words), (shown, words)
        assert len(text) < 20_000
