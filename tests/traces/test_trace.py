"""Sizes, subgraphs and their networkx form."""

from __future__ import annotations

import math
from fractions import Fraction

import networkx as nx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from strace_lens.model.prompts import Prompt
from strace_lens.traces import trace as trace_module
from strace_lens.traces.edges import UNREACHABLE, GraphShape, hook_name
from strace_lens.traces.trace import Trace, check_size
from strace_lens.utils.choices import KINDS
from tests.live_bytes import LiveBytes

SHAPES = [
    GraphShape(2, 2, 3),
    GraphShape(3, 1, 4, parallel=True),
    GraphShape(2, 3, 2, mlp=False),
]


def trace_of(shape: GraphShape, seed: int = 0) -> Trace:
    """A trace whose edges are ranked at random."""
    reachable = shape.reachable().flat()
    ranks = torch.full(reachable.shape, UNREACHABLE, dtype=torch.int32)
    generator = torch.Generator().manual_seed(seed)
    ranks[reachable] = torch.randperm(shape.edges, generator=generator).int()
    strings = tuple("abcdefgh"[: shape.tokens])
    prompt = Prompt("".join(strings), tuple(range(shape.tokens)), strings)
    made = {"model": "toy", "importance": "l1", "order": "best-first"}
    return Trace(shape, prompt, shape.split(ranks), made)


@given(numerator=st.integers(1, 10_000), digits=st.integers(1, 4), heads=st.integers(1, 40))
def test_a_size_written_in_decimals_counts_exactly(numerator: int, digits: int, heads: int) -> None:
    """floor(s * |E|) of the number as written, whatever its nearest float is."""
    written = Fraction(min(numerator, 10**digits), 10**digits)
    trace = trace_of(GraphShape(2, heads, 5))
    assert trace.edge_count(float(written)) == math.floor(written * trace.edges)


def test_a_product_just_below_a_whole_number_is_that_number() -> None:
    shape = GraphShape(1, 97, 1)
    assert shape.edges == 100
    assert 0.29 * 100 < 29
    assert trace_of(shape).edge_count(0.29) == 29
    assert trace_of(shape).edge_count(0.2899) == 28
    assert trace_of(shape).edge_count(1e-5) == 0
    assert trace_of(shape).edge_count(1.0) == 100


@pytest.mark.parametrize("size", [0.0, -0.1, 1.0000001, 3.0, math.nan, math.inf])
def test_sizes_outside_the_unit_interval_are_refused(size: float) -> None:
    with pytest.raises(ValueError, match=rf"lie in \(0, 1\]; got {size}"):
        trace_of(SHAPES[0]).edge_count(size)
    with pytest.raises(ValueError, match="lie in"):
        check_size(size)


@pytest.mark.parametrize("shape", SHAPES)
def test_traces_are_nested_and_of_their_size(shape: GraphShape) -> None:
    trace = trace_of(shape)
    assert trace.edges == shape.edges
    smaller = trace.first(0)
    assert smaller.edges == 0
    for k in range(1, trace.edges + 1):
        larger = trace.first(k)
        assert larger.edges == k
        assert not (smaller.kept.flat() & ~larger.kept.flat()).any()
        smaller = larger
    assert torch.equal(smaller.kept.flat(), shape.reachable().flat())
    half = trace.subgraph(0.5)
    assert half.edges == trace.edges // 2


@pytest.mark.parametrize("shape", SHAPES)
def test_to_networkx_has_the_edges_with_their_hook_points_and_ranks(shape: GraphShape) -> None:
    trace = trace_of(shape)
    for k in (0, 1, shape.edges // 2, shape.edges):
        graph = trace.first(k).to_networkx()
        assert isinstance(graph, nx.MultiDiGraph)
        assert graph.number_of_edges() == k
        assert sorted(d["rank"] for *_, d in graph.edges(data=True)) == list(range(k))
    levels = {hook_name(shape, level): level for level in range(shape.levels)}
    for (source, key), (target, query), data in graph.edges(data=True):
        kind, layer, head = data["kind"], data["layer"], data["head"]
        assert levels[target] == levels[source] + 1
        assert key <= query
        assert (head is None) == (kind != "attention")
        assert target.startswith(f"blocks.{layer}.")
        tensor = getattr(trace.ranks, kind)
        sublayer = levels[source] - shape.sublayers * layer
        index = {
            "attention": (layer, head, query, key),
            "residual": (layer, sublayer, query),
            "mlp": (layer, query),
        }[kind]
        assert tensor[index] == data["rank"]
    for (_, position), token in graph.nodes(data="token"):
        assert token == "abcd"[position]
    output = (hook_name(shape, shape.levels - 1), shape.tokens - 1)
    assert nx.ancestors(graph, output) | {output} == set(graph.nodes)


@pytest.mark.parametrize("shape", SHAPES)
def test_counts_by_size_count_what_the_subgraphs_hold(shape: GraphShape) -> None:
    trace = trace_of(shape)
    sizes = [shape.edges, 0, 3, 3, shape.edges // 2]  # neither sorted nor unique
    counts = trace.counts_by_size(sizes)
    assert counts.shape == (len(sizes), len(KINDS), shape.layers)
    for row, k in zip(counts, sizes, strict=True):
        kept = trace.first(k).kept
        for kind, by_layer in zip(KINDS, row, strict=True):
            truth = [int(block.sum()) for block in getattr(kept, kind)]
            assert by_layer.tolist() == (truth or [0] * shape.layers)


def test_a_trace_and_its_subgraph_print_their_sizes() -> None:
    trace = trace_of(SHAPES[0])
    assert repr(trace) == "Trace(toy: 30 edges over 3 tokens, best-first by l1)"
    tokens = [f"<code>'{token}'</code>" for token in "abc"]
    assert " ".join(tokens) in trace._repr_html_()
    assert repr(trace.subgraph(0.5)) == "Subgraph(15 of 30 edges, s = 0.5)"


def test_edges_are_counted_in_any_parts_and_at_sizes_in_any_order() -> None:
    generator = torch.Generator().manual_seed(0)
    ranks = torch.randperm(100, generator=generator).int()
    parts, edges = [ranks[:30].view(5, 6), ranks[30:31], ranks[31:80], ranks[80:]], [50, 1, 100, 7]
    counts = trace_module.edges_by_size(parts, edges)
    assert counts.tolist() == [[int((part < k).sum()) for part in parts] for k in edges]
    with LiveBytes() as live:
        trace_module.edges_by_size([torch.arange(10_000, dtype=torch.int32)] * 50, edges)
    assert live.most < 100 * 10_000
