"""Scheduling against brute force over initial sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from strace_lens.traces.best_first import best_first
from strace_lens.traces.edges import UNREACHABLE, EdgeTensors, GraphShape, is_complete
from strace_lens.traces.schedule import (
    FREE,
    kept_last,
    schedule,
    schedule_ablatable,
)
from strace_lens.utils.choices import KINDS
from tests.cases import SHAPES

# Few values, so that ties abound and sums are exact.
LEVELS = [-1.0, -0.0, 0.0, 0.5, 1.0, 2.0, 4.0, 64.0]
COSTS = [None, 0.5, 1.0, 3.0]
SHAPES_OF_BLOCKS = [(False, True), (True, True), (False, False)]  # parallel, mlp
Node = tuple[int, int]  # level, token


class Edge(NamedTuple):
    kind: str
    index: tuple[int, ...]
    source: Node
    target: Node

    @property
    def residual(self) -> bool:
        return self.kind == "residual"

    @property
    def within_column(self) -> bool:
        return self.source[1] == self.target[1]


def reachable_edges(shape: GraphShape) -> list[Edge]:
    edges = []
    last = shape.tokens - 1
    for layer in range(shape.layers):
        pre = layer * shape.sublayers
        post = pre + shape.sublayers
        for t in range(shape.tokens) if layer < shape.layers - 1 else [last]:
            for sublayer in range(shape.sublayers):
                level = pre + sublayer
                edges.append(Edge("residual", (layer, sublayer, t), (level, t), (level + 1, t)))
            if shape.mlp:
                edges.append(Edge("mlp", (layer, t), (post - 1, t), (post, t)))
            for head in range(shape.heads):
                for key in range(t + 1):
                    index = (layer, head, t, key)
                    edges.append(Edge("attention", index, (pre, key), (pre + 1, t)))
    assert len(edges) == shape.edges
    return edges


def value_at(tensors: EdgeTensors, edge: Edge) -> float:
    return getattr(tensors, edge.kind)[edge.index].item()


def in_order(ranks: EdgeTensors, shape: GraphShape) -> list[Edge]:
    assert is_complete(ranks, shape)
    assert all(r.dtype == torch.int32 for r in ranks)
    return sorted(reachable_edges(shape), key=lambda edge: value_at(ranks, edge))


def column(token: int, level: int) -> list[Node]:
    """The nodes of a token from a level down to level 1, each with a residual in-edge."""
    return [(at, token) for at in range(level, 0, -1)]


# Scheduling: the problem of the docstring, with every initial set written out.


class Jobs(NamedTuple):
    edges: list[Edge]
    values: np.ndarray
    costs: np.ndarray
    needs: list[list[Node]]  # nodes whose residual in-edge each edge needs


def residual_needs(edge: Edge, shape: GraphShape) -> list[Node]:
    """Nodes whose residual in-edges an initial set must hold beside the edge; the rest follows.

    Those of the last token are free, and in every set.
    """
    nodes = [edge.source] if edge.residual else [edge.source, edge.target]
    return [n for n in nodes if n[0] > 0 and n[1] < shape.tokens - 1]


def jobs_of(
    edges: Sequence[Edge],
    scores: EdgeTensors,
    need: dict[Node, float],
    shape: GraphShape,
    residual_cost: float | None,
) -> Jobs:
    link = shape.sublayers if residual_cost is None else residual_cost
    values = [
        0.0 if e.residual else max(0.0, min(value_at(scores, e), need[e.target])) for e in edges
    ]
    costs = [link / shape.sublayers if e.residual else 1.0 for e in edges]
    needs = [residual_needs(e, shape) for e in edges]
    return Jobs(list(edges), np.array(values), np.array(costs), needs)


def densest_blocks(jobs: Jobs) -> Iterator[tuple[float, list[Edge]]]:
    """Density and edges of each block, by enumeration of all initial sets."""
    count = len(jobs.edges)
    place = {e.target: i for i, e in enumerate(jobs.edges) if e.residual}
    sets = np.arange(2**count)
    for i, nodes in enumerate(jobs.needs):
        for node in nodes:
            sets = sets[(sets >> i & 1) <= (sets >> place[node] & 1)]
    holds = (sets[:, None] >> np.arange(count) & 1).astype(float)
    value, cost = holds @ jobs.values, holds @ jobs.costs
    done = 0
    while done != 2**count - 1:
        now = int(np.flatnonzero(sets == done)[0])
        larger = ((sets & done) == done) & (sets != done)
        density = (value[larger] - value[now]) / (cost[larger] - cost[now])
        block = int(np.bitwise_or.reduce(sets[larger][density == density.max()])) & ~done
        yield float(density.max()), [e for i, e in enumerate(jobs.edges) if block >> i & 1]
        done |= block


Blocks = Callable[[Jobs], Iterator[tuple[float, list[Edge]]]]


def needs_by_column(
    scores: EdgeTensors, shape: GraphShape, residual_cost: float | None, blocks: Blocks
) -> dict[Node, float]:
    """Need of every node: the blocks of each column from the reads of later tokens alone."""
    edges = reachable_edges(shape)
    last = shape.tokens - 1
    need = dict.fromkeys(column(last, shape.levels - 1), np.inf)
    for token in range(last - 1, -1, -1):
        chosen = [e for e in edges if e.source[1] == token and (e.residual or not e.within_column)]
        # The reads of the embedding need no residual edge of this column: each is its own block.
        chosen = [e for e in chosen if e.residual or e.source[0] > 0]
        jobs = jobs_of(chosen, scores, need, shape, residual_cost)
        # What the targets need, in later columns, is there: their needs bound the values.
        jobs = jobs._replace(needs=[[n for n in ns if n[1] == token] for ns in jobs.needs])
        for density, block in blocks(jobs):
            for e in block:
                if e.residual:
                    need[e.target] = float(np.float32(density))
    return need


def priorities(scores: EdgeTensors, shape: GraphShape, need: dict[Node, float]) -> list[float]:
    """Priority of each reachable edge: a block takes all that its density lets it."""
    found = []
    for e in reachable_edges(shape):
        if e.residual:
            found.append(need[e.target])
        else:
            bounds = [need[n] for n in (e.target, e.source) if n[0] > 0]
            found.append(max(0.0, min(value_at(scores, e), *bounds)))
    return found


def assert_ranked_by(priority: Sequence[float], ranks: EdgeTensors, shape: GraphShape) -> None:
    """All edges of a block, and blocks of one density together, rank before those of the next."""
    known = dict(zip(reachable_edges(shape), priority, strict=True))
    falling = [known[e] for e in in_order(ranks, shape)]
    assert falling == sorted(falling, reverse=True)


def blocks_by_threshold(jobs: Jobs) -> Iterator[tuple[float, list[Edge]]]:
    """The blocks of one column until its residual edges are taken, on graphs of any size.

    The densest set that buys a column up to some level holds, of the reads it allows, those above
    some value; so it is among the sets tried here. The largest density found wins, and then the
    largest set.
    """
    left = list(range(len(jobs.edges)))
    level = np.array([max((n[0] for n in nodes), default=0) for nodes in jobs.needs])
    residual = np.array([e.residual for e in jobs.edges])
    level[residual] += 1
    while any(residual[left]):
        best = (-1.0, 0.0, [])
        for top in set(level[left]):
            allowed = [i for i in left if level[i] <= top]
            for least in {0.0, *jobs.values[[i for i in allowed if not residual[i]]]}:
                block = [i for i in allowed if residual[i] or jobs.values[i] >= least]
                cost = jobs.costs[block].sum()
                best = max(best, (jobs.values[block].sum() / cost, cost, block))
        yield float(best[0]), [jobs.edges[i] for i in best[2]]
        left = [i for i in left if i not in set(best[2])]


@st.composite
def graphs(
    draw: st.DrawFn, max_layers: int = 3, max_heads: int = 2, max_tokens: int = 4
) -> tuple[GraphShape, np.ndarray]:
    """A shape and as many scores, of at most four values, as its three tensors hold.

    Each entry is drawn alike, not most of them one fill value: blocks differ only where scores do.
    """
    parallel, mlp = draw(st.sampled_from(SHAPES_OF_BLOCKS))
    shape = GraphShape(
        layers=draw(st.integers(1, max_layers)),
        heads=draw(st.integers(1, max_heads)),
        tokens=draw(st.integers(1, max_tokens)),
        parallel=parallel,
        mlp=mlp,
    )
    rows = shape.heads * shape.tokens + shape.sublayers + int(shape.mlp)
    size = shape.layers * rows * shape.tokens
    levels = draw(st.lists(st.sampled_from(LEVELS), min_size=1, max_size=4, unique_by=repr))
    elements = st.sampled_from(levels)
    return shape, draw(hnp.arrays(np.float32, size, elements=elements, fill=st.nothing()))


def shape_and_scores(graph: tuple[GraphShape, np.ndarray]) -> tuple[GraphShape, EdgeTensors]:
    shape, values = graph
    return shape, shape.split(torch.from_numpy(values.copy()))


def random_scores(shape: GraphShape, seed: int = 0) -> EdgeTensors:
    """Whole numbers with a heavy tail, so that sums and densities are exact."""
    generator = torch.Generator().manual_seed(seed)
    zeros = shape.full(0.0, torch.float32)
    return zeros.map(lambda x: x.log_normal_(std=2, generator=generator).mul_(8).floor_())


# Tests.


@pytest.mark.extended
@settings(max_examples=300)
@given(graphs(), st.sampled_from(COSTS))
def test_scheduled_blocks_are_those_of_brute_force(graph, cost):
    shape, scores = shape_and_scores(graph)
    need = needs_by_column(scores, shape, cost, densest_blocks)
    ranks = schedule(scores, shape, cost)
    assert_ranked_by(priorities(scores, shape, need), ranks, shape)


@pytest.mark.extended
@settings(max_examples=200)
@given(graphs(max_tokens=3), st.sampled_from(COSTS))
def test_needs_and_blocks_solve_the_whole_problem_together(graph, cost):
    # All edges at once, those within a column too, over all initial sets of the whole graph.
    shape, scores = shape_and_scores(graph)
    last = shape.tokens - 1
    edges = [e for e in reachable_edges(shape) if not (e.residual and e.target[1] == last)]
    assume(len(edges) <= 17)
    need = needs_by_column(scores, shape, cost, densest_blocks)
    jobs = jobs_of(edges, scores, need, shape, cost)
    density_of = dict.fromkeys(reachable_edges(shape), np.inf)
    for density, block in densest_blocks(jobs):
        for e in block:
            density_of[e] = float(np.float32(density))
            if e.residual:
                assert density_of[e] == need[e.target]
    assert_ranked_by(list(density_of.values()), schedule(scores, shape, cost), shape)


@pytest.mark.parametrize(("parallel", "mlp"), SHAPES_OF_BLOCKS)
@pytest.mark.parametrize("cost", [None, 3.0])
def test_scheduled_blocks_on_a_larger_graph(parallel: bool, mlp: bool, cost: float | None):
    shape = GraphShape(layers=6, heads=3, tokens=9, parallel=parallel, mlp=mlp)
    scores = random_scores(shape)
    need = needs_by_column(scores, shape, cost, blocks_by_threshold)
    assert len(set(need.values())) > 2 * shape.tokens  # columns of several blocks
    assert_ranked_by(priorities(scores, shape, need), schedule(scores, shape, cost), shape)


@settings(max_examples=150)
@given(graph=graphs())
def test_prefixes_hang_and_columns_follow_their_first_read_at_once(graph):
    shape, scores = shape_and_scores(graph)
    output = (shape.levels - 1, shape.tokens - 1)
    reached = {output}
    missing = column(output[1], output[0])  # nodes without a residual in-edge, highest first
    for e in in_order(schedule(scores, shape), shape):
        assert e.target in reached
        if missing:
            assert e.residual
            assert e.target == missing.pop(0)
        elif e.source not in reached:
            level, token = e.source
            missing = [node for node in column(token, level) if node not in reached]
        reached.add(e.source)
    assert not missing


def test_best_first_on_minus_the_rank_gives_the_ranks():
    shape = GraphShape(layers=4, heads=3, tokens=8)
    ranks = schedule(random_scores(shape), shape)
    again = best_first(ranks.map(lambda r: -r.float()), shape)
    assert all(torch.equal(a, b) for a, b in zip(again, ranks, strict=True))


def two_layers() -> tuple[GraphShape, EdgeTensors]:
    """An attention-only graph where only reads of token 0 at layers 1 and 0 differ."""
    shape = GraphShape(layers=2, heads=2, tokens=2, mlp=False)
    scores = shape.full(0.0, torch.float32)
    scores.attention[1, 0, 1, 0] = 5.0  # reads token 0 above a link of cost 1
    scores.attention[1, 1, 1, 0] = 1.0
    scores.attention[0, 0, 1, 0] = 2.0  # reads its embedding, which is free
    scores.attention[0, 1, 0, 0] = 9.0  # within the column: no more than the column's need
    return shape, scores


def test_a_schedule_worked_by_hand():
    shape, scores = two_layers()
    # The read of 5 and its link are worth 5/2 an edge; after them the read of the embedding, 2.
    ranks = schedule(scores, shape)
    assert ranks.residual[:, 0].tolist() == [[3, 1], [UNREACHABLE, 0]]
    assert ranks.attention[1, :, 1, 0].tolist() == [2, 6]
    assert ranks.attention[0, 1, 0, 0] == 4  # min(9, 5/2)
    assert ranks.attention[0, 0, 1, 0] == 5

    # A link of cost 3 makes that 5/4: the embedding comes first.
    ranks = schedule(scores, shape, residual_cost=3.0)
    assert ranks.attention[0, 0, 1, 0] == 2
    assert ranks.attention[1, 0, 1, 0] == 3
    assert ranks.residual[0, 0, 0] == 4


def test_scores_that_do_not_count():
    """Residual and unreachable entries are not read, negative scores are zeros."""
    shape = GraphShape(layers=4, heads=2, tokens=6)
    scores = random_scores(shape).map(lambda x: x - 12)
    expected = schedule(scores.map(lambda x: x.clamp(min=0)), shape)
    unread = shape.reachable().map(torch.logical_not)
    unread.residual.fill_(True)
    filled = EdgeTensors(
        *(x.masked_fill(u, float("nan")) for x, u in zip(scores, unread, strict=True))
    )
    kept = filled.map(torch.clone)
    assert all(torch.equal(a, b) for a, b in zip(schedule(filled, shape), expected, strict=True))
    for a, b in zip(filled, kept, strict=True):  # the input is left as it was
        assert torch.equal(a.nan_to_num(7.5), b.nan_to_num(7.5))


def test_strided_and_differentiable_scores_give_the_same_ranks():
    shape = GraphShape(layers=2, heads=3, tokens=4)
    scores = random_scores(shape)
    attention = scores.attention.transpose(1, 2).contiguous().transpose(1, 2)
    assert not attention.is_contiguous()
    ranks = schedule(scores._replace(attention=attention.requires_grad_()), shape)
    assert all(torch.equal(a, b) for a, b in zip(ranks, schedule(scores, shape), strict=True))


def test_scores_as_large_and_as_small_as_float32_holds():
    shape = GraphShape(layers=3, heads=2, tokens=4)
    largest, least = torch.finfo(torch.float32).max, 1e-45
    for value in (largest, least):
        ranks = schedule(shape.full(value, torch.float32), shape)
        columns = in_order(ranks, shape)[: shape.levels - 1]
        assert [e.target for e in columns] == column(shape.tokens - 1, shape.levels - 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_refuses_a_non_finite_score_by_name(value: float):
    shape = GraphShape(layers=2, heads=3, tokens=4)
    scores = random_scores(shape)
    scores.attention[0, 2, 3, 1] = value
    where = "attention edge at layer 0, head 2, query 3, key 1"
    with pytest.raises(ValueError, match=f"got {value} for the {where}"):
        schedule(scores, shape)
    scores = random_scores(shape)
    scores.mlp[1, 3] = value
    with pytest.raises(ValueError, match=f"got {value} for the mlp edge at layer 1, pos 3"):
        schedule(scores, shape)


def test_refuses_a_wrong_shape_or_dtype_or_too_many_edges():
    shape = GraphShape(layers=2, heads=2, tokens=3)
    scores = random_scores(shape)
    with pytest.raises(ValueError, match=r"mlp importances .* need shape \(2, 3\) .* got \(1, 3\)"):
        schedule(scores._replace(mlp=scores.mlp[:1]), shape)
    with pytest.raises(ValueError, match=r"residual importances .* need shape \(2, 1, 3\)"):
        schedule(scores, GraphShape(layers=2, heads=2, tokens=3, parallel=True))
    with pytest.raises(ValueError, match=r"attention importances must be torch\.float32; got .*64"):
        schedule(scores._replace(attention=scores.attention.double()), shape)

    shape = GraphShape(layers=100, heads=100, tokens=1000)
    one = torch.ones(())
    huge = EdgeTensors(
        one.expand(100, 100, 1000, 1000), one.expand(100, 2, 1000), one.expand(100, 1000)
    )
    with pytest.raises(ValueError, match=f"got {shape.edges}"):
        schedule(huge, shape)


@pytest.mark.parametrize("cost", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_a_residual_cost_that_is_none(cost: float):
    shape, scores = two_layers()
    with pytest.raises(ValueError, match=f"residual_cost must be positive and finite; got {cost}"):
        schedule(scores, shape, cost)


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
