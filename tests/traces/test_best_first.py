"""Best-first ranks against a flat heap over the whole graph in networkx."""

from __future__ import annotations

import heapq
from itertools import count

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from strace_lens.traces.best_first import best_first, connected_order
from strace_lens.traces.edges import UNREACHABLE, EdgeTensors, GraphShape, is_complete
from tests.cases import SHAPES

# Few values, so that ties abound: both zeros, two neighbours in float32, the extremes.
LEVELS = [-1.5, -0.0, 0.0, 1e-45, 0.5, float(np.nextafter(np.float32(0.5), np.float32(1))), 3e38]
PUSH_ORDER = ("residual", "mlp", "attention")


def whole_graph(importance: EdgeTensors, shape: GraphShape) -> nx.MultiDiGraph:
    """Every causal edge, those that cannot reach the output included."""
    graph = nx.MultiDiGraph()

    def add(source, target, kind: str, head: int, index: tuple[int, ...]) -> None:
        weight = getattr(importance, kind)[index].item()
        graph.add_edge(source, target, key=(kind, head), weight=weight, index=index)

    for layer in range(shape.layers):
        pre = layer * shape.sublayers
        post = pre + shape.sublayers
        for query in range(shape.tokens):
            for sublayer in range(shape.sublayers):
                node = (pre + sublayer, query), (pre + sublayer + 1, query)
                add(*node, "residual", -1, (layer, sublayer, query))
            if shape.mlp:
                add((post - 1, query), (post, query), "mlp", -1, (layer, query))
            for head in range(shape.heads):
                for key in range(query + 1):
                    index = (layer, head, query, key)
                    add((pre, key), (pre + 1, query), "attention", head, index)
    return graph


def search(graph: nx.MultiDiGraph, output: tuple[int, int]) -> list[tuple]:
    """Method.md section 3 to the letter: (kind, index) of the edges in the order taken."""
    push_number = count()
    heap, reached, taken = [], set(), []

    def reach(node: tuple[int, int]) -> None:
        reached.add(node)
        in_edges = list(graph.in_edges(node, keys=True, data=True))
        in_edges.sort(key=lambda e: (PUSH_ORDER.index(e[2][0]), e[0][1], e[2][1]))
        for source, _target, (kind, _head), data in in_edges:
            edge = (source, kind, data["index"])
            heapq.heappush(heap, (-data["weight"], next(push_number), edge))

    reach(output)
    while heap:
        *_, (source, kind, index) = heapq.heappop(heap)
        taken.append((kind, index))
        if source not in reached:
            reach(source)
    return taken


def oracle(importance: EdgeTensors, shape: GraphShape) -> EdgeTensors:
    taken = search(whole_graph(importance, shape), (shape.levels - 1, shape.tokens - 1))
    ranks = importance.map(lambda x: torch.full(x.shape, UNREACHABLE, dtype=torch.int32))
    for rank, (kind, index) in enumerate(taken):
        getattr(ranks, kind)[index] = rank
    return ranks


def random_importance(shape: GraphShape, seed: int = 0) -> EdgeTensors:
    generator = torch.Generator().manual_seed(seed)
    zeros = shape.full(0.0, torch.float32)
    return zeros.map(lambda x: x.log_normal_(generator=generator))


def assert_same(ranks: EdgeTensors, expected: EdgeTensors) -> None:
    for kind, got, want in zip(EdgeTensors._fields, ranks, expected, strict=True):
        assert got.dtype == torch.int32
        assert torch.equal(got, want), kind


@st.composite
def tied_graphs(draw: st.DrawFn) -> tuple[GraphShape, np.ndarray]:
    """A shape and as many values, of at most four kinds, as its three tensors hold."""
    shape = draw(SHAPES)
    rows = shape.heads * shape.tokens + shape.sublayers + int(shape.mlp)
    levels = draw(st.lists(st.sampled_from(LEVELS), min_size=1, max_size=4, unique_by=repr))
    size = shape.layers * rows * shape.tokens
    return shape, draw(hnp.arrays(np.float32, size, elements=st.sampled_from(levels)))


@pytest.mark.extended
@settings(max_examples=300)
@given(tied_graphs())
def test_equals_a_flat_heap_over_the_whole_graph(graph):
    shape, values = graph
    importance = shape.split(torch.from_numpy(values.copy()))
    ranks = best_first(importance, shape)
    assert_same(ranks, oracle(importance, shape))
    assert is_complete(ranks, shape)
    assert np.array_equal(importance.flat().numpy(), values)  # the input is left as it was


@pytest.mark.parametrize(("parallel", "mlp"), [(False, True), (True, True), (False, False)])
def test_equals_the_oracle_on_a_larger_graph(parallel: bool, mlp: bool):
    shape = GraphShape(layers=5, heads=4, tokens=19, parallel=parallel, mlp=mlp)
    importance = random_importance(shape)
    assert_same(best_first(importance, shape), oracle(importance, shape))


@settings(max_examples=100)
@given(tied_graphs())
def test_every_prefix_hangs_from_the_output(graph):
    shape, values = graph
    importance = shape.split(torch.from_numpy(values))
    ranks = best_first(importance, shape)
    edges = whole_graph(importance, shape).edges(keys=True, data="index")
    order = sorted(
        (getattr(ranks, kind)[index].item(), source, target)
        for source, target, (kind, _head), index in edges
    )
    reached = {(shape.levels - 1, shape.tokens - 1)}
    for _, source, target in order[: shape.edges]:
        assert target in reached
        reached.add(source)


@settings(max_examples=100)
@given(tied_graphs())
def test_a_ranking_that_hangs_is_left_as_it_is(graph):
    shape, values = graph
    ranks = best_first(shape.split(torch.from_numpy(values)), shape)
    assert_same(connected_order(ranks, shape), ranks)


# Ranks with ties and gaps, some too large for float32 to tell apart.
RANKS = [0, 1, 2, 3, 500, 2**24, 2**24 + 1, 2**30, 2**30 + 1, 2**31 - 2**24]


@pytest.mark.extended
@settings(max_examples=200)
@given(tied_graphs(), st.data())
def test_a_ranking_that_does_not_hang_is_searched_best_first(graph, data):
    shape, values = graph
    elements = st.sampled_from(RANKS)
    drawn = data.draw(hnp.arrays(np.int32, len(values), elements=elements, fill=st.nothing()))
    ranks = shape.split(torch.from_numpy(drawn.copy()))
    places = np.array([-RANKS.index(r) for r in drawn.tolist()], np.float32)
    assert_same(connected_order(ranks, shape), oracle(shape.split(torch.from_numpy(places)), shape))
    assert np.array_equal(ranks.flat().numpy(), drawn)
    unread = EdgeTensors(
        *(
            torch.where(reachable, r, UNREACHABLE)
            for r, reachable in zip(ranks, shape.reachable(), strict=True)
        )
    )
    assert_same(connected_order(unread, shape), connected_order(ranks, shape))


@pytest.mark.extended
def test_ranks_beyond_the_whole_numbers_of_float32_stay_in_order():
    heads = 2**24 + 1000
    shape = GraphShape(layers=1, heads=heads, tokens=1, mlp=False)
    attention = torch.arange(1, heads + 1, dtype=torch.int32)
    # The last pairs swapped, against the order in which ties are taken: a lost rank would show.
    attention[-1000:] = attention[-1000:].view(-1, 2).flip(1).flatten()
    attention = attention.view(shape.tensor_shapes[0])
    empty = torch.zeros(shape.tensor_shapes[2], dtype=torch.int32)
    ranks = EdgeTensors(attention, torch.zeros(1, 1, 1, dtype=torch.int32), empty)
    assert_same(connected_order(ranks, shape), ranks)


def test_a_graph_worked_by_hand():
    shape = GraphShape(layers=1, heads=1, tokens=2)
    importance = shape.full(0.0, torch.float32)
    importance.residual[0, 1, 1] = 0.4  # the output's own in-edges
    importance.mlp[0, 1] = 0.6
    importance.residual[0, 0, 1] = 0.1  # then those of hook_resid_mid
    importance.attention[0, 0, 1] = torch.tensor([0.7, 0.2])
    ranks = best_first(importance, shape)
    assert ranks.mlp[0].tolist() == [UNREACHABLE, 0]
    assert ranks.attention[0, 0].tolist() == [[UNREACHABLE, UNREACHABLE], [1, 3]]
    assert ranks.residual[0].tolist() == [[UNREACHABLE, 4], [UNREACHABLE, 2]]


def test_ties_go_to_residual_then_mlp_then_source_token_then_head():
    shape = GraphShape(layers=1, heads=2, tokens=3, parallel=True)
    ranks = best_first(shape.full(0.25, torch.float32), shape)
    assert ranks.residual[0, 0, 2] == 0
    assert ranks.mlp[0, 2] == 1
    assert ranks.attention[0, :, 2].tolist() == [[2, 4, 6], [3, 5, 7]]


def test_neighbours_in_float32_are_no_tie_and_both_zeros_are_one():
    shape = GraphShape(layers=1, heads=1, tokens=2, mlp=False)
    importance = shape.full(0.5, torch.float32)
    importance.attention[0, 0, 1, 1] = np.nextafter(np.float32(0.5), np.float32(1)).item()
    ranks = best_first(importance, shape)
    assert ranks.residual[0, 0, 1] == 1
    assert ranks.attention[0, 0, 1].tolist() == [2, 0]

    importance = shape.full(0.0, torch.float32)
    importance.residual[0, 0, 1] = -0.0
    importance.attention[0, 0, 1, 0] = -1e-45
    ranks = best_first(importance, shape)
    assert ranks.residual[0, 0, 1] == 0
    assert ranks.attention[0, 0, 1].tolist() == [2, 1]


def test_strided_and_differentiable_importances_give_the_same_ranks():
    shape = GraphShape(layers=2, heads=3, tokens=4)
    importance = random_importance(shape)
    attention = importance.attention.transpose(1, 2).contiguous().transpose(1, 2)
    assert not attention.is_contiguous()
    strided = importance._replace(attention=attention.requires_grad_())
    assert_same(best_first(strided, shape), best_first(importance, shape))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("kind", "index", "where"),
    [
        ("attention", (0, 2, 3, 1), "attention edge at layer 0, head 2, query 3, key 1"),
        ("residual", (1, 0, 3), "residual edge at layer 1, sublayer 0, pos 3"),
        ("mlp", (1, 3), "mlp edge at layer 1, pos 3"),
    ],
)
def test_refuses_a_non_finite_importance_by_name(value: float, kind: str, index, where: str):
    shape = GraphShape(layers=2, heads=3, tokens=4)
    importance = random_importance(shape)
    getattr(importance, kind)[index] = value
    with pytest.raises(ValueError, match=f"got {value} for the {where}"):
        best_first(importance, shape)


def test_importances_of_unreachable_edges_are_not_read():
    shape = GraphShape(layers=2, heads=2, tokens=3)
    importance = random_importance(shape)
    unreachable = shape.reachable().map(torch.logical_not)
    filled = EdgeTensors(
        *(x.masked_fill(u, float("nan")) for x, u in zip(importance, unreachable, strict=True))
    )
    assert_same(best_first(filled, shape), best_first(importance, shape))


def test_refuses_a_wrong_shape_or_dtype():
    shape = GraphShape(layers=2, heads=2, tokens=3)
    importance = random_importance(shape)
    with pytest.raises(ValueError, match=r"mlp importances .* need shape \(2, 3\) .* got \(1, 3\)"):
        best_first(importance._replace(mlp=importance.mlp[:1]), shape)
    with pytest.raises(ValueError, match=r"residual importances .* need shape \(2, 1, 3\)"):
        best_first(importance, GraphShape(layers=2, heads=2, tokens=3, parallel=True))
    with pytest.raises(ValueError, match=r"attention importances must be torch\.float32; got .*64"):
        best_first(importance._replace(attention=importance.attention.double()), shape)


def test_refuses_more_edges_than_an_int32_can_rank():
    shape = GraphShape(layers=100, heads=100, tokens=1000)
    one = torch.ones(())
    huge = EdgeTensors(
        one.expand(100, 100, 1000, 1000), one.expand(100, 2, 1000), one.expand(100, 1000)
    )
    with pytest.raises(ValueError, match=f"got {shape.edges}"):
        best_first(huge, shape)
