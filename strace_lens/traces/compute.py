"""What a trace could save: its live edges, and the multiply-adds of a sparse execution of it.

A live edge lies on a path from a token's embedding to the output. An edge on no such path either
reads a stream that nothing has written or writes one that nothing reads. The paper (s-Trace,
arXiv 2605.27033) counts edges; the count of multiply-adds is the package's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64, Int16, Int64
from torch import Tensor

from strace_lens.model.architecture import Architecture
from strace_lens.traces.edges import EdgeTensors, GraphShape
from strace_lens.traces.graph import shape_of
from strace_lens.traces.trace import Trace


class ComputeShare(NamedTuple):
    """Multiply-adds of the first k edges of a trace, for each k, over those of the full pass."""

    share: Float64[Tensor, " size"]  # multiply_adds / full
    multiply_adds: Int64[Tensor, " size"]  # of the blocks, without norms and unembedding
    full: int  # the same of every token through every block, attention over causal pairs only


class PathShares(NamedTuple):
    """How far the first k edges of a trace connect the prompt with the output, for each k."""

    # Of the k edges, those on a path from an embedding to the output; NaN for no edges.
    share: Float64[Tensor, " size"]
    connected: Bool[Tensor, " size"]  # whether there is such a path at all


def compute_share(trace: Trace, architecture: Architecture, counts: Sequence[int]) -> ComputeShare:
    """Multiply-adds that a sparse execution of each trace needs, over those of the full pass.

    Ablated edges carry nothing, so a stream is empty unless a path of kept edges joins it to an
    embedding, and an edge that reads an empty stream costs nothing. The other edges are *live*:

    - a live MLP edge costs the MLP at one token;
    - a head with a live edge into a token costs its query and its output projection there (even
      if its own stream is empty), and a score for each computed key before or at that token;
    - a key, one for each key-value head, is computed where the stream is not empty and a head of
      its group has a query at that token or later;
    - a value is computed where a live edge of its group reads it;
    - each live attention edge costs d_head for the weighted sum of values.

    Left out: biases, activation functions, softmax, rotary positions, norms of queries and keys,
    and the router of a mixture of experts. In a model with biases an empty stream holds constants
    of the model, which are taken to be computed once for all prompts. A sliding window saves
    nothing here, in the full pass neither.

    Args:
        trace: any ranking of the edges of this architecture's token graph.
        architecture: widths of the model.
        counts: numbers of edges k, in any order.

    Raises:
        ValueError: the trace is not of this architecture, or a count is negative or above the
            number of edges.
    """
    if trace.shape != shape_of(architecture, trace.shape.tokens):
        raise ValueError(f"{trace!r} is not a trace of {architecture.name}: its graph differs")
    needed = [
        _multiply_adds(kept, fed_nodes(kept, trace.shape), architecture)
        for kept in _first_edges(trace, counts)
    ]
    # The full pass: every causal edge, the last layer's unused ones too.
    every = trace.shape.full(True, torch.bool)
    every = every._replace(attention=every.attention.tril())
    full = _multiply_adds(every, fed_nodes(every, trace.shape), architecture)
    multiply_adds = torch.tensor(needed, dtype=torch.int64)
    return ComputeShare(multiply_adds.double() / full, multiply_adds, full)


def _multiply_adds(
    kept: EdgeTensors, fed: Bool[Tensor, "level pos"], architecture: Architecture
) -> int:
    """What the kept edges cost, given which streams are not empty."""
    sublayers = (len(fed) - 1) // architecture.layers
    pre = fed[:-1:sublayers]  # what attention reads, "layer pos"
    live = kept.attention & pre[:, None, None, :]
    query = live.any(-1)
    by_group = (architecture.kv_heads, architecture.heads // architecture.kv_heads)
    value = live.any(2).unflatten(1, by_group).any(2)
    later_queries = query.unflatten(1, by_group).any(2).flip(-1).cumsum(-1).flip(-1)
    key = (later_queries > 0) & pre[:, None]
    mlp = kept.mlp & fed[sublayers - 1 : -1 : sublayers][: len(kept.mlp)]
    scores = int((query * pre.cumsum(-1)[:, None]).sum())
    # A query stands for the output projection at its token too.
    projections = 2 * int(query.sum()) + int(key.sum()) + int(value.sum())
    per_head = projections * architecture.d_model + scores + int(live.sum())
    return per_head * architecture.d_head + int(mlp.sum()) * architecture.mlp_weights


def on_path(trace: Trace, counts: Sequence[int]) -> PathShares:
    """Share of the edges on a path from a token to the output, in the trace of each edge count.

    Args:
        trace: any ranking of a token graph's edges.
        counts: numbers of edges k, in any order.

    Raises:
        ValueError: a count is negative or above the number of edges.
    """
    shares, connected = [], []
    for kept in _first_edges(trace, counts):
        parallel_edges = _edges_between_nodes(kept, trace.shape)
        between = parallel_edges > 0
        fed = _fed(between)
        serves = torch.zeros_like(fed)  # nodes from which a path leads to the output
        serves[-1, -1] = True
        for level in reversed(range(len(between))):
            serves[level] = (between[level] & serves[level + 1, :, None]).any(0)
        useful = fed[:-1, None, :] & serves[1:, :, None]
        edges = sum(int(k.sum()) for k in kept)
        shares.append(int((parallel_edges * useful).sum()) / edges if edges else torch.nan)
        connected.append(bool(serves[0].any()))
    return PathShares(torch.tensor(shares, dtype=torch.float64), torch.tensor(connected))


def _first_edges(trace: Trace, counts: Sequence[int]) -> Iterator[EdgeTensors]:
    """True for the first k edges of a trace, for one count k after the other."""
    for k in counts:
        if not 0 <= k <= trace.edges:
            raise ValueError(f"edge counts must lie in 0 .. {trace.edges}; got {k}")
        yield trace.first(k).kept


def fed_nodes(kept: EdgeTensors, shape: GraphShape) -> Bool[Tensor, "level pos"]:
    """Nodes that a path of kept edges joins to an embedding; the embeddings are level 0.

    Under zero ablation, every other node of a model without biases is a stream of zeros.
    """
    return _fed(_edges_between_nodes(kept, shape) > 0)


def _edges_between_nodes(kept: EdgeTensors, shape: GraphShape) -> Int16[Tensor, "level query key"]:
    """How many kept edges lead from (level, key) to (level + 1, query)."""
    sublayers = shape.sublayers
    edges = torch.zeros(shape.levels - 1, shape.tokens, shape.tokens, dtype=torch.int16)
    edges[::sublayers] = kept.attention.sum(1, dtype=torch.int16)
    within_column = edges.diagonal(dim1=1, dim2=2)
    within_column += kept.residual.flatten(0, 1)
    if shape.mlp:
        within_column[sublayers - 1 :: sublayers] += kept.mlp
    return edges


def _fed(edge: Bool[Tensor, "level query key"]) -> Bool[Tensor, "node_level pos"]:
    fed = torch.ones(len(edge) + 1, edge.shape[-1], dtype=torch.bool)
    for level in range(len(edge)):
        fed[level + 1] = (edge[level] & fed[level]).any(-1)
    return fed
