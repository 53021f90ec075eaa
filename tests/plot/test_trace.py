"""The drawing of a trace against the subgraphs it claims to draw."""

from __future__ import annotations

import re

import numpy as np
import plotly.graph_objects as go
import pytest

from strace_lens.plot.trace import plot_trace
from strace_lens.token_graph.edges import hook_name
from tests import tiny
from tests.plot import made

RANK = re.compile(r", rank (\d+)$")


def edge_texts(fig: go.Figure) -> set[str]:
    """Hover texts of the edges that a figure shows at first."""
    shown = [d for d in fig.data if d.visible and d.hoverinfo == "text" and d.name != "node"]
    return {text for item in shown for text in item.hovertext}


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])  # sequential, parallel
@pytest.mark.parametrize("heaviest", [1, 60, 333])
def test_edges_drawn_are_the_first_by_rank(name: str, heaviest: int) -> None:
    fig = plot_trace(made.curve(name).trace, heaviest)
    ranks = [int(RANK.search(text)[1]) for text in edge_texts(fig)]  # type: ignore[index]
    assert sorted(ranks) == list(range(heaviest))


def test_lines_join_the_end_points_of_each_edge() -> None:
    trace = made.curve().trace
    graph = trace.first(200).to_networkx()
    level = {hook_name(trace.shape, j): j for j in range(trace.shape.levels)}
    expected = {"residual": [], "attention": [], "MLP": []}
    for (source, s), (target, t), kind in graph.edges(data="kind"):
        expected[{"mlp": "MLP"}.get(kind, kind)].append((s, level[source], t, level[target]))
    drawn: dict[str, list] = {kind: [] for kind in expected}
    for item in plot_trace(trace, 200).data:
        if item.visible and item.mode == "lines" and item.x[0] is not None:
            paths = np.stack([item.x, item.y], 1).reshape(-1, 4, 2)
            assert np.isnan(paths[:, 3].astype(float)).all()  # a gap ends each edge
            ends = paths[:, [0, 2]].reshape(-1, 4).astype(int)
            drawn[item.name] += map(tuple, ends.tolist())
    assert {k: sorted(v) for k, v in drawn.items()} == {k: sorted(v) for k, v in expected.items()}


def test_hover_texts_name_hook_points_heads_and_tokens() -> None:
    trace = made.curve().trace
    texts = edge_texts(plot_trace(trace, 300))
    graph = trace.first(300).to_networkx()
    strings = trace.prompt.strings
    for (source, s), (target, t), edge in graph.edges(data=True):
        layer, rank = edge["layer"], edge["rank"]
        at = f'"{strings[s]}" ({s})'
        name = {
            "attention": f"blocks.{layer}.attn.hook_pattern head {edge['head']}: {at}"
            f' -> "{strings[t]}" ({t})',
            "residual": f"residual {source} -> {target}: {at}",
            "mlp": f"blocks.{layer}.hook_mlp_out: {at}",
        }[edge["kind"]]
        assert f"{name}, rank {rank}" in texts


def test_nodes_shown_are_those_of_the_subgraph() -> None:
    trace = made.curve().trace
    shown = [d for d in plot_trace(trace, 50).data if d.name == "node" and d.visible]
    nodes = [(hook_name(trace.shape, y), x) for d in shown for x, y in zip(d.x, d.y, strict=True)]
    assert len(set(nodes)) == len(nodes)
    assert set(nodes) == set(trace.first(50).to_networkx().nodes)
    hooks = {text.split(" at ")[0] for d in shown for text in d.hovertext}
    assert hooks == {hook for hook, _ in nodes}


def test_buttons_switch_between_numbers_of_edges() -> None:
    trace = made.curve().trace
    assert trace.edges > 333
    fig = plot_trace(trace, 333)
    (menu,) = fig.layout.updatemenus
    labels = [button.label for button in menu.buttons]
    assert labels == ["first 50", "first 200", "first 333", f"first {min(1000, trace.edges):,}"]
    assert menu.active == 2
    for button, count in zip(menu.buttons, (50, 200, 333, min(1000, trace.edges)), strict=True):
        (choice,) = button.args
        for item, shows in zip(fig.data, choice["visible"], strict=True):
            item.visible = shows
        assert len(edge_texts(fig)) == count


def test_every_token_and_the_output_are_labelled() -> None:
    fig = plot_trace(made.curve().trace)
    axis = fig.layout.xaxis
    assert list(axis.tickvals) == list(range(12))
    assert list(axis.ticktext) == tiny.PROMPT.split()
    assert fig.layout.yaxis.ticktext[0] == "blocks.0.hook_resid_pre"
    assert fig.layout.yaxis.ticktext[-1] == "blocks.2.hook_resid_post"
    output = made.named(fig, "output")
    assert (output.x[0], output.y[0]) == (11, 6)


def test_tokens_are_escaped_wherever_they_stand() -> None:
    fig = plot_trace(made.with_token(" <script>").trace)
    assert fig.layout.xaxis.ticktext[-1] == "·&lt;script&gt;"
    assert not any("<script>" in text for text in made.hovers(fig))
    assert any('" &lt;script&gt;" (11)' in text for text in made.hovers(fig))


def test_no_edges_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1; got 0"):
        plot_trace(made.curve().trace, 0)
