"""Compute share: against a price list kept edge by edge, by hand, and against models' weights."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import networkx as nx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import strace_lens as sl
from strace_lens.model.architecture import Architecture
from strace_lens.model.prompts import Prompt
from strace_lens.traces.best_first import best_first
from strace_lens.traces.compute import compute_share, fed_nodes, on_path
from strace_lens.traces.edges import UNREACHABLE, EdgeTensors, GraphShape, hook_name
from strace_lens.traces.trace import Trace
from tests import oracle, tiny
from tests.cases import NAMES, architecture

KINDS = st.sampled_from([(False, True), (True, True), (False, False)])  # parallel, mlp
TOY = Architecture(
    name="toy",
    layers=1,
    heads=1,
    kv_heads=1,
    d_model=10,
    d_head=3,
    d_mlp=7,
    d_vocab=100,
    context=8,
    parallel=False,
    mlp=True,
    post_norm=False,
    unembed_input="unembed.hook_in",
)


def trace_of(shape: GraphShape, ranks: EdgeTensors) -> Trace:
    strings = tuple("abcd"[: shape.tokens])
    return Trace(shape, Prompt("".join(strings), tuple(range(shape.tokens)), strings), ranks)


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    kv_heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    parallel, mlp = draw(KINDS)
    return dataclasses.replace(
        TOY,
        layers=draw(st.integers(1, 3)),
        heads=kv_heads * group,
        kv_heads=kv_heads,
        d_mlp=7 if mlp else 0,
        parallel=parallel,
        mlp=mlp,
        post_norm=draw(st.booleans()),
        gated=draw(st.booleans()),
        experts=draw(st.integers(1, 2)),
    )


def ranked(arch: Architecture, tokens: int, seed: int, connected: bool) -> Trace:
    """A random trace that hangs from the output, or a ranking that need not."""
    shape = GraphShape(arch.layers, arch.heads, tokens, parallel=arch.parallel, mlp=arch.mlp)
    generator = torch.Generator().manual_seed(seed)
    if connected:
        scores = shape.full(0.0, torch.float32)
        scores = scores.map(lambda s: torch.rand(s.shape, generator=generator))
        return trace_of(shape, best_first(scores, shape))
    reachable = shape.reachable().flat()
    flat = torch.full(reachable.shape, UNREACHABLE, dtype=torch.int32)
    flat[reachable] = torch.randperm(shape.edges, generator=generator).int()
    return trace_of(shape, shape.split(flat))


TRACES = st.tuples(architectures(), st.integers(1, 4), st.integers(0, 1000), st.booleans())


def priced_by_hand(trace: Trace, arch: Architecture, edges: int) -> int:
    """Multiply-adds of the first edges, noted down one edge at a time."""
    shape = trace.shape
    names = [hook_name(shape, level) for level in range(shape.levels)]
    graph = trace.first(edges).to_networkx()
    embeddings = {(names[0], t) for t in range(shape.tokens)}
    graph.add_nodes_from(embeddings)
    filled = embeddings.union(*(nx.descendants(graph, e) for e in embeddings))
    group = arch.heads // arch.kv_heads
    projection = arch.d_model * arch.d_head

    total = 0
    queries, keys, values = set(), set(), set()
    for source, target, data in graph.edges(data=True):
        if source not in filled:
            continue
        layer, head = data["layer"], data["head"]
        if data["kind"] == "mlp":
            total += arch.d_model * arch.d_mlp * (3 if arch.gated else 2) * arch.experts
        if data["kind"] == "attention":
            total += arch.d_head
            queries.add((layer, head, target[1]))
            values.add((layer, head // group, source[1]))
    for layer, head, token in queries:
        stream = names[shape.sublayers * layer]
        total += 2 * projection
        for earlier in range(token + 1):
            if (stream, earlier) in filled:
                total += arch.d_head
                keys.add((layer, head // group, earlier))
    return total + projection * (len(keys) + len(values))


@pytest.mark.extended
@given(made=TRACES, data=st.data())
def test_the_price_is_that_of_the_edges_one_by_one(
    made: tuple[Architecture, int, int, bool], data: st.DataObject
) -> None:
    arch, trace = made[0], ranked(*made)
    counts = data.draw(st.lists(st.integers(0, trace.edges), min_size=1, max_size=5))
    found = compute_share(trace, arch, counts)
    truth = [priced_by_hand(trace, arch, k) for k in counts]
    assert found.multiply_adds.tolist() == truth
    assert found.share.tolist() == [adds / found.full for adds in truth]


@pytest.mark.extended
@given(made=TRACES)
def test_more_edges_cost_no_less_and_all_of_them_the_pass_without_what_nothing_reads(
    made: tuple[Architecture, int, int, bool],
) -> None:
    arch, trace = made[0], ranked(*made)
    tokens = trace.shape.tokens
    found = compute_share(trace, arch, range(trace.edges + 1))
    assert found.multiply_adds[0] == 0
    assert found.multiply_adds.diff().ge(0).all()

    # Closed forms: the full pass, and in its last layer what no other token than the last reads.
    projection = arch.d_model * arch.d_head
    mlp = arch.d_model * arch.d_mlp * (3 if arch.gated else 2) * arch.experts
    at_token = 2 * arch.heads * projection + mlp
    pairs = tokens * (tokens + 1) // 2
    per_pair = 2 * arch.heads * arch.d_head  # a score and a weighted value
    layer = tokens * (at_token + 2 * arch.kv_heads * projection) + pairs * per_pair
    unread = (tokens - 1) * at_token + (pairs - tokens) * per_pair
    assert found.full == arch.layers * layer
    assert found.multiply_adds[-1] == found.full - unread
    assert found.share[-1] <= 1


def test_one_layer_by_hand() -> None:
    shape = GraphShape(layers=1, heads=1, tokens=2)
    ranks = shape.full(UNREACHABLE, torch.int32)
    ranks.residual[0, 1, 1] = 0  # reads an empty stream, as nothing has been written into it
    ranks.attention[0, 0, 1, 0] = 1
    ranks.residual[0, 0, 1] = 2
    ranks.mlp[0, 1] = 3
    ranks.attention[0, 0, 1, 1] = 4
    found = compute_share(trace_of(shape, ranks), TOY, [0, 1, 2, 3, 4, 5])
    # query and output 2 x 30, two keys 2 x 30, one value 30, two scores 2 x 3, one read 3
    attention = 159
    mlp = 2 * 10 * 7
    second_read = 30 + 3
    expected = [0, 0, attention, attention, attention + mlp, attention + mlp + second_read]
    assert found.multiply_adds.tolist() == expected
    assert found.full == 2 * (4 * 30 + mlp) + 2 * 3 * 3
    assert found.share[-1] == pytest.approx(332 / 538)


def test_a_head_that_reads_an_empty_stream_costs_nothing() -> None:
    shape = GraphShape(layers=2, heads=1, tokens=2, mlp=False)
    ranks = shape.reachable().map(lambda r: torch.where(r, 99, UNREACHABLE).int())
    ranks.attention[1, 0, 1, 0] = 0
    ranks.attention[0, 0, 0, 0] = 1
    arch = dataclasses.replace(TOY, layers=2, mlp=False)
    found = compute_share(trace_of(shape, ranks), arch, [1, 2])
    # Then each layer: query, output, one key, one value; the second token's stream stays empty.
    assert found.multiply_adds.tolist() == [0, 2 * (4 * 30 + 3 + 3)]


@pytest.mark.parametrize("name", NAMES)
def test_the_full_pass_over_one_token_uses_each_weight_once(name: str) -> None:
    arch = architecture(name)
    shape = GraphShape(arch.layers, arch.heads, 1, parallel=arch.parallel, mlp=arch.mlp)
    ranks = best_first(shape.full(0.0, torch.float32), shape)
    found = compute_share(trace_of(shape, ranks), arch, [shape.edges])
    score_and_read = 2 * arch.d_head * arch.heads * arch.layers
    assert found.full == weights_used(name) + score_and_read
    assert found.share.tolist() == [1.0]


def weights_used(name: str) -> int:
    """Entries of the matrices that one token meets, from the untouched model."""
    model: Any = tiny.hf_model(name) if name in tiny.BRIDGES else tiny.hooked(name)
    total = 0
    for key, weight in model.named_parameters():
        leaf = key.rsplit(".", 1)[-1].lstrip("_")
        outside = any(s in key for s in ("embed", "lm_head", "wte", "wpe"))
        router = key.endswith(("mlp.gate.weight", "mlp.router.weight"))
        bias = leaf[0] == "b" or leaf.endswith("bias")
        if outside or router or bias or weight.ndim < 2 or leaf in ("W_E", "W_U"):
            continue
        active = 2 / 4 if "experts" in key else 1  # tiny mixtures send a token to 2 of 4
        total += int(weight.numel() * active)
    return total


def test_a_trace_of_another_model_and_counts_outside_the_graph_are_refused() -> None:
    trace = sl.extract(sl.token_graph(tiny.bridge("gptj"), tiny.token_ids(3)))
    with pytest.raises(ValueError, match="is not a trace of toy"):
        compute_share(trace, TOY, [1])
    for count in (-1, trace.edges + 1):
        with pytest.raises(ValueError, match=rf"0 \.\. {trace.edges}; got {count}"):
            compute_share(trace, architecture("gptj"), [1, count])


SHAPES = st.builds(
    lambda layers, heads, tokens, kind: GraphShape(layers, heads, tokens, *kind),
    layers=st.integers(1, 3),
    heads=st.integers(1, 2),
    tokens=st.integers(1, 4),
    kind=st.sampled_from([(False, True), (True, True), (False, False)]),  # parallel, mlp
)
SEEDS = st.integers(0, 1000)


def ranked_by_chance(shape: GraphShape, seed: int, connected: bool) -> Trace:
    """A random trace that hangs from the output, or a ranking that need not."""
    generator = torch.Generator().manual_seed(seed)
    if connected:
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


@pytest.mark.extended
@given(shape=SHAPES, seed=SEEDS, connected=st.booleans(), data=st.data())
def test_paths_are_those_of_networkx(
    shape: GraphShape, seed: int, connected: bool, data: st.DataObject
) -> None:
    trace = ranked_by_chance(shape, seed, connected)
    counts = data.draw(st.lists(st.integers(0, trace.edges), min_size=1, max_size=5))
    found = on_path(trace, counts)
    for i, k in enumerate(counts):
        graph, fed, serves = reached(trace, k)
        on = [(u, v) for u, v in graph.edges() if u in fed and v in serves]
        read = {u for u, _ in on if u[0] == hook_name(trace.shape, 0)}
        share = found.share[i].item()
        assert math.isnan(share) if k == 0 else share == len(on) / k
        assert found.connected[i] == bool(read)
        nodes = fed_nodes(trace.first(k).kept, trace.shape)
        names = [hook_name(trace.shape, level) for level in range(trace.shape.levels)]
        assert {(names[level], token) for level, token in nodes.nonzero().tolist()} == fed


@pytest.mark.extended
@given(shape=SHAPES, seed=SEEDS, connected=st.booleans())
def test_the_reach_is_the_first_count_with_a_path(
    shape: GraphShape, seed: int, connected: bool
) -> None:
    trace = ranked_by_chance(shape, seed, connected)
    every = range(trace.edges + 1)
    output = (hook_name(trace.shape, trace.shape.levels - 1), trace.shape.tokens - 1)
    first = next(k for k in every if output in reached(trace, k)[1])
    assert on_path(trace, every).connected.tolist() == [k >= first for k in every]


def test_a_model_without_biases_says_nothing_until_the_trace_reaches_an_embedding() -> None:
    tokens = tiny.token_ids(5)
    trace = sl.extract(sl.token_graph(tiny.bridge("mistral"), tokens), "l2", order="scheduled")
    reach = next(k for k in range(trace.edges) if bool(on_path(trace, [k]).connected))
    assert 2 < reach < trace.edges
    for k in (1, reach - 1, reach, trace.edges):
        output = oracle.masked_stream("mistral", tokens, trace.first(k).kept)
        assert bool(output.any()) == (k >= reach) == bool(on_path(trace, [k]).connected)


def test_the_whole_graph_is_on_a_path_from_every_token() -> None:
    trace = sl.extract(sl.token_graph(tiny.bridge("gptj"), tiny.token_ids(6)))
    whole = on_path(trace, [trace.edges])
    assert whole.share.tolist() == [1.0]
    assert whole.connected.tolist() == [True]


@pytest.mark.parametrize("beyond", [-1, 1])
def test_a_count_outside_the_graph_is_refused(beyond: int) -> None:
    trace = sl.extract(sl.token_graph(tiny.bridge("gptj"), tiny.token_ids(3)))
    count = -1 if beyond < 0 else trace.edges + beyond
    with pytest.raises(ValueError, match=rf"0 \.\. {trace.edges}; got {count}"):
        on_path(trace, [1, count])
