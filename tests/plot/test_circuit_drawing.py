"""The drawing of a circuit against the circuit: its edges, their order, and their ends."""

from __future__ import annotations

import dataclasses
import html
import re

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from strace_lens.circuits.circuit import Circuit, circuit_of_edges, empty_circuit
from strace_lens.circuits.graph import ComponentGraph, node_of
from strace_lens.circuits.scores import Scores
from strace_lens.plot.circuit_drawing import COLOUR, input_of, plot_circuits

GRAPHS = {
    "heads": ComponentGraph("m", layers=3, heads=4, kv_heads=4),
    "grouped": ComponentGraph("m", layers=2, heads=4, kv_heads=2),
    "parallel": ComponentGraph("m", layers=2, heads=2, kv_heads=2, parallel=True),
    "attention only": ComponentGraph("m", layers=2, heads=3, kv_heads=3, mlp=False),
}
HOVER = re.compile(r"<b>(.+)</b><br>(?:score|weight) (\S+), rank (\d+)")


def scores_of(graph: ComponentGraph, seed: int = 0) -> Scores:
    values = torch.randn(graph.exists.shape, generator=torch.Generator().manual_seed(seed))
    return Scores(graph, values * graph.exists, "made-up")


def plot_circuit(circuit: Circuit, scores: Scores | None = None, most: int = 300) -> go.Figure:
    """One circuit, named after its method."""
    return plot_circuits({str(circuit.metadata.get("method", "")): (circuit, scores)}, most)


def text_of(title: str) -> str:
    return re.sub("<[^>]*>", "", title.replace("<br>", ", "))


def shown(fig: go.Figure) -> list:
    return [item for item in fig.data if item.visible]


def ranked(fig: go.Figure) -> list[str]:
    """Names of the edges drawn, by rank."""
    found = {}
    for item in shown(fig):
        for text in item.hovertext or () if item.name == "edge" else ():
            name, _, rank = HOVER.match(text).groups()  # type: ignore[union-attr]
            found[int(rank)] = html.unescape(name)
    assert sorted(found) == list(range(1, len(found) + 1))
    return [found[rank] for rank in sorted(found)]


def by_score(circuit: Circuit, scores: Scores, absolute: bool = True) -> list[str]:
    """The same by a plain sort."""
    graph = circuit.graph

    def worth(name: str) -> float:
        value = float(scores.values[graph.parse_edge(name)])
        return -abs(value) if absolute else -value

    return sorted(circuit.edge_names(), key=worth)


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("most", [1, 9, 500])
def test_edges_drawn_are_the_strongest_in_their_order(name: str, most: int) -> None:
    scores = scores_of(GRAPHS[name])
    circuit = scores.top(20)
    fig = plot_circuit(circuit, scores, most)
    assert ranked(fig) == by_score(circuit, scores)[:most]
    left = f", the {most} strongest drawn" if most < 20 else ""
    assert text_of(fig.layout.title.text) == f"made-up, 20 of {scores.edges} edges{left}"


@pytest.mark.parametrize("name", GRAPHS)
def test_lines_join_the_two_nodes_of_each_edge_in_the_colour_of_its_input(name: str) -> None:
    graph = GRAPHS[name]
    scores = scores_of(graph)
    fig = plot_circuit(scores.top(30), scores)
    (nodes,) = [item for item in shown(fig) if item.name == "node"]
    where = {
        text.split("</b>")[0].removeprefix("<b>"): np.array([x, y])
        for text, x, y in zip(nodes.hovertext, nodes.x, nodes.y, strict=True)
    }
    drawn = []
    for item in shown(fig):
        if item.mode == "lines" and item.x[0] is not None:
            path = np.stack([item.x, item.y], 1).astype(float)
            for one in np.split(path, np.flatnonzero(np.isnan(path[:, 0])) + 1)[:-1]:
                drawn.append((item.line.color, one[0], one[-2]))
                assert (np.diff(one[:-1, 1]) > 0).all()  # always upwards
    expected = []
    for edge in scores.top(30).edge_names():
        source, _, destination = edge.partition("->")
        ends = where[source], where[node_of(destination)]
        expected.append((COLOUR[input_of(destination)], *ends))

    def key(one) -> tuple:
        return (one[0], *np.round([*one[1], one[2][1]], 3))

    for (colour, start, stop), (wanted, source, reader) in zip(
        sorted(drawn, key=key), sorted(expected, key=key), strict=True
    ):
        assert colour == wanted
        assert start == pytest.approx(source, abs=1e-5)
        assert stop[1] == pytest.approx(reader[1], abs=1e-5)
    ends = sorted((round(float(o[2][1]), 3), float(o[2][0])) for o in drawn)
    readers = sorted((round(float(o[2][1]), 3), float(o[2][0])) for o in expected)
    assert np.array(ends)[:, 1] == pytest.approx(np.array(readers)[:, 1], abs=0.06)


def test_edges_that_hurt_are_dotted_and_rank_by_magnitude_where_the_circuit_does() -> None:
    graph = GRAPHS["heads"]
    scores = scores_of(graph)
    circuit = scores.top(12, absolute=True)
    fig = plot_circuit(circuit, scores)
    assert ranked(fig) == by_score(circuit, scores, absolute=True)
    lines = [item for item in shown(fig) if item.mode == "lines" and item.x[0] is not None]
    dotted = sum(np.isnan(item.x).sum() for item in lines if item.line.dash == "dot")
    assert dotted == sum(float(scores.values[graph.parse_edge(e)]) < 0 for e in ranked(fig)) > 0


def test_without_scores_the_weights_rank() -> None:
    graph = GRAPHS["heads"]
    keep = torch.zeros(graph.exists.shape)
    for weight, name in ((0.2, "embed->m0"), (0.9, "m0->logits"), (0.5, "a0.h1->a1.h0<q>")):
        keep[graph.parse_edge(name)] = weight
    fig = plot_circuit(Circuit(graph, keep))
    assert ranked(fig) == ["m0->logits", "a0.h1->a1.h0<q>", "embed->m0"]
    assert text_of(fig.layout.title.text).startswith("Circuit, 3 of ")


def test_nodes_count_the_edges_of_the_whole_circuit() -> None:
    graph = GRAPHS["heads"]
    names = ["embed->m0", "embed->a1.h0<q>", "m0->a1.h0<k>", "a1.h0->logits"]
    fig = plot_circuit(circuit_of_edges(graph, names), most=2)
    (nodes,) = [item for item in shown(fig) if item.name == "node"]
    counts = dict(text.removeprefix("<b>").split("</b><br>") for text in nodes.hovertext)
    assert counts["embed"] == "0 edges in, 2 out"
    full = plot_circuit(circuit_of_edges(graph, names))
    (nodes,) = [item for item in shown(full) if item.name == "node"]
    counts = dict(text.removeprefix("<b>").split("</b><br>") for text in nodes.hovertext)
    assert counts == {
        "embed": "0 edges in, 2 out",
        "m0": "1 edges in, 1 out",
        "a1.h0": "2 edges in, 1 out",
        "logits": "1 edges in, 0 out",
    }
    assert [text.strip() for text in nodes.text] == [f"<b>{name}</b>" for name in counts]


def test_edges_at_several_positions_are_drawn_once() -> None:
    graph = GRAPHS["heads"]
    values = torch.zeros(*graph.exists.shape, 3)
    values[graph.parse_edge("embed->m0")] = torch.tensor([1.0, 2.0, 0.0])
    values[graph.parse_edge("m0->logits")] = torch.tensor([0.0, 0.0, 2.5])
    scores = Scores(graph, values, "made-up")
    fig = plot_circuit(scores.top(3), scores)
    assert ranked(fig) == ["embed->m0", "m0->logits"]
    edge = next(item for item in fig.data if item.name == "edge")
    assert edge.hovertext[0].endswith("score 3, rank 1, at 2 token positions")


def test_the_menu_shows_one_circuit_at_a_time() -> None:
    graph = GRAPHS["heads"]
    scores = {name: scores_of(graph, seed) for seed, name in enumerate(("<i>a</i>", "b"))}
    fig = plot_circuits({name: (s.top(5), s) for name, s in scores.items()})
    buttons = fig.layout.updatemenus[0].buttons
    assert [b.label for b in buttons] == ["&lt;i&gt;a&lt;/i&gt;", "b"]
    for button, s in zip(buttons, scores.values(), strict=True):
        for item, visible in zip(fig.data, button.args[0]["visible"], strict=True):
            item.visible = visible
        assert ranked(fig) == by_score(s.top(5), s)
        title = button.args[1]["title.text"]
        assert text_of(title) == f"{button.label}, 5 of {graph.edges} edges"
    assert not plot_circuit(scores["b"].top(5)).layout.updatemenus


def test_an_empty_circuit_is_a_drawing_without_edges() -> None:
    fig = plot_circuit(empty_circuit(GRAPHS["heads"]))
    assert ranked(fig) == []
    assert text_of(fig.layout.title.text).startswith("Circuit, 0 of ")


def test_what_cannot_be_drawn_is_refused() -> None:
    scores = scores_of(GRAPHS["heads"])
    circuit = scores.top(5)
    with pytest.raises(ValueError, match="most must be at least 1; got 0"):
        plot_circuit(circuit, scores, most=0)
    with pytest.raises(ValueError, match="no circuit to draw"):
        plot_circuits({})
    other = dataclasses.replace(GRAPHS["heads"], model="other")
    with pytest.raises(ValueError, match="this belongs to other"):
        plot_circuit(circuit, Scores(other, scores.values, "x"))
    wide = Scores(scores.graph, scores.values[..., None].repeat(1, 1, 2), "x")
    with pytest.raises(ValueError, match="do not fit a circuit of"):
        plot_circuit(circuit, wide)
    with pytest.raises(ValueError, match="this belongs to other"):
        plot_circuits({"a": (circuit, None), "b": (Circuit(other, circuit.keep), None)})
