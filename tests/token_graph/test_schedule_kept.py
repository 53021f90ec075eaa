"""Orders in which kinds of edges that are never ablated come last, edge by edge."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strace_lens.token_graph.edges import KINDS, EdgeTensors, GraphShape
from strace_lens.token_graph.schedule import schedule
from strace_lens.token_graph.schedule_kept import FREE, kept_last, schedule_ablatable
from tests.cases import SHAPES
from tests.token_graph.test_schedule import Edge, in_order

KEEPS = st.lists(st.sampled_from(KINDS), unique=True).map(tuple)
SEEDS = st.integers(0, 2**31)


def scores_of(shape: GraphShape, seed: int) -> EdgeTensors:
    """Few values, so that there are ties."""
    generator = torch.Generator().manual_seed(seed)
    return shape.full(0.0, torch.float32).map(
        lambda x: torch.randint(0, 6, x.shape, generator=generator).float()
    )


def kept_behind(edges: Sequence[Edge], keep: Sequence[str]) -> list[Edge]:
    """Edges that can be ablated, then the others, each in the order given."""
    return sorted(edges, key=lambda edge: edge.kind in keep)


@settings(max_examples=60)
@given(shape=SHAPES, keep=KEEPS, seed=SEEDS)
def test_kept_kinds_come_last_in_the_order_that_they_had(
    shape: GraphShape, keep: tuple[str, ...], seed: int
) -> None:
    scores = scores_of(shape, seed)
    ranks = schedule(scores, shape)
    assert in_order(kept_last(ranks, shape, keep), shape) == kept_behind(
        in_order(ranks, shape), keep
    )
    # `in_order` holds the ranks to be complete.
    scheduled = in_order(schedule_ablatable(scores, shape, keep), shape)
    cost = FREE if "residual" in keep else None
    assert scheduled == kept_behind(in_order(schedule(scores, shape, cost), shape), keep)


@given(shape=SHAPES, seed=SEEDS, cost=st.sampled_from([None, 0.5, 3.0]))
def test_with_nothing_kept_it_is_the_schedule(
    shape: GraphShape, seed: int, cost: float | None
) -> None:
    scores = scores_of(shape, seed)
    ours, theirs = (
        order(scores, shape, *rest)
        for order, rest in ((schedule_ablatable, ((), cost)), (schedule, (cost,)))
    )
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_where_residual_edges_are_kept_a_column_costs_next_to_nothing() -> None:
    """A read of 2 through a column of many links, beside a read of 1 that needs none."""
    shape = GraphShape(layers=3, heads=1, tokens=2, mlp=False)
    scores = shape.full(0.0, torch.float32)
    scores.attention[2, 0, 1, 0] = 2  # reads token 0 above two layers
    scores.attention[0, 0, 1, 0] = 1  # reads its embedding

    def first(keep: tuple[str, ...], residual_cost: float | None = None) -> tuple[int, ...]:
        ranks = schedule_ablatable(scores, shape, keep, residual_cost)
        reads = [e for e in in_order(ranks, shape) if e.kind == "attention"]
        return reads[0].index

    assert first(()) == (0, 0, 1, 0)
    assert first(("mlp",)) == (0, 0, 1, 0)
    assert first(("residual",)) == (2, 0, 1, 0)
    assert first(("residual",), residual_cost=50.0) == (2, 0, 1, 0)


@pytest.mark.parametrize("keep", [("attention",), ("mlp",), ("residual", "attention")])
def test_scores_of_kept_edges_decide_which_columns_are_bought(keep: tuple[str, ...]) -> None:
    """The MLP of a token that attention reads ranks before that of one that nothing reads."""
    shape = GraphShape(layers=2, heads=1, tokens=3)
    scores = shape.full(0.0, torch.float32)
    scores.mlp[0, :2] = 1.0
    scores.attention[1, 0, 2, 1] = 5.0
    edges = in_order(schedule_ablatable(scores, shape, keep), shape)
    places = [
        edges.index(next(e for e in edges if e.kind == "mlp" and e.index == (0, t))) for t in (1, 0)
    ]
    assert places[0] < places[1]
