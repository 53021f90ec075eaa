"""Paths in a trace: which of its edges lead from a token's embedding to the output.

An edge on no such path either reads a stream that nothing has written or writes one that nothing
reads. A trace hangs from the output, so of its edges only the first can happen.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int16, Int64
from torch import Tensor

from strace_lens.token_graph.edges import EdgeTensors, GraphShape
from strace_lens.token_graph.trace import Trace


@dataclass(frozen=True, eq=False)
class PathShares:
    """How far the first k edges of a trace connect the prompt with the output, for each k.

    Attributes:
        share: of the k edges, those on a path from an embedding to the output, both ends of the
            path in the trace; NaN for a trace without edges.
        tokens: tokens of the prompt whose embedding is read by an edge on such a path.
        connected: whether there is such a path at all.
    """

    share: Float64[Tensor, " size"]
    tokens: Int64[Tensor, " size"]
    connected: Bool[Tensor, " size"]


def on_path(trace: Trace, counts: Sequence[int]) -> PathShares:
    """Share of the edges on a path from a token to the output, in the trace of each edge count.

    Args:
        trace: any ranking of a token graph's edges.
        counts: numbers of edges k, in any order.

    Raises:
        ValueError: a count is negative or above the number of edges.
    """
    shares, tokens = [], []
    for kept in first_edges(trace, counts):
        parallel_edges = _edges_between_nodes(kept, trace.shape)
        fed = _fed(parallel_edges > 0)
        serves = _serves_output(parallel_edges > 0)
        useful = fed[:-1, None, :] & serves[1:, :, None]
        edges = sum(int(k.sum()) for k in kept)
        shares.append(int((parallel_edges * useful).sum()) / edges if edges else torch.nan)
        tokens.append(int(serves[0].sum()))
    read = torch.tensor(tokens, dtype=torch.int64)
    return PathShares(torch.tensor(shares, dtype=torch.float64), read, read > 0)


def embedding_reach(trace: Trace) -> int:
    """The fewest edges at which the trace holds a path from an embedding to the output."""

    def connected(edges: int) -> bool:
        return bool(on_path(trace, [edges]).connected)

    return bisect.bisect_left(range(trace.edges), True, key=connected)


def first_edges(trace: Trace, counts: Sequence[int]) -> Iterator[EdgeTensors]:
    """True for the first k edges of a trace, for one count k after the other.

    Raises:
        ValueError: a count is negative or above the number of edges.
    """
    for k in counts:
        if not 0 <= k <= trace.edges:
            raise ValueError(f"edge counts must lie in 0 .. {trace.edges}; got {k}")
    return (trace.first(k).kept for k in counts)


def fed_nodes(kept: EdgeTensors, shape: GraphShape) -> Bool[Tensor, "level pos"]:
    """Nodes that a path of kept edges joins to an embedding; the embeddings are level 0.

    Under zero ablation, every other node of a model without biases is a stream of zeros.
    """
    return _fed(_edges_between_nodes(kept, shape) > 0)


def _edges_between_nodes(kept: EdgeTensors, shape: GraphShape) -> Int16[Tensor, "level query key"]:
    """How many kept edges lead from (level, key) to (level + 1, query)."""
    joins = shape.joins
    edges = torch.zeros(shape.levels - 1, shape.tokens, shape.tokens, dtype=torch.int16)
    edges[::joins] = kept.attention.sum(1, dtype=torch.int16)
    within_column = edges.diagonal(dim1=1, dim2=2)
    within_column += kept.residual.flatten(0, 1)
    if shape.mlp:
        within_column[joins - 1 :: joins] += kept.mlp
    return edges


def _fed(edge: Bool[Tensor, "level query key"]) -> Bool[Tensor, "node_level pos"]:
    fed = torch.ones(len(edge) + 1, edge.shape[-1], dtype=torch.bool)
    for level in range(len(edge)):
        fed[level + 1] = (edge[level] & fed[level]).any(-1)
    return fed


def _serves_output(edge: Bool[Tensor, "level query key"]) -> Bool[Tensor, "node_level pos"]:
    """Nodes from which a path leads to the output, the last token's node at the top."""
    serves = torch.zeros(len(edge) + 1, edge.shape[-1], dtype=torch.bool)
    serves[-1, -1] = True
    for level in reversed(range(len(edge))):
        serves[level] = (edge[level] & serves[level + 1, :, None]).any(0)
    return serves
