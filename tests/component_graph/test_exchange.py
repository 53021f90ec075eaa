"""Circuits and scores as pandas frames and networkx graphs, there and back."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import strace_lens as sl
from tests.component_graph.made import MASKS, graphs, plain_graph, random_keep


@given(graph=graphs(), seed=st.integers(0, 99), kind=st.sampled_from(sorted(MASKS)))
def test_a_circuit_comes_back(graph, seed, kind) -> None:
    keep = random_keep(graph, seed, **MASKS[kind])
    exists = graph.exists if keep.ndim == 2 else graph.exists[..., None]
    circuit = sl.Circuit(graph, keep * exists)
    back = sl.circuit_from_networkx(circuit.to_networkx())
    assert torch.equal(back.keep, circuit.keep)
    table = circuit.to_pandas().sample(frac=1, random_state=seed)
    positions = keep.shape[2] if keep.ndim == 3 else None
    back = sl.circuit_from_pandas(table, graph, positions=positions)
    assert torch.equal(back.keep.double(), circuit.keep.double())


@given(graph=graphs(), seed=st.integers(0, 99))
def test_scores_come_back_and_their_frame_is_in_the_order_of_top(graph, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(graph.exists.shape, generator=generator) * graph.exists
    scores = sl.Scores(graph, values, "drawn")
    table = scores.to_pandas()
    back = sl.scores_from_pandas(table, graph, method="drawn")
    assert torch.equal(back.values, values)
    inputs = [f"<{kind}>" if isinstance(kind, str) else "" for kind in table["input"]]
    pairs = zip(table["source"], table["destination"], inputs, strict=True)
    names = [f"{source}->{destination}{kind}" for source, destination, kind in pairs][:3]
    assert set(names) == set(scores.top(min(3, graph.edges)).edge_names())


GRAPH = plain_graph("gpt2")


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
        sl.scores_from_pandas(table, GRAPH)


def test_weights_outside_their_range_and_wrong_ends_are_refused() -> None:
    circuit = sl.Circuit(GRAPH, GRAPH.exists)
    with pytest.raises(ValueError, match=r"weight 2\.0 lies outside \[0, 1\]"):
        sl.circuit_from_pandas(circuit.to_pandas().assign(weight=2.0), GRAPH)
    rich = circuit.to_networkx()
    source, target, key = next(iter(rich.edges(keys=True)))
    rich.edges[source, target, key]["input"] = "nowhere"
    with pytest.raises(ValueError, match="enters nowhere, no input of it"):
        sl.circuit_from_networkx(rich)
