"""Nodes, edges and names of component graphs, against a walk through the blocks and formulas."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from strace_lens.circuits.graph import ComponentGraph, node_of
from strace_lens.circuits.wiring import component_graph
from tests.cases import PARALLEL, model_of
from tests.circuits.made import GROUPED, NAMES, graphs, plain_graph

GPT2_SMALL = ComponentGraph("gpt2", layers=12, heads=12, kv_heads=12)
SMOLLM2 = ComponentGraph("smollm2", layers=30, heads=9, kv_heads=3)


def walk(graph: ComponentGraph) -> tuple[list[str], list[str], list[str]]:
    """Sources, destinations and edges by running through the blocks in the model's order."""
    kv = "h" if graph.heads == graph.kv_heads else "kv"
    written, readers, edges = ["embed"], [], []

    def read(reader: str) -> None:
        readers.append(reader)
        edges.extend(f"{source}->{reader}" for source in written)

    for layer in range(graph.layers):
        for head in range(graph.heads):
            read(f"a{layer}.h{head}<q>")
        for kind in ("k", "v"):
            for head in range(graph.kv_heads):
                read(f"a{layer}.{kv}{head}<{kind}>")
        heads = [f"a{layer}.h{head}" for head in range(graph.heads)]
        if graph.parallel:
            read(f"m{layer}")
            written += [*heads, f"m{layer}"]
        else:
            written += heads
            if graph.mlp:
                read(f"m{layer}")
                written.append(f"m{layer}")
    read("logits")
    return written, readers, edges


def edges_by_formula(graph: ComponentGraph) -> int:
    """Heads and MLPs read all earlier blocks; an MLP its own heads too; the logits everything."""
    per_layer = graph.heads + graph.mlp
    earlier = graph.layers + per_layer * graph.layers * (graph.layers - 1) // 2
    own_heads = graph.heads * graph.layers if graph.mlp and not graph.parallel else 0
    readers = graph.heads + 2 * graph.kv_heads + graph.mlp
    return readers * earlier + own_heads + 1 + per_layer * graph.layers


@settings(max_examples=25)
@given(graph=graphs())
def test_sources_destinations_and_edges_are_those_of_a_walk(graph: ComponentGraph) -> None:
    written, readers, edges = walk(graph)
    assert list(graph.source_names) == written
    assert list(graph.destination_names) == readers
    assert (graph.sources, graph.destinations) == (len(written), len(readers))
    assert graph.exists.shape == (len(readers), len(written))
    assert [graph.edge_name(d, s) for d, s in graph.exists.nonzero().tolist()] == edges
    assert graph.edges == len(edges) == edges_by_formula(graph)


@settings(max_examples=25)
@given(graph=graphs())
def test_names_are_read_back(graph: ComponentGraph) -> None:
    for destination, source in graph.exists.nonzero().tolist():
        name = graph.edge_name(destination, source)
        assert graph.parse_edge(name) == (destination, source)
    assert [graph.source_index(n) for n in graph.source_names] == list(range(graph.sources))
    numbers = [graph.destination_index(n) for n in graph.destination_names]
    assert numbers == list(range(graph.destinations))


@settings(max_examples=25)
@given(graph=graphs())
def test_a_destination_feeds_the_sources_that_are_worked_out_from_it(graph: ComponentGraph) -> None:
    group = graph.heads // graph.kv_heads
    for d, reader in enumerate(graph.destination_names):
        fed = {n for n, f in zip(graph.source_names, graph.feeds[d].tolist(), strict=True) if f}
        node = node_of(reader)
        if reader == "logits":
            assert fed == set()
        elif reader.endswith(("<k>", "<v>")):
            layer, _, number = node.partition(".")
            first = int(number.lstrip("khv")) * group
            assert fed == {f"{layer}.h{head}" for head in range(first, first + group)}
        else:
            assert fed == {node}


@settings(max_examples=25)
@given(graph=graphs())
def test_layers_are_those_in_the_names(graph: ComponentGraph) -> None:
    def layer(name: str) -> int:
        if name in ("embed", "logits"):
            return -1 if name == "embed" else graph.layers
        return int(name.partition(".")[0][1:])

    assert graph.source_layers.tolist() == [layer(n) for n in graph.source_names]
    assert graph.destination_layers.tolist() == [layer(n) for n in graph.destination_names]


def test_counts_of_known_models() -> None:
    assert (GPT2_SMALL.sources, GPT2_SMALL.edges) == (157, 32_491)
    assert SMOLLM2.edges == 70_651


@pytest.mark.parametrize("name", NAMES)
def test_a_models_graph_is_that_of_its_weights(name: str) -> None:
    graph, plain = component_graph(model_of(name)), plain_graph(name)
    assert graph.parallel == (name in PARALLEL)
    for part in ("layers", "heads", "kv_heads", "mlp", "parallel"):
        assert getattr(graph, part) == getattr(plain, part)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a0.h0", "'a0.h0' is no edge; write it as 'a0.h1->m2'"),
        ("m1->a0.h0<q>", "its source comes too late"),
        ("a1.h0->a1.h1<q>", "its source comes too late"),
        ("a0.h4->m0", "no source of grouped named 'a0.h4'; the nearest is 'a0.h"),
        ("embed->a0.h3<k>", "groups its queries, .* head 3 reads a0.kv1<k>"),
        ("embed->a0.kv4.k", "no destination of grouped named 'a0.kv4<k>'; the nearest is 'a0.kv"),
        ("logits->m0", "no source of grouped named 'logits'"),
        ("m0->embed", "no destination of grouped named 'embed'"),
        ("", "is no edge"),
    ],
)
def test_a_name_that_is_no_edge_is_an_error(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GROUPED.parse_edge(name)


def test_the_input_of_a_head_has_two_spellings() -> None:
    assert GROUPED.parse_edge("embed->a1.h3.q") == GROUPED.parse_edge("embed->a1.h3<q>")
    assert GROUPED.parse_edge("m0->a1.kv1.v") == GROUPED.parse_edge("m0->a1.kv1<v>")


def test_graphs_of_two_models_do_not_mix() -> None:
    GROUPED.check_same(ComponentGraph("grouped", layers=2, heads=4, kv_heads=2))
    for other in (GPT2_SMALL, ComponentGraph("renamed", layers=2, heads=4, kv_heads=2)):
        with pytest.raises(ValueError, match=f"belongs to {other.model} .* not to grouped"):
            GROUPED.check_same(other)
