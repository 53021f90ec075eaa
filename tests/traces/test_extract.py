"""From a graph to its trace: the importance and the order that were asked for."""

from __future__ import annotations

import pytest
import torch

from strace_lens.traces.extract import ORDERS, extract
from strace_lens.traces.graph import token_graph
from strace_lens.traces.importance import edge_importance
from tests import tiny


@pytest.mark.parametrize("order", ["best-first", "scheduled"])
def test_extract_ranks_by_the_order_asked_for(order: str) -> None:
    graph = token_graph(tiny.bridge("llama"), tiny.token_ids(6))
    trace = extract(graph, "l2", order=order)
    expected = ORDERS[order](edge_importance(graph, "l2"), graph.shape)
    assert all(torch.equal(a, b) for a, b in zip(trace.ranks, expected, strict=True))
    assert trace.metadata["order"] == order
    assert trace.metadata["importance"] == "l2"
    kept = edge_importance(graph, "l2").flat() * graph.shape.reachable().flat()
    assert trace.importance is not None
    assert torch.equal(trace.importance.flat(), kept)


def test_an_unknown_order_is_refused() -> None:
    graph = token_graph(tiny.bridge("llama"), tiny.token_ids(4))
    with pytest.raises(ValueError, match="unknown order 'upwards'; choose from best-first"):
        extract(graph, order="upwards")
