"""Edges on a path from a token to the output: against networkx, and against a masked model."""

from __future__ import annotations

import math

import networkx as nx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import strace_lens as sl
from strace_lens.model.prompts import Prompt
from strace_lens.token_graph.best_first import best_first
from strace_lens.token_graph.edges import UNREACHABLE, GraphShape, hook_name
from strace_lens.token_graph.paths import embedding_reach, fed_nodes, on_path
from strace_lens.token_graph.trace import Trace
from tests import oracle, tiny

SHAPES = st.builds(
    lambda layers, heads, tokens, kind: GraphShape(layers, heads, tokens, *kind),
    layers=st.integers(1, 3),
    heads=st.integers(1, 2),
    tokens=st.integers(1, 4),
    kind=st.sampled_from([(False, True), (True, True), (False, False)]),  # parallel, mlp
)
SEEDS = st.integers(0, 1000)


def ranked(shape: GraphShape, seed: int, hanging: bool) -> Trace:
    """A random trace that hangs from the output, or a ranking that need not."""
    generator = torch.Generator().manual_seed(seed)
    if hanging:
        scores = shape.full(0.0, torch.float32)
        ranks = best_first(scores.map(lambda s: torch.rand(s.shape, generator=generator)), shape)
    else:
        reachable = shape.reachable().flat()
        flat = torch.full(reachable.shape, UNREACHABLE, dtype=torch.int32)
        flat[reachable] = torch.randperm(shape.edges, generator=generator).int()
        ranks = shape.split(flat)
    strings = tuple("abcd"[: shape.tokens])
    return Trace(shape, Prompt("".join(strings), tuple(range(shape.tokens)), strings), ranks)


def reached(trace: Trace, edges: int) -> tuple[nx.MultiDiGraph, set, set]:
    """The graph of the first edges, its nodes below an embedding, and those above the output."""
    graph = trace.first(edges).to_networkx()
    inputs = {(hook_name(trace.shape, 0), t) for t in range(trace.shape.tokens)}
    output = (hook_name(trace.shape, trace.shape.levels - 1), trace.shape.tokens - 1)
    graph.add_nodes_from([*inputs, output])
    fed = inputs.union(*(nx.descendants(graph, node) for node in inputs))
    return graph, fed, nx.ancestors(graph, output) | {output}


@given(shape=SHAPES, seed=SEEDS, hanging=st.booleans(), data=st.data())
def test_paths_are_those_of_networkx(
    shape: GraphShape, seed: int, hanging: bool, data: st.DataObject
) -> None:
    trace = ranked(shape, seed, hanging)
    counts = data.draw(st.lists(st.integers(0, trace.edges), min_size=1, max_size=5))
    found = on_path(trace, counts)
    for i, k in enumerate(counts):
        graph, fed, serves = reached(trace, k)
        on = [(u, v) for u, v in graph.edges() if u in fed and v in serves]
        read = {u for u, _ in on if u[0] == hook_name(trace.shape, 0)}
        share = found.share[i].item()
        assert math.isnan(share) if k == 0 else share == len(on) / k
        assert found.tokens[i] == len(read)
        assert found.connected[i] == bool(read)
        nodes = fed_nodes(trace.first(k).kept, trace.shape)
        names = [hook_name(trace.shape, level) for level in range(trace.shape.levels)]
        assert {(names[level], token) for level, token in nodes.nonzero().tolist()} == fed


@given(shape=SHAPES, seed=SEEDS, hanging=st.booleans())
def test_the_reach_is_the_first_count_with_a_path(
    shape: GraphShape, seed: int, hanging: bool
) -> None:
    trace = ranked(shape, seed, hanging)
    every = range(trace.edges + 1)
    output = (hook_name(trace.shape, trace.shape.levels - 1), trace.shape.tokens - 1)
    first = next(k for k in every if output in reached(trace, k)[1])
    assert embedding_reach(trace) == first
    assert on_path(trace, every).connected.tolist() == [k >= first for k in every]


def test_a_model_without_biases_says_nothing_until_the_trace_reaches_an_embedding() -> None:
    tokens = tiny.token_ids(5)
    trace = sl.extract(sl.token_graph(tiny.bridge("mistral"), tokens), "l2", order="scheduled")
    reach = embedding_reach(trace)
    assert 2 < reach < trace.edges
    for k in (1, reach - 1, reach, trace.edges):
        output = oracle.masked_stream("mistral", tokens, trace.first(k).kept)
        assert bool(output.any()) == (k >= reach) == bool(on_path(trace, [k]).connected)


def test_the_whole_graph_is_on_a_path_from_every_token() -> None:
    trace = sl.extract(sl.token_graph(tiny.bridge("gptj"), tiny.token_ids(6)))
    whole = on_path(trace, [trace.edges])
    assert whole.share.tolist() == [1.0]
    assert whole.tokens.tolist() == [6]


@pytest.mark.parametrize("beyond", [-1, 1])
def test_a_count_outside_the_graph_is_refused(beyond: int) -> None:
    trace = sl.extract(sl.token_graph(tiny.bridge("gptj"), tiny.token_ids(3)))
    count = -1 if beyond < 0 else trace.edges + beyond
    with pytest.raises(ValueError, match=rf"0 \.\. {trace.edges}; got {count}"):
        on_path(trace, [1, count])
