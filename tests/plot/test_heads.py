"""The grid of heads: each cell is its row of the table, and what cannot be drawn is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

import strace_lens as sl
from strace_lens.plot.style import DIVERGING, SCALE
from tests import tiny
from tests.cases import model_of
from tests.circuits.made import tiny_task
from tests.plot import made


def cells(fig: go.Figure) -> dict[tuple[int, int], float]:
    """What is drawn by layer and head, blank cells left out."""
    heat: Any = fig.data[0]
    grid = np.array(heat.z, dtype=float)
    return {
        (layer, head): grid[row, column]
        for row, layer in enumerate(heat.y)
        for column, head in enumerate(heat.x)
        if not math.isnan(grid[row, column])
    }


def of_table(table: pd.DataFrame, column: str) -> dict[tuple[int, int], float]:
    rows = zip(table["layer"], table["head"], table[column], strict=True)
    return {(int(layer), int(head)): float(value) for layer, head, value in rows}


@pytest.mark.parametrize("column", ["edges", "share_of_head", "importance", "share_of_importance"])
def test_a_trace_is_drawn_head_by_head(column: str) -> None:
    table = made.curve().trace.heads(0.3)
    fig = sl.plot_heads(table, column)
    assert cells(fig) == pytest.approx(of_table(table, column))
    assert len(cells(fig)) == len(table)
    assert fig.layout.xaxis.title.text == "head"
    assert fig.layout.yaxis.title.text == "layer"
    assert fig.layout.title.text == f"{column.replace('_', ' ').capitalize()} by head"
    assert fig.data[0].zmin == 0
    assert fig.data[0].zmax == pytest.approx(table[column].max())


def test_scores_and_circuits_are_drawn_too() -> None:
    found = sl.discover(model_of("gpt2"), tiny_task(2), "eap")
    scores = found.heads()
    for table, column in ((scores, "score"), (found.top(9).heads(), "edges")):
        assert cells(sl.plot_heads(table)) == pytest.approx(of_table(table, column))
    assert cells(sl.plot_heads(scores, "absolute_score")) == pytest.approx(
        of_table(scores, "absolute_score")
    )


def test_effects_of_ablations_are_drawn_with_zero_in_the_middle() -> None:
    table = sl.ablate(model_of("gpt2"), tiny_task(3), nodes="head")
    fig = sl.plot_heads(table)
    assert cells(fig) == pytest.approx(of_table(table, "effect"))
    assert table["effect"].min() < 0
    assert fig.data[0].zmax == -fig.data[0].zmin == pytest.approx(table["effect"].abs().max())
    assert [list(step) for step in fig.data[0].colorscale] == DIVERGING
    above = sl.plot_heads(table, "metric" if table["metric"].min() >= 0 else "edges")
    assert [list(step) for step in above.data[0].colorscale] == SCALE


def test_parts_of_a_logit_are_drawn_without_those_that_are_no_heads() -> None:
    model = model_of("llama")
    table = sl.logit_attribution(model, sl.token_graph(model, tiny.PROMPT), 5)
    heads = table[table["head"].notna()]
    fig = sl.plot_heads(table)
    assert cells(fig) == pytest.approx(of_table(heads, "contribution"))
    left_out = len(table) - len(heads)
    assert left_out > 1
    assert fig.layout.annotations[0].text == f"{left_out} rows of no single head left out"


def test_heads_that_the_table_lacks_are_blank_and_no_head_is_widened() -> None:
    table = pd.DataFrame({"layer": [3, 0], "head": [5, 1], "score": [2.0, -1.0]})
    fig = sl.plot_heads(table)
    assert cells(fig) == {(3, 5): 2.0, (0, 1): -1.0}
    assert list(fig.data[0].x) == list(range(6))
    assert list(fig.data[0].y) == list(range(4))
    assert fig.data[0].text[3][5] == "<b>a3.h5</b><br>score: 2"
    assert fig.data[0].text[2][2] == ""
    missing = sl.plot_heads(table.assign(score=[math.nan, -1.0]))
    assert cells(missing) == {(0, 1): -1.0}


def test_rows_of_no_head_are_left_out_and_counted() -> None:
    table = sl.ablate(model_of("gpt2"), tiny_task(2), nodes=["a1.h0", "m0", ["a0.h0", "m1"]])
    fig = sl.plot_heads(table)
    assert list(cells(fig)) == [(1, 0)]
    assert "<b>a1.h0</b><br>edges: " in fig.data[0].text[1][0]
    assert [note.text for note in fig.layout.annotations] == ["2 rows of no single head left out"]
    none = sl.plot_heads(table.iloc[1:])
    assert [note.text for note in none.layout.annotations] == ["there is no row to draw"]


def test_a_title_and_names_are_no_markup() -> None:
    table = pd.DataFrame({"layer": [0], "head": [0], "name": ["a0.h0<q>"], "<b>x": [1.0]})
    fig = sl.plot_heads(table, "<b>x", title="Mine")
    assert fig.layout.title.text == "Mine"
    assert fig.data[0].text[0][0] == "<b>a0.h0&lt;q&gt;</b><br>&lt;b&gt;x: 1"
    assert fig.data[0].colorbar.title.text == "&lt;b&gt;x"
    assert "<" not in sl.plot_heads(table, "<b>x").layout.title.text


GOOD = pd.DataFrame({"layer": [0, 1], "head": [0, 1], "score": [1.0, 2.0]})


@pytest.mark.parametrize(
    ("table", "column", "message"),
    [
        (GOOD.drop(columns="head"), None, "this one lacks head, it has layer, score"),
        (pd.DataFrame(), None, "lacks layer and head, it has none"),
        (GOOD, "effect", "no column 'effect' to draw; this table has layer, head, score"),
        (GOOD.rename(columns={"score": "mine"}), None, "name the column to draw"),
        (GOOD.assign(score="a"), None, "'score' holds no numbers"),
        (GOOD.assign(score=math.inf), None, "holds inf, which has no colour"),
        (GOOD.assign(head=-1), None, r"counted from 0; got -1"),
        (GOOD.assign(layer=0.5), None, r"counted from 0; got 0\.5"),
        (pd.concat([GOOD, GOOD[1:]]), None, r"head a1\.h1 has 2 rows; keep one"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    table: pd.DataFrame, column: str | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sl.plot_heads(table, column)
