"""What a trace could save: its live edges, and the multiply-adds of a sparse execution of it.

A live edge lies on a path from a token's embedding to the output. An edge on no such path either
reads a stream that nothing has written or writes one that nothing reads. The paper (s-Trace,
arXiv 2605.27033) counts edges; the count of multiply-adds is the package's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int16, Int64
from torch import Tensor

from strace_lens.model.architecture import Architecture
from strace_lens.traces.edges import EdgeTensors, GraphShape
from strace_lens.traces.graph import shape_of
from strace_lens.traces.trace import Trace


@dataclass(frozen=True, eq=False)
class ComputeShare:
    """Multiply-adds of the first k edges of a trace, for each k, over those of the full pass.

    Attributes:
        share: `multiply_adds / full`.
        multiply_adds: of the blocks, without norms and unembedding.
        full: the same for the ordinary pass: every token through every block, the last one too,
            attention over causal pairs only.
        norms: d_model for each node whose stream an MLP or a key, query or value reads, and for
            the final norm; with norms after attention and MLP, d_model for each of their outputs.
            Not in `multiply_adds`.
        unembedding: d_model * d_vocab, once, at every size. Not in `multiply_adds`.
    """

    share: Float64[Tensor, " size"]
    multiply_adds: Int64[Tensor, " size"]
    full: int
    norms: Int64[Tensor, " size"]
    unembedding: int


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
    works = [
        _work(kept, fed_nodes(kept, trace.shape), architecture)
        for kept in first_edges(trace, counts)
    ]
    needed = torch.tensor([w.multiply_adds(architecture) for w in works], dtype=torch.int64)
    full = _dense(architecture, trace.shape.tokens).multiply_adds(architecture)
    return ComputeShare(
        share=needed.double() / full,
        multiply_adds=needed,
        full=full,
        norms=torch.tensor([w.norms * architecture.d_model for w in works], dtype=torch.int64),
        unembedding=architecture.d_model * architecture.d_vocab,
    )


@dataclass(frozen=True)
class _Work:
    """How often each operation is done, over all layers, heads and tokens."""

    queries: int
    keys: int
    values: int
    scores: int
    weighted_values: int
    mlps: int
    norms: int

    def multiply_adds(self, architecture: Architecture) -> int:
        d_model, d_head = architecture.d_model, architecture.d_head
        projections = 2 * self.queries + self.keys + self.values
        per_head = projections * d_model + self.scores + self.weighted_values
        return per_head * d_head + self.mlps * architecture.mlp_weights


def _work(kept: EdgeTensors, fed: Bool[Tensor, "level pos"], architecture: Architecture) -> _Work:
    """Operations that the kept edges need, given which streams are not empty."""
    sublayers = (len(fed) - 1) // architecture.layers
    pre = fed[:-1:sublayers]  # what attention reads, "layer pos"
    live = kept.attention & pre[:, None, None, :]
    query = live.any(-1)
    by_group = (architecture.kv_heads, architecture.heads // architecture.kv_heads)
    value = live.any(2).unflatten(1, by_group).any(2)
    later_queries = query.unflatten(1, by_group).any(2).flip(-1).cumsum(-1).flip(-1)
    key = (later_queries > 0) & pre[:, None]
    mlp = kept.mlp & fed[sublayers - 1 : -1 : sublayers][: len(kept.mlp)]

    # A live query and a value are computed only where a key is: a key stands for all three.
    read = torch.zeros_like(fed)
    read[:-1:sublayers] = key.any(1)
    read[sublayers - 1 : -1 : sublayers][: len(mlp)] |= mlp
    read[-1, -1] = fed[-1, -1]
    norms = int(read.sum())
    if architecture.post_norm:
        norms += int(query.any(1).sum()) + int(mlp.sum())
    return _Work(
        queries=int(query.sum()),
        keys=int(key.sum()),
        values=int(value.sum()),
        scores=int((query * pre.cumsum(-1)[:, None]).sum()),
        weighted_values=int(live.sum()),
        mlps=int(mlp.sum()),
        norms=norms,
    )


def _dense(architecture: Architecture, tokens: int) -> _Work:
    """Operations of the full pass: every causal edge, the last layer's unused ones too."""
    shape = shape_of(architecture, tokens)
    kept = shape.full(True, torch.bool)
    kept = kept._replace(attention=kept.attention.tril())
    return _work(kept, torch.ones(shape.levels, tokens, dtype=torch.bool), architecture)


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


def _serves_output(edge: Bool[Tensor, "level query key"]) -> Bool[Tensor, "node_level pos"]:
    """Nodes from which a path leads to the output, the last token's node at the top."""
    serves = torch.zeros(len(edge) + 1, edge.shape[-1], dtype=torch.bool)
    serves[-1, -1] = True
    for level in reversed(range(len(edge))):
        serves[level] = (edge[level] & serves[level + 1, :, None]).any(0)
    return serves
