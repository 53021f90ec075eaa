"""Counts and end points of edges against networkx and plain loops."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from strace_lens.traces.edges import UNREACHABLE, GraphShape, edge_list, hook_name, is_complete
from strace_lens.utils.choices import KINDS

shapes = st.builds(
    lambda layers, heads, tokens, kind: GraphShape(
        layers, heads, tokens, parallel=kind == "parallel", mlp=kind != "attention-only"
    ),
    layers=st.integers(1, 3),
    heads=st.integers(1, 3),
    tokens=st.integers(1, 4),
    kind=st.sampled_from(["sequential", "parallel", "attention-only"]),
)

Edge = tuple[str, int, int | None, tuple[int, int], tuple[int, int]]


def all_causal_edges(shape: GraphShape) -> set[Edge]:
    """Every edge of the definition: (kind, layer, head, source, target), from its tables."""
    edges: set[Edge] = set()
    for layer in range(shape.layers):
        for t in range(shape.tokens):
            attention_reads = mlp_reads = (shape.sublayers * layer, t)
            middle = (shape.sublayers * layer + 1, t)
            edges.add(("residual", layer, None, attention_reads, middle))
            for head in range(shape.heads):
                for key in range(t + 1):
                    edges.add(("attention", layer, head, (shape.sublayers * layer, key), middle))
            if shape.sublayers == 2:
                mlp_reads, end = middle, (2 * layer + 2, t)
                edges.add(("residual", layer, None, mlp_reads, end))
                edges.add(("mlp", layer, None, mlp_reads, end))
            elif shape.mlp:
                edges.add(("mlp", layer, None, mlp_reads, middle))
    return edges


def listed(shape: GraphShape) -> list[Edge]:
    return [
        (
            KINDS[kind],
            layer,
            None if head < 0 else head,
            (source_level, source),
            (target_level, target),
        )
        for kind, layer, head, source_level, source, target_level, target in zip(
            *(column.tolist() for column in edge_list(shape, shape.reachable())), strict=True
        )
    ]


@given(shapes)
def test_reachable_edges_are_those_with_a_path_to_the_output(shape: GraphShape) -> None:
    edges = all_causal_edges(shape)
    graph = nx.MultiDiGraph((source, target) for *_, source, target in edges)
    output = (shape.levels - 1, shape.tokens - 1)
    reaches = nx.ancestors(graph, output) | {output}
    ours = listed(shape)
    assert len(ours) == len(set(ours)) == shape.edges
    assert set(ours) == {e for e in edges if e[-1] in reaches}


@given(shapes)
def test_split_undoes_flat(shape: GraphShape) -> None:
    sizes = [x.numel() for x in shape.full(0.0, torch.float32)]
    flat = torch.arange(sum(sizes))
    tensors = shape.split(flat)
    assert torch.equal(tensors.flat(), flat)
    assert tensors.attention.flatten().tolist() == list(range(sizes[0]))
    assert tensors.residual.shape == (shape.layers, shape.sublayers, shape.tokens)
    assert tensors.mlp.shape == (shape.layers if shape.mlp else 0, shape.tokens)
    assert torch.equal(tensors.map(lambda x: 2 * x).flat(), 2 * flat)


@given(shapes)
def test_layer_of_names_the_block_of_each_edge(shape: GraphShape) -> None:
    layers = shape.layer_of()
    for x in layers:
        for layer, block in enumerate(x):
            assert (block == layer).all()
    assert [x.shape for x in layers] == [x.shape for x in shape.reachable()]


@given(shapes)
def test_ranks_are_complete_only_as_a_permutation_of_the_reachable_edges(shape: GraphShape) -> None:
    reachable = shape.reachable().flat()
    ranks = torch.full(reachable.shape, UNREACHABLE, dtype=torch.int32)
    ranks[reachable] = torch.randperm(shape.edges, dtype=torch.int32)
    assert is_complete(shape.split(ranks), shape)
    doubled = ranks.clone()
    doubled[doubled == 0] = 1
    assert not is_complete(shape.split(doubled), shape)
    if not reachable.all():
        strayed = ranks.clone()
        strayed[~reachable] = shape.edges
        assert not is_complete(shape.split(strayed), shape)
    other = GraphShape(shape.layers + 1, shape.heads, shape.tokens, shape.parallel, shape.mlp)
    assert not is_complete(shape.split(ranks), other)


@pytest.mark.parametrize(
    ("layers", "heads", "tokens", "edges"), [(30, 9, 47, 298_923), (32, 32, 50, 1_271_053)]
)
def test_counts_of_real_models(layers: int, heads: int, tokens: int, edges: int) -> None:
    assert GraphShape(layers, heads, tokens).edges == edges


def test_levels_are_hook_points() -> None:
    sequential, parallel = GraphShape(2, 1, 3), GraphShape(2, 1, 3, parallel=True)
    assert [hook_name(sequential, level) for level in range(sequential.levels)] == [
        "blocks.0.hook_resid_pre",
        "blocks.0.hook_resid_mid",
        "blocks.0.hook_resid_post",
        "blocks.1.hook_resid_mid",
        "blocks.1.hook_resid_post",
    ]
    assert [hook_name(parallel, level) for level in range(parallel.levels)] == [
        "blocks.0.hook_resid_pre",
        "blocks.0.hook_resid_post",
        "blocks.1.hook_resid_post",
    ]
