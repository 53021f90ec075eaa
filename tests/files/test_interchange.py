"""Importance files and graph files, against readers that know nothing of ours."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import strace_lens as sl
from strace_lens.circuits.circuit import circuit_of_nodes
from strace_lens.circuits.graph import ComponentGraph
from strace_lens.files.interchange import (
    load_importance_circuit,
    load_importances,
    save_importances,
    write_graph,
)
from strace_lens.files.result_files import ResultFileError
from tests.circuits.made import MASKS, graphs, random_keep
from tests.plot import made

ONE = ComponentGraph("one", layers=1, heads=2, kv_heads=2)
GROUPED = ComponentGraph("grouped", layers=1, heads=2, kv_heads=1)
EDGES = [
    *(f"input->a0.h{head}<{kind}>" for head in range(2) for kind in "qkv"),
    *("input->m0", "a0.h0->m0", "a0.h1->m0"),
    *("input->logits", "a0.h0->logits", "a0.h1->logits", "m0->logits"),
]
NODES = ["input", "a0.h0", "a0.h1", "m0", "logits"]
# As a graph of the newer version, made for nodes or for neurons, writes them.
UNSCORED = {edge: {"score": 0.0, "in_graph": True} for edge in EDGES}
NODE_FACTS = {node: {"in_graph": True} for node in NODES}
SCORED = {"in_graph": True, "score": 0.5}
NEURONS = {"in_graph": True, "neurons": [True, False], "neurons_scores": [0.5, 0.1]}


def by_hand(*, new: bool, **changed) -> dict:
    """A file of one layer and two heads: edge number i has score i - 3, even ones are in."""
    return {
        "cfg": {"n_layers": 1, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8},
        "nodes": {n: {"in_graph": True} if new else True for n in NODES},
        "edges": {e: {"score": i - 3.0, "in_graph": i % 2 == 0} for i, e in enumerate(EDGES)},
        **changed,
    }


@pytest.mark.parametrize("new", [True, False])
def test_a_file_of_eap_ig_is_read(tmp_path, new) -> None:
    path = tmp_path / "importances.json"
    path.write_text(json.dumps(by_hand(new=new)))
    scores = load_importances(path, ONE)
    circuit = load_importance_circuit(path, ONE)
    for i, name in enumerate(EDGES):
        cell = ONE.parse_edge(name.replace("input", "embed"))
        assert float(scores.values[cell]) == i - 3.0
        assert bool(circuit.keep[cell]) == (i % 2 == 0)
    assert scores.edges == len(EDGES)
    assert scores.method == "importances"


def test_a_group_of_query_heads_is_summed_and_kept_if_any_is(tmp_path) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps(by_hand(new=True)))
    scores = load_importances(path, GROUPED, method="eap")
    # Edges into the keys of heads 0 and 1 are numbers 1 and 4.
    assert float(scores.values[GROUPED.parse_edge("embed->a0.kv0<k>")]) == (1 - 3) + (4 - 3)
    assert scores.method == "eap"
    circuit = load_importance_circuit(path, GROUPED)
    assert bool(circuit.keep[GROUPED.parse_edge("embed->a0.kv0<k>")])  # number 4 is in
    assert not bool(circuit.keep[GROUPED.parse_edge("a0.h0->m0")])  # number 7 is not


def test_a_written_file_has_the_form_of_eap_ig(tmp_path) -> None:
    path = tmp_path / "file.json"
    keep = torch.zeros_like(ONE.exists)
    keep[ONE.parse_edge("embed->m0")] = keep[ONE.parse_edge("m0->logits")] = True
    save_importances(sl.Circuit(ONE, keep), path, d_model=8)
    content = json.loads(path.read_text())
    assert content["cfg"] == by_hand(new=True)["cfg"]
    assert list(content["nodes"]) == NODES
    assert sorted(content["edges"]) == sorted(EDGES)
    inside = {name for name, edge in content["edges"].items() if edge["in_graph"]}
    assert inside == {"input->m0", "m0->logits"}
    inside = {name for name, node in content["nodes"].items() if node["in_graph"]}
    assert inside == {"input", "m0", "logits"}


@pytest.mark.extended
@given(graph=graphs(), seed=st.integers(0, 999))
def test_scores_and_circuits_come_back(tmp_path_factory, graph, seed) -> None:
    path = tmp_path_factory.mktemp("files") / "file.json"
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(graph.exists.shape, generator=generator).double() * graph.exists
    save_importances(sl.Scores(graph, values, "drawn"), path)
    back = load_importances(path, graph)
    torch.testing.assert_close(back.values, values, rtol=1e-12, atol=1e-12)
    circuit = sl.Circuit(graph, (values > 0) & graph.exists)
    save_importances(circuit, path)
    assert torch.equal(load_importance_circuit(path, graph).keep, circuit.keep)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "no whole importance file"),
        ("[" * 100_000, "not JSON .nested too deeply"),
        ('{"cfg": 1e400}', "not JSON .1e400 is larger than any 64-bit number"),
        ('{"cfg": Infinity}', "not JSON .Infinity is no JSON number"),
        (
            json.dumps(by_hand(new=True, edges={e: {"score": 10**400} for e in EDGES})),
            "larger than any 64-bit number",
        ),
        (
            json.dumps(by_hand(new=True, edges=dict.fromkeys(EDGES, 1.0))),
            r"the edge input->a0\.h0<q> is 1\.0, not an object",
        ),
        (json.dumps(by_hand(new=True, edges={})), "lacks the edge input->a0.h0<q>"),
        (
            json.dumps(by_hand(new=True, edges={e: {"score": None} for e in EDGES})),
            r"the score of input->a0\.h0<q> is None, not a number",
        ),
        (
            json.dumps(by_hand(new=True, edges={e: {"score": float("nan")} for e in EDGES})),
            r"the score of input->a0\.h0<q> is nan, not a number",
        ),
        (
            json.dumps(by_hand(new=True, nodes={**NODE_FACTS, "m0": NEURONS})),
            "keeps single neurons of m0",
        ),
        (
            json.dumps(by_hand(new=True, nodes={**NODE_FACTS, "m0": SCORED}, edges=UNSCORED)),
            r"scores nodes \(m0, \.\.\.\) and no edge",
        ),
        (
            json.dumps(by_hand(new=True, edges={**UNSCORED, "m0->m0": {"score": 0.0}})),
            "has an edge m0->m0, which is not in one",
        ),
        (
            json.dumps(
                by_hand(new=True, cfg={"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False})
            ),
            r"is of a model with layers, heads, parallel = \(2, 2, False\)",
        ),
    ],
)
def test_a_foreign_or_torn_file_is_refused(tmp_path, content, reason) -> None:
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(ResultFileError, match=reason):
        load_importances(path, ONE)


def test_a_file_of_another_encoding_is_read_or_refused_by_name(tmp_path) -> None:
    path = tmp_path / "file.json"
    said = json.dumps(by_hand(new=True))
    path.write_text(said)
    plain = load_importances(path, ONE)
    path.write_bytes(b"\xef\xbb\xbf" + said.encode())
    assert torch.equal(load_importances(path, ONE).values, plain.values)
    path.write_bytes(said.encode("utf-16"))
    with pytest.raises(ResultFileError, match=r"file\.json.*UTF-16"):
        load_importances(path, ONE)


def with_edge(**said) -> dict:
    content = by_hand(new=True)
    content["edges"][EDGES[0]] |= said
    return content


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (with_edge(in_graph="false"), "in_graph of input->a0.h0<q> is 'false', not true or false"),
        (with_edge(in_graph=0), "in_graph of input->a0.h0<q> is 0, not true or false"),
        (with_edge(in_graph=None), "in_graph of input->a0.h0<q> is None, not true or false"),
        (
            by_hand(new=True, cfg={"n_layers": 1, "n_heads": 2, "parallel_attn_mlp": "false"}),
            "parallel_attn_mlp is 'false', not true or false",
        ),
        (
            by_hand(new=True, nodes={**NODE_FACTS, "m0": {"neurons": ["false", True]}}),
            "keeps single neurons of m0",
        ),
    ],
)
def test_a_flag_that_is_none_is_refused(tmp_path, content, reason) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ResultFileError, match=rf"^{path}.*{reason}"):
        load_importance_circuit(path, ONE)


@pytest.mark.parametrize(
    ("score", "reason"),
    [
        (True, "is True, not a number"),
        ("1.5", "is '1.5', not a number"),
        (1e308, "the scores of a group of heads add up to infinity"),
    ],
)
def test_a_score_that_is_none_is_refused(tmp_path, score, reason) -> None:
    path = tmp_path / "file.json"
    edges = {e: {"score": score, "in_graph": True} for e in EDGES}
    path.write_text(json.dumps(by_hand(new=True, edges=edges)))
    with pytest.raises(ResultFileError, match=rf"^{path}: .*{reason}"):
        load_importances(path, GROUPED)


def test_a_file_of_ours_that_was_edited_says_so_and_how_to_read_it(tmp_path) -> None:
    path = tmp_path / "file.json"
    scores = sl.Scores(ONE, ONE.exists.double(), "ones")
    save_importances(scores, path)
    content = json.loads(path.read_text())
    content["edges"][EDGES[0]]["score"] = 2.0
    path.write_text(json.dumps(content))
    with pytest.raises(ResultFileError, match="edited; to read it as it is now, remove its key"):
        load_importances(path, ONE)
    del content["strace_lens"]
    path.write_text(json.dumps(content))
    assert float(load_importances(path, ONE).values.max()) == 2.0


def test_what_the_files_cannot_say_is_refused(tmp_path) -> None:
    by_position = ONE.exists[..., None].expand(-1, -1, 3)
    with pytest.raises(ValueError, match="no token positions"):
        save_importances(sl.Circuit(ONE, by_position), tmp_path / "file.json")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_importances(tmp_path / "file.json", ONE)


def test_a_file_that_scores_nodes_says_which_edges_are_in(tmp_path) -> None:
    """As EAP-IG leaves it: unscored nodes are NaN, and the edges of a kept node are in."""
    nodes = {**NODE_FACTS, "m0": SCORED, "a0.h0": {"in_graph": False, "score": float("nan")}}
    edges = {e: {"score": 0.0, "in_graph": not e.startswith("a0.h0")} for e in EDGES}
    path = tmp_path / "file.json"
    path.write_text(json.dumps(by_hand(new=True, nodes=nodes, edges=edges)))
    kept = load_importance_circuit(path, ONE)
    truth = circuit_of_nodes(ONE, ["embed", "a0.h1", "m0"])
    assert torch.equal(kept.keep, truth.keep)


@pytest.mark.parametrize("heads", [2, 3, 4])
def test_the_sum_over_a_group_is_kept(tmp_path, heads) -> None:
    graph = ComponentGraph("grouped", layers=2, heads=heads, kv_heads=1)
    generator = torch.Generator().manual_seed(heads)
    values = torch.randn(graph.exists.shape, generator=generator).double() * graph.exists
    save_importances(sl.Scores(graph, values, "drawn"), tmp_path / "file.json")
    edges = json.loads((tmp_path / "file.json").read_text())["edges"]
    theirs = [edges[f"a0.h0->a1.h{head}<v>"]["score"] for head in range(heads)]
    assert len(set(theirs)) == 1
    ours = float(values[graph.parse_edge("a0.h0->a1.kv0<v>")])
    assert sum(theirs) == pytest.approx(ours, rel=1e-15)
    back = load_importances(tmp_path / "file.json", graph)
    assert heads == 3 or torch.equal(back.values, values)  # thirds are rounded, halves are not


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
    write_graph(subgraph, path)
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
    assert facts["metadata"] == dict(subgraph.metadata)


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
    write_graph(circuit, path)

    def edges(of: nx.MultiDiGraph) -> list[tuple]:
        names = ("input", "weight", "position")
        found = of.edges(data=True)
        return sorted((s, t, *(data[n] for n in names if n in data)) for s, t, data in found)

    back = read(path)
    assert edges(back) == edges(circuit.to_networkx())
    facts = json.loads(back.graph["strace_lens"])
    assert facts["component_graph"] == dataclasses.asdict(graph)
    assert facts["metadata"] == {"method": "drawn"}


@pytest.mark.parametrize(
    ("token", "label"), [("\x00", "\\x00"), ("\n\x1b", "\\n\\x1b"), ("<b>&\"'", None), ("é↵", None)]
)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_any_token_can_be_written(tmp_path, token, label, suffix) -> None:
    curve = made.with_token(token)
    path = tmp_path / f"graph{suffix}"
    write_graph(curve.trace.subgraph(0.1), path)
    graph = read(path)
    last = len(curve.trace.prompt.ids) - 1
    labels = {d["label"] for _, d in graph.nodes(data=True) if d["position"] == last}
    assert labels == {token if label is None else label}
    assert json.loads(graph.graph["strace_lens"])["prompt"]["strings"][-1] == token


def test_other_suffixes_and_facts_that_json_cannot_hold_are_refused(tmp_path) -> None:
    subgraph = made.curve().trace.first(5)
    with pytest.raises(ValueError, match=r"ends in \.graphml or \.json; got"):
        write_graph(subgraph, tmp_path / "graph.gexf")
    with pytest.raises(ValueError, match="no JSON can hold"):
        write_graph(
            dataclasses.replace(subgraph, metadata={"x": object()}), tmp_path / "graph.json"
        )
    assert list(tmp_path.iterdir()) == []
