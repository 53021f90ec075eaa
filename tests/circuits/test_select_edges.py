"""The integer program against every subset of a tiny graph's edges."""

from __future__ import annotations

import itertools

import pytest
import torch

from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.graph import ComponentGraph
from strace_lens.circuits.scores import Scores
from strace_lens.circuits.select_edges import best_connected

SMALL = (
    ComponentGraph("one", layers=1, heads=2, kv_heads=1, mlp=True),
    ComponentGraph("attention", layers=2, heads=1, kv_heads=1, mlp=False),
)


def scores_of(graph: ComponentGraph, seed: int, *, signed: bool = True) -> Scores:
    values = torch.randn(graph.exists.shape, generator=torch.Generator().manual_seed(seed))
    return Scores(graph, values * graph.exists, "drawn", signed=signed)


def best_by_hand(scores: Scores, size: int, *, absolute: bool) -> float:
    """The greatest sum over all subsets of which no edge is off a path."""
    values = scores.values.abs() if absolute else scores.values
    cells, best = scores.graph.exists.nonzero().tolist(), 0.0
    for count in range(1, size + 1):
        for chosen in itertools.combinations(cells, count):
            keep = torch.zeros_like(scores.graph.exists)
            for cell in chosen:
                keep[tuple(cell)] = True
            if len(Circuit(scores.graph, keep).connected()) == count:
                best = max(best, float(values[keep].sum()))
    return best


@pytest.mark.parametrize("graph", SMALL, ids=str)
@pytest.mark.parametrize("absolute", [True, False])
def test_it_is_the_best_of_all_subsets(graph: ComponentGraph, absolute: bool) -> None:
    better = 0
    for seed in range(4):
        scores = scores_of(graph, seed)
        for size in (2, 3)[: 1 + (seed == 0)]:
            found = best_connected(scores, size, absolute=absolute)
            assert len(found) <= size
            assert len(found.connected()) == len(found)
            values = scores.values.abs() if absolute else scores.values
            worth = float(values[found.keep].sum())
            assert worth == pytest.approx(best_by_hand(scores, size, absolute=absolute))
            greedy = scores.top(size, absolute=absolute).connected()
            better += worth > float(values[greedy.keep].sum()) + 1e-6
    assert better > 0


def test_all_edges_and_one() -> None:
    scores = scores_of(ComponentGraph("two", layers=2, heads=2, kv_heads=1), 0)
    assert len(best_connected(scores, scores.graph.edges)) == scores.graph.edges
    assert len(best_connected(scores, 1.0)) == scores.graph.edges
    assert len(best_connected(scores, 1e-6)) == 0
    assert len(best_connected(scores, 1)) == 1  # from the embedding to the logits


def test_bad_sizes_and_scores_by_position_are_refused() -> None:
    scores = scores_of(SMALL[0], 0)
    with pytest.raises(ValueError, match=r"must lie in 1\.\.\d+; got 1200"):
        best_connected(scores, 1200)
    wide = Scores(scores.graph, scores.values[..., None].expand(-1, -1, 2), "drawn")
    with pytest.raises(ValueError, match="alike at every position"):
        best_connected(wide, 2)
