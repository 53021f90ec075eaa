"""What matters of a circuit, against paths followed edge by edge."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from strace_lens.circuits.graph import ComponentGraph
from strace_lens.circuits.live import live_parts
from tests.circuits.made import graphs, random_keep


def on_paths(
    graph: ComponentGraph, edges: set[tuple[int, int]], first: set[int]
) -> set[tuple[int, int]]:
    """The edges, (destination, source), on a path from some sources to the logits."""
    feeds: dict[int, set[int]] = {d: set() for d in range(graph.destinations)}
    for destination, source in graph.feeds.nonzero().tolist():
        feeds[destination].add(source)
    reached, useful = set(first), set()
    for _ in range(graph.sources):  # until nothing is added, however they are numbered
        for destination, source in edges:
            if source in reached:
                reached |= feeds[destination]
    for _ in range(graph.sources):
        for destination, source in edges:
            if destination == graph.destinations - 1 or feeds[destination] & useful & reached:
                useful.add(source)
    return {
        (d, s)
        for d, s in edges
        if s in reached & useful and (d == graph.destinations - 1 or feeds[d] & reached & useful)
    }


@given(graph=graphs(), seed=st.integers(0, 2**16), density=st.sampled_from([0.05, 0.2, 0.5]))
@pytest.mark.parametrize("differ", [False, True])
def test_what_matters_lies_on_a_path_to_the_logits(
    graph: ComponentGraph, seed: int, density: float, differ: bool
) -> None:
    keep = torch.stack([random_keep(graph, seed + i, soft=True) < density for i in range(2)])
    live = live_parts(graph, keep, differ=differ)
    first = set(range(graph.sources)) if differ else {0}
    for row in range(2):
        edges = {tuple(cell) for cell in (keep[row] & graph.exists).nonzero().tolist()}
        truth = on_paths(graph, edges, first)
        assert {tuple(cell) for cell in live.edges[row].nonzero().tolist()} == truth
        assert set(live.sources[row].nonzero()[:, 0].tolist()) == {s for _, s in truth}
