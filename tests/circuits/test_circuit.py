"""Circuits as masks: names, complement, overlap, and which edges lie on a path."""

from __future__ import annotations

import itertools

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from strace_lens.circuits.circuit import (
    Circuit,
    circuit_of_edges,
    circuit_of_nodes,
    empty_circuit,
    full_circuit,
)
from strace_lens.circuits.graph import ComponentGraph
from tests.circuits.made import GROUPED, graphs, random_keep

PARALLEL = ComponentGraph("parallel", layers=2, heads=2, kv_heads=2, parallel=True)


@st.composite
def circuits(draw: st.DrawFn) -> Circuit:
    """Boolean or soft, with token positions or without, sparse or dense."""
    graph = draw(graphs())
    positions = draw(st.sampled_from([0, 1, 3]))
    draws = random_keep(graph, draw(st.integers(0, 2**20)), soft=True, positions=positions)
    draws = torch.where(draws < draw(st.sampled_from([0.1, 0.3, 0.9])), draws, 0.0)
    return Circuit(graph, draws if draw(st.booleans()) else draws > 0)


def named_edges(circuit: Circuit) -> list[str]:
    """Names of the edges kept, by a loop over all cells."""
    graph, names = circuit.graph, []
    keep = circuit.keep if circuit.keep.ndim == 3 else circuit.keep[..., None]
    for d, s, p in itertools.product(*map(range, keep.shape)):
        if graph.exists[d, s] and float(keep[d, s, p]) > 0:
            position = f"@{p}" if circuit.keep.ndim == 3 else ""
            names.append(f"{graph.source_names[s]}->{graph.destination_names[d]}{position}")
    return names


def on_a_path(circuit: Circuit, name: str, paths: nx.DiGraph) -> bool:
    source, _, destination = name.partition("@")[0].partition("->")
    return nx.has_path(paths, ("from", "embed"), ("from", source)) and nx.has_path(
        paths, ("to", destination), ("to", "logits")
    )


def paths_of(circuit: Circuit) -> nx.DiGraph:
    """Sources to the destinations that read them, and these to what is worked out from them."""
    graph, paths = circuit.graph, nx.DiGraph()
    paths.add_nodes_from(("from", n) for n in graph.source_names)
    paths.add_nodes_from(("to", n) for n in graph.destination_names)
    for name in named_edges(circuit):
        source, _, destination = name.partition("@")[0].partition("->")
        paths.add_edge(("from", source), ("to", destination))
    for d, s in graph.feeds.nonzero().tolist():
        paths.add_edge(("to", graph.destination_names[d]), ("from", graph.source_names[s]))
    return paths


@settings(max_examples=25)
@given(circuit=circuits())
def test_length_and_names_are_those_of_the_edges_kept(circuit: Circuit) -> None:
    names = named_edges(circuit)
    assert sorted(circuit.edge_names()) == sorted(names)
    assert circuit.edge_names() == names[::-1]  # from the output back
    assert len(circuit) == len(names)


@settings(max_examples=25)
@given(circuit=circuits())
def test_connected_keeps_the_edges_on_a_path_from_embedding_to_logits(circuit: Circuit) -> None:
    paths = paths_of(circuit)
    wanted = [n for n in named_edges(circuit) if on_a_path(circuit, n, paths)]
    connected = circuit.connected()
    assert named_edges(connected) == wanted
    kept = connected.kept
    assert torch.equal(connected.keep[kept], circuit.keep[kept])  # weights stay as they were
    assert torch.equal(connected.connected().kept, kept)


@settings(max_examples=25)
@given(circuit=circuits())
def test_nodes_are_what_the_edges_touch(circuit: Circuit) -> None:
    touched = set()
    for name in named_edges(circuit):
        source, _, destination = name.partition("@")[0].partition("->")
        fed = circuit.graph.feeds[circuit.graph.destination_index(destination)].nonzero()[:, 0]
        touched |= {source} | {circuit.graph.source_names[s] for s in fed.tolist()}
    assert circuit.nodes() == [n for n in circuit.graph.source_names if n in touched]


@settings(max_examples=25)
@given(circuit=circuits())
def test_the_complement_of_the_complement_is_the_circuit(circuit: Circuit) -> None:
    other = ~circuit
    assert other.keep.dtype == circuit.keep.dtype
    total = (other.keep.float() + circuit.keep.float())[circuit.exists]
    torch.testing.assert_close(total, torch.ones_like(total))
    assert not bool(other.keep[~circuit.exists].any())
    torch.testing.assert_close((~other).keep, circuit.keep * circuit.exists)
    if circuit.keep.dtype == torch.bool:
        assert len(circuit) + len(other) == int(circuit.exists.sum())
        assert circuit.jaccard(other) == 0.0


@settings(max_examples=25)
@given(circuit=circuits(), seed=st.integers(0, 99))
def test_jaccard_is_that_of_the_sets_of_edges(circuit: Circuit, seed: int) -> None:
    positions = circuit.keep.shape[2] if circuit.keep.ndim == 3 else 0
    other = Circuit(circuit.graph, random_keep(circuit.graph, seed, positions=positions))
    ours, theirs = set(named_edges(circuit)), set(named_edges(other))
    assert (
        circuit.jaccard(other)
        == other.jaccard(circuit)
        == pytest.approx(len(ours & theirs) / len(ours | theirs) if ours | theirs else 1.0)
    )
    assert circuit.jaccard(circuit) == 1.0


@settings(max_examples=25)
@given(circuit=circuits())
def test_networkx_gets_every_edge_between_nodes(circuit: Circuit) -> None:
    graph = circuit.to_networkx()
    names = []
    for source, node, data in graph.edges(data=True):
        assert data["input"].startswith(node)
        position = f"@{data['position']}" if "position" in data else ""
        names.append(f"{source}->{data['input']}{position}")
    assert sorted(names) == sorted(named_edges(circuit))


def test_full_and_empty() -> None:
    for graph in (GROUPED, PARALLEL):
        full, empty = full_circuit(graph), empty_circuit(graph)
        assert len(full) == graph.edges
        assert full.nodes() == list(graph.source_names)
        assert torch.equal(full.connected().keep, full.keep)
        assert len(empty) == len(empty.nodes()) == len(empty.connected()) == 0
        assert empty.jaccard(empty) == 1.0
        assert torch.equal((~empty).keep, full.keep)
        assert repr(full) == f"Circuit({graph.model}, {graph.edges} of {graph.edges} edges)"


def test_a_circuit_of_named_edges() -> None:
    names = ["m1->logits", "a0.h2->a1.kv1<v>", "embed->a0.h2<q>"]
    circuit = circuit_of_edges(GROUPED, names)
    assert circuit.edge_names() == names
    assert circuit.nodes() == ["embed", "a0.h2", "a1.h2", "a1.h3", "m1"]
    assert circuit.connected().edge_names() == []
    whole = circuit_of_edges(GROUPED, [*names, "a1.h3->logits"]).connected()
    assert whole.edge_names() == ["a1.h3->logits", "a0.h2->a1.kv1<v>", "embed->a0.h2<q>"]
    with pytest.raises(ValueError, match=r"no source of grouped named 'a9\.h0'"):
        circuit_of_edges(GROUPED, ["a9.h0->logits"])


def test_a_circuit_of_nodes_keeps_all_their_out_edges() -> None:
    circuit = circuit_of_nodes(GROUPED, ["embed", "a0.h1", "m1"])
    wanted = {
        n
        for n in full_circuit(GROUPED).edge_names()
        if n.split("->")[0] in ("embed", "a0.h1", "m1")
    }
    assert set(circuit.edge_names()) == wanted
    with pytest.raises(ValueError, match="no source of grouped named 'logits'"):
        circuit_of_nodes(GROUPED, ["logits"])


def _changed(cell: float | None = None, shape: tuple[int, ...] = (19, 11)) -> Tensor:
    keep = torch.full(shape, 0.5)
    if cell is not None:
        keep[3, 0] = cell
    return keep


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (_changed(shape=(11, 19)), r"mask \[destination, source\] of \(19, 11\).* got \(11, 19\)"),
        (_changed(shape=(19, 12)), r"got \(19, 12\)"),
        (_changed(shape=(19, 11, 4, 2)), r"got \(19, 11, 4, 2\)"),
        (_changed(1.25), r"must lie in \[0, 1\]; got 1.25"),
        (_changed(-0.5), r"must lie in \[0, 1\]; got -0.5"),
        (_changed(float("nan")), r"must lie in \[0, 1\]; got nan"),
        (_changed(float("inf")), r"must lie in \[0, 1\]; got inf"),
    ],
)
def test_a_mask_that_is_none_is_an_error(keep: Tensor, message: str) -> None:
    assert (GROUPED.destinations, GROUPED.sources) == (19, 11)
    with pytest.raises(ValueError, match=message):
        Circuit(GROUPED, keep)


def test_circuits_that_do_not_compare_are_an_error() -> None:
    everywhere = full_circuit(GROUPED)
    by_position = Circuit(GROUPED, GROUPED.exists[..., None].expand(-1, -1, 4))
    with pytest.raises(ValueError, match="do not compare"):
        everywhere.jaccard(by_position)
    with pytest.raises(ValueError, match=r"belongs to parallel .* not to grouped"):
        everywhere.jaccard(full_circuit(PARALLEL))


@settings(max_examples=25)
@given(graph=graphs(), positions=st.sampled_from([0, 3]), seed=st.integers(0, 2**20))
def test_circuits_combine_as_the_sets_of_their_names(
    graph: ComponentGraph, positions: int, seed: int
) -> None:
    a, b = (_counted(graph, seed + i, positions) for i in range(2))
    ours, theirs = set(named_edges(a)), set(named_edges(b))
    assert set(named_edges(a | b)) == ours | theirs
    assert set(named_edges(a & b)) == ours & theirs
    assert set(named_edges(a - b)) == ours - theirs
    assert (a - b).keep.dtype == torch.bool
    whole = full_circuit(graph) if not positions else Circuit(graph, graph.exists_like(a.keep))
    every = set(named_edges(whole))
    assert set(named_edges(~a)) == every - ours
    assert {name for name in every if name in a} == ours


def test_weights_combine_as_fuzzy_sets() -> None:
    soft, hard = (Circuit(GROUPED, random_keep(GROUPED, seed, soft=seed == 0)) for seed in range(2))
    there = GROUPED.exists
    a, b = soft.keep[there], hard.keep[there].float()
    for combined, truth in (
        (soft | hard, torch.maximum(a, b)),
        (hard & soft, torch.minimum(a, b)),
        (soft - hard, torch.minimum(a, 1 - b)),
        (hard - soft, torch.minimum(b, 1 - a)),
    ):
        assert torch.equal(combined.keep[there], truth)
        assert not bool(combined.keep[~there].any())


def test_what_does_not_combine_is_refused_by_name() -> None:
    mine = Circuit(GROUPED, GROUPED.exists, {"weights": "a" * 64, "method": "eap"})
    theirs = Circuit(GROUPED, GROUPED.exists, {"weights": "b" * 64, "method": "acdc"})
    with pytest.raises(ValueError, match=r"two models do not combine: .*\(a{12}\) and .*\(b{12}\)"):
        mine | theirs
    with pytest.raises(ValueError, match=r"belongs to parallel .* not to grouped"):
        mine & full_circuit(PARALLEL)
    with pytest.raises(ValueError, match=r"masks of shapes \(19, 11\) and \(19, 11, 4\)"):
        mine - _counted(GROUPED, 0, 4)
    with pytest.raises(TypeError, match="unsupported operand"):
        mine | {"m0->logits"}
    both = mine | Circuit(GROUPED, GROUPED.exists, {"weights": "a" * 64, "method": "acdc"})
    assert both.metadata == {"weights": "a" * 64}  # what they have in common
    assert (~~mine).metadata["complement"] is False


@pytest.mark.parametrize(
    ("name", "positions", "message"),
    [
        ("a0.h1", 0, "'a0.h1' is no edge; write it as"),
        ("a9.h1->m1", 0, "no source of grouped named 'a9.h1'"),
        ("m1->a0.h0<q>", 0, "its source comes too late"),
        ("m0->m1@2", 0, "'m0->m1@2' names a token position"),
        ("m0->m1", 3, "names no token position .* end it with @0 to @2"),
        ("m0->m1@3", 3, "names no token position"),
        ("m0->m1@-1", 3, "names no token position"),
    ],
)
def test_asking_for_no_edge_is_an_error(name: str, positions: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        assert name in _counted(GROUPED, 0, positions)
    with pytest.raises(TypeError, match="edges go by name"):
        assert 3 in _counted(GROUPED, 0)


@settings(max_examples=25)
@given(circuit=circuits())
def test_heads_count_the_edges_that_enter_and_leave_them(circuit: Circuit) -> None:
    graph, names = circuit.graph, named_edges(circuit)
    ends = [name.partition("@")[0].split("->") for name in names]
    group = graph.heads // graph.kv_heads
    table = circuit.heads()
    assert len(table) == graph.layers * graph.heads
    for row in table.itertuples():
        node = f"a{row.layer}.h{row.head}"
        kv = f"a{row.layer}.{'h' if group == 1 else 'kv'}{row.head // group}"
        inputs = {f"{node}<q>", f"{kv}<k>", f"{kv}<v>"}
        assert row.edges_out == sum(source == node for source, _ in ends)
        assert row.edges_in == sum(destination in inputs for _, destination in ends)
        assert row.edges == row.edges_in + row.edges_out


def _counted(graph: ComponentGraph, seed: int, positions: int = 0) -> Circuit:
    return Circuit(graph, random_keep(graph, seed, positions=positions))
