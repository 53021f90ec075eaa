"""Subgraphs and circuits as GraphML and JSON: read back as they were, and by networkx alone."""

from __future__ import annotations

import dataclasses
import json

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import strace_lens as sl
from strace_lens.component_graph.graph import ComponentGraph
from strace_lens.files.result_files import ResultFileError
from tests.component_graph.made import MASKS, graphs, random_keep
from tests.plot import made

SUFFIXES = (".graphml", ".json")


def same_edges(one: sl.Subgraph, other: sl.Subgraph) -> bool:
    kept = torch.equal(one.kept.flat(), other.kept.flat())
    inside = one.kept.flat()
    return kept and torch.equal(one.ranks.flat()[inside], other.ranks.flat()[inside])


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("size", [0.001, 0.05, 1.0])
def test_a_subgraph_comes_back(tmp_path, suffix, size) -> None:
    subgraph = made.curve().trace.subgraph(size)
    path = tmp_path / f"subgraph{suffix}"
    sl.write_graph(subgraph, path)
    back = sl.read_graph(path)
    assert isinstance(back, sl.Subgraph)
    assert same_edges(subgraph, back)
    assert (back.shape, back.prompt) == (subgraph.shape, subgraph.prompt)
    assert dict(back.made) == dict(subgraph.made)


@settings(max_examples=30)
@given(
    graph=graphs(),
    seed=st.integers(0, 99),
    kind=st.sampled_from(sorted(MASKS)),
    suffix=st.sampled_from(SUFFIXES),
)
def test_a_circuit_comes_back(tmp_path_factory, graph, seed, kind, suffix) -> None:
    path = tmp_path_factory.mktemp("files") / f"circuit{suffix}"
    keep = random_keep(graph, seed, **MASKS[kind])
    exists = graph.exists if keep.ndim == 2 else graph.exists[..., None]
    circuit = sl.Circuit(graph, keep * exists, {"method": "drawn"})
    sl.write_graph(circuit, path)
    back = sl.read_graph(path)
    assert isinstance(back, sl.Circuit)
    assert back.graph == graph
    assert back.keep.dtype == circuit.keep.dtype
    assert torch.equal(back.keep, circuit.keep)
    assert dict(back.made) == {"method": "drawn"}


def test_networkx_alone_reads_the_files_and_sees_the_tokens(tmp_path) -> None:
    subgraph = made.curve().trace.subgraph(0.05)
    sl.write_graph(subgraph, tmp_path / "graph.graphml")
    sl.write_graph(subgraph, tmp_path / "graph.json")
    read = nx.read_graphml(tmp_path / "graph.graphml")
    other = nx.node_link_graph(json.loads((tmp_path / "graph.json").read_text()), edges="edges")
    assert set(read.nodes) == set(other.nodes)
    assert read.number_of_edges() == other.number_of_edges() == subgraph.edges
    for node, data in read.nodes(data=True):
        hook, _, position = node.partition("@")
        assert data["label"] == subgraph.prompt.strings[int(position)]
        assert data["hook_point"] == hook


@pytest.mark.parametrize("token", ["\x00", "\n\x1b", "<b>&\"'", "é↵"])
def test_any_token_can_be_written(tmp_path, token) -> None:
    curve = made.with_token(token)
    subgraph = curve.trace.subgraph(0.1)
    for suffix in SUFFIXES:
        sl.write_graph(subgraph, tmp_path / f"graph{suffix}")
        back = sl.read_graph(tmp_path / f"graph{suffix}")
        assert back.prompt.strings[-1] == token


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_edge_that_another_tool_took_away_is_gone(tmp_path, suffix) -> None:
    subgraph = made.curve().trace.first(20)
    path = tmp_path / f"graph{suffix}"
    sl.write_graph(subgraph, path)
    if suffix == ".json":
        content = json.loads(path.read_text())
        taken = content["edges"].pop(3)["rank"]
        path.write_text(json.dumps(content))
    else:
        graph = nx.read_graphml(path, force_multigraph=True)
        edge = list(graph.edges(keys=True))[3]
        taken = graph.edges[edge]["rank"]
        graph.remove_edge(*edge)
        nx.write_graphml(graph, path)
    back = sl.read_graph(path)
    left = back.ranks.flat()[back.kept.flat()].sort().values.tolist()
    assert left == [rank for rank in range(20) if rank != taken]


@pytest.fixture(scope="module")
def contents(tmp_path_factory) -> dict[str, bytes]:
    """Whole files by suffix."""
    folder = tmp_path_factory.mktemp("whole")
    for suffix in SUFFIXES:
        sl.write_graph(made.curve().trace.first(5), folder / f"graph{suffix}")
    return {suffix: (folder / f"graph{suffix}").read_bytes() for suffix in SUFFIXES}


@settings(max_examples=40)
@given(suffix=st.sampled_from(SUFFIXES), data=st.data())
def test_a_torn_file_is_refused(contents, tmp_path_factory, suffix, data) -> None:
    whole = contents[suffix]
    path = tmp_path_factory.mktemp("torn") / f"graph{suffix}"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ResultFileError, match="no whole graph of strace_lens"):
        sl.read_graph(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_missing_and_foreign_files_are_refused(tmp_path, suffix) -> None:
    path = tmp_path / f"graph{suffix}"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        sl.read_graph(path)
    foreign = nx.MultiDiGraph([("a", "b")])
    if suffix == ".json":
        path.write_text(json.dumps(nx.node_link_data(foreign, edges="edges")))
    else:
        nx.write_graphml(foreign, path)
    with pytest.raises(ResultFileError, match="no whole graph of strace_lens"):
        sl.read_graph(path)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        *(("shape", name, value) for name in ("layers", "heads", "tokens") for value in (-1, "x")),
        ("shape", "tokens", 10**12),
        ("shape", "colour", "red"),
        ("prompt", "ids", [1, 2]),
        ("prompt", "strings", None),
        *(("component_graph", name, 0) for name in ("layers", "heads", "kv_heads", "mlp")),
        ("component_graph", "kv_heads", 3),
    ],
)
def test_facts_that_do_not_fit_are_refused(tmp_path, part, name, value) -> None:
    graph = ComponentGraph("some", layers=2, heads=4, kv_heads=2)
    circuit = sl.Circuit(graph, graph.exists)
    path = tmp_path / "graph.json"
    sl.write_graph(circuit if part == "component_graph" else made.curve().trace.first(5), path)
    content = json.loads(path.read_text())
    facts = json.loads(content["graph"]["strace_lens"])
    facts[part][name] = value
    content["graph"]["strace_lens"] = json.dumps(facts)
    path.write_text(json.dumps(content))
    with pytest.raises(ResultFileError, match="no whole graph of strace_lens"):
        sl.read_graph(path)


def test_other_suffixes_and_facts_that_json_cannot_hold_are_refused(tmp_path) -> None:
    subgraph = made.curve().trace.first(5)
    with pytest.raises(ValueError, match=r"ends in \.graphml or \.json; got"):
        sl.write_graph(subgraph, tmp_path / "graph.gexf")
    with pytest.raises(ValueError, match="no JSON can hold"):
        sl.write_graph(dataclasses.replace(subgraph, made={"x": object()}), tmp_path / "graph.json")
    assert list(tmp_path.iterdir()) == []
