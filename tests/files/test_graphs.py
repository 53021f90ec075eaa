"""Subgraphs and circuits as GraphML and JSON, read by networkx, which knows nothing of ours."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import strace_lens as sl
from tests.component_graph.made import MASKS, graphs, random_keep
from tests.plot import made

SUFFIXES = (".graphml", ".json")


def read(path: Path) -> nx.MultiDiGraph:
    if path.suffix == ".json":
        return nx.node_link_graph(json.loads(path.read_text()), edges="edges")
    return nx.read_graphml(path, force_multigraph=True)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("size", [0.001, 0.05, 1.0])
def test_every_edge_of_a_subgraph_is_written_with_its_rank(tmp_path, suffix, size) -> None:
    subgraph = made.curve().trace.subgraph(size)
    path = tmp_path / f"subgraph{suffix}"
    sl.write_graph(subgraph, path)
    graph = read(path)
    ranks = sorted(data["rank"] for _, _, data in graph.edges(data=True))
    assert ranks == list(range(subgraph.edges))
    for node, data in graph.nodes(data=True):
        hook, _, position = node.partition("@")
        assert data["label"] == subgraph.prompt.strings[int(position)]
        assert (data["hook_point"], data["position"]) == (hook, int(position))
    facts = json.loads(graph.graph["strace_lens"])
    assert facts["shape"] == dataclasses.asdict(subgraph.shape)
    assert tuple(facts["prompt"]["ids"]) == subgraph.prompt.ids
    assert facts["made"] == dict(subgraph.made)


@settings(max_examples=30)
@given(
    graph=graphs(),
    seed=st.integers(0, 99),
    kind=st.sampled_from(sorted(MASKS)),
    suffix=st.sampled_from(SUFFIXES),
)
def test_every_edge_of_a_circuit_is_written_with_its_weight(
    tmp_path_factory, graph, seed, kind, suffix
) -> None:
    path = tmp_path_factory.mktemp("files") / f"circuit{suffix}"
    keep = random_keep(graph, seed, **MASKS[kind])
    exists = graph.exists if keep.ndim == 2 else graph.exists[..., None]
    circuit = sl.Circuit(graph, keep * exists, {"method": "drawn"})
    sl.write_graph(circuit, path)

    def edges(of: nx.MultiDiGraph) -> list[tuple]:
        names = ("input", "weight", "position")
        found = of.edges(data=True)
        return sorted((s, t, *(data[n] for n in names if n in data)) for s, t, data in found)

    back = read(path)
    assert edges(back) == edges(circuit.to_networkx())
    facts = json.loads(back.graph["strace_lens"])
    assert facts["component_graph"] == dataclasses.asdict(graph)
    assert facts["made"] == {"method": "drawn"}


@pytest.mark.parametrize(
    ("token", "label"), [("\x00", "\\x00"), ("\n\x1b", "\\n\\x1b"), ("<b>&\"'", None), ("é↵", None)]
)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_any_token_can_be_written(tmp_path, token, label, suffix) -> None:
    curve = made.with_token(token)
    path = tmp_path / f"graph{suffix}"
    sl.write_graph(curve.trace.subgraph(0.1), path)
    graph = read(path)
    last = len(curve.trace.prompt.ids) - 1
    labels = {d["label"] for _, d in graph.nodes(data=True) if d["position"] == last}
    assert labels == {token if label is None else label}
    assert json.loads(graph.graph["strace_lens"])["prompt"]["strings"][-1] == token


def test_other_suffixes_and_facts_that_json_cannot_hold_are_refused(tmp_path) -> None:
    subgraph = made.curve().trace.first(5)
    with pytest.raises(ValueError, match=r"ends in \.graphml or \.json; got"):
        sl.write_graph(subgraph, tmp_path / "graph.gexf")
    with pytest.raises(ValueError, match="no JSON can hold"):
        sl.write_graph(dataclasses.replace(subgraph, made={"x": object()}), tmp_path / "graph.json")
    assert list(tmp_path.iterdir()) == []
