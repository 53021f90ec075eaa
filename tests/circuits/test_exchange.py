"""Circuits and scores as pandas frames and networkx graphs, there and back."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import strace_lens as sl
from strace_lens.circuits.circuit import circuit_of_edges
from strace_lens.circuits.exchange import (
    circuit_from_networkx,
    circuit_from_pandas,
    scores_from_pandas,
)
from tests.circuits.made import MASKS, graphs, plain_graph, random_keep

GRAPH = plain_graph("gpt2")


@pytest.mark.extended
@given(graph=graphs(), seed=st.integers(0, 99), kind=st.sampled_from(sorted(MASKS)))
def test_a_circuit_comes_back(graph, seed, kind) -> None:
    keep = random_keep(graph, seed, **MASKS[kind])
    exists = graph.exists if keep.ndim == 2 else graph.exists[..., None]
    circuit = sl.Circuit(graph, keep * exists)
    back = circuit_from_networkx(circuit.to_networkx())
    assert torch.equal(back.keep, circuit.keep)
    table = circuit.to_pandas().sample(frac=1, random_state=seed)
    positions = keep.shape[2] if keep.ndim == 3 else None
    back = circuit_from_pandas(table, graph, positions=positions)
    assert torch.equal(back.keep.double(), circuit.keep.double())


def test_a_frame_without_weights_and_positions_keeps_its_edges_at_all() -> None:
    names = ["embed->a0.h1<k>", "m0->logits"]
    circuit = circuit_of_edges(GRAPH, names)
    table = circuit.to_pandas().drop(columns="weight")
    assert torch.equal(circuit_from_pandas(table, GRAPH).keep, circuit.keep)
    everywhere = circuit_from_pandas(table, GRAPH, positions=3)
    assert torch.equal(everywhere.keep, circuit.keep[..., None].expand(-1, -1, 3))
    empty = circuit_from_pandas(table.head(0), GRAPH)
    assert torch.equal(empty.keep, torch.zeros_like(GRAPH.exists))
    assert torch.equal(circuit_from_networkx(empty.to_networkx()).keep, empty.keep)
    early = sl.Circuit(GRAPH, everywhere.keep.clone().index_fill(2, torch.tensor([2]), False))
    back = circuit_from_pandas(early.to_pandas(), GRAPH, positions=3)
    assert torch.equal(back.keep, early.keep)
    with pytest.raises(ValueError, match=r"row 0: position 2 lies outside 0\.\.1"):
        circuit_from_pandas(everywhere.to_pandas(), GRAPH, positions=2)


@given(graph=graphs(), seed=st.integers(0, 99), positions=st.sampled_from([(), (1,), (3,)]))
def test_scores_come_back_and_their_frame_is_in_the_order_of_top(graph, seed, positions) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*graph.exists.shape, *positions, generator=generator)
    values *= graph.exists if not positions else graph.exists[..., None]
    scores = sl.Scores(graph, values, "drawn")
    table = scores.to_pandas()
    back = scores_from_pandas(table, graph, method="drawn")
    assert torch.equal(back.values, values)
    inputs = [f"<{kind}>" if isinstance(kind, str) else "" for kind in table["input"]]
    pairs = zip(table["source"], table["destination"], inputs, strict=True)
    at = [f"@{place}" for place in table["position"]] if positions else [""] * len(table)
    names = [f"{a}->{b}{kind}{p}" for (a, b, kind), p in zip(pairs, at, strict=True)][:3]
    assert set(names) == set(scores.top(min(3, scores.edges)).edge_names())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.drop(columns="input"), "columns are missing: input"),
        (lambda t: t.assign(source="a99.h0"), "source 'a99.h0' is no source of"),
        (lambda t: pd.concat([t, t.head(1)]), "name the same edge"),
        (lambda t: t.iloc[1:], "has no score; give every edge a row"),
        (lambda t: t.assign(score="high"), "score 'high' is no number"),
    ],
)
def test_a_frame_that_is_no_scores_is_refused_by_its_row(change, reason) -> None:
    values = torch.arange(GRAPH.exists.numel()).view(GRAPH.exists.shape) * GRAPH.exists.float()
    table = change(sl.Scores(GRAPH, values, "counted").to_pandas())
    with pytest.raises(ValueError, match=reason):
        scores_from_pandas(table, GRAPH)


def test_weights_outside_their_range_and_wrong_ends_are_refused() -> None:
    circuit = sl.Circuit(GRAPH, GRAPH.exists)
    with pytest.raises(ValueError, match=r"weight 2\.0 lies outside \[0, 1\]"):
        circuit_from_pandas(circuit.to_pandas().assign(weight=2.0), GRAPH)
    rich = circuit.to_networkx()
    source, target, key = next(iter(rich.edges(keys=True)))
    rich.edges[source, target, key]["input"] = "nowhere"
    with pytest.raises(ValueError, match="nowhere is no input of "):
        circuit_from_networkx(rich)
