"""Best-first extraction: importances in, one rank for each edge out.

The search is compiled, and keeps less in its heap than its definition does. The in-edges of a node
are pushed all at once, so they are sorted once, and the heap holds the heaviest edge not yet taken
of each node. A heap entry is one 64-bit key that orders by importance, heaviest first, then by push
number. No two keys are equal, so edges leave in the order of the flat heap, ties included.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
import torch
from numba import njit
from torch import Tensor

from strace_lens.token_graph.edges import UNREACHABLE, EdgeTensors, GraphShape

_AXES = {
    "attention": ("layer", "head", "query", "key"),
    "residual": ("layer", "join", "pos"),
    "mlp": ("layer", "pos"),
}
_MAGNITUDE = 0x7FFFFFFF  # the bits of a float32 but its sign
_PUSH = 0xFFFFFFFF  # the bits of a heap key that hold the push number


def best_first(importance: EdgeTensors, shape: GraphShape) -> EdgeTensors:
    """Rank every edge by the step at which a best-first search from the output takes it.

    The heaviest in-edge of the nodes reached so far is taken next; if its source is new, that
    node's in-edges become candidates. Ties go to the edge pushed first: the in-edges of a node are
    pushed residual, then MLP, then attention by (source token, head). Source: s-Trace
    (arXiv 2605.27033); method.md, section 3.

    Args:
        importance: float32 in the layout of `shape`; larger is heavier, negative values are
            allowed. Entries of edges that cannot reach the output are not read.
        shape: the graph's size and kind.

    Returns:
        int32 ranks on the CPU: 0 .. E-1 for the E reachable edges, `UNREACHABLE` for the others.

    Raises:
        ValueError: a tensor has another shape or dtype, a reachable edge's importance is NaN or
            infinite, or the graph has more edges than an int32 can rank.
    """
    if shape.edges >= UNREACHABLE:
        raise ValueError(f"int32 ranks number fewer than {UNREACHABLE} edges; got {shape.edges}")
    _check_layout(importance, shape)
    values = importance.map(lambda x: x.detach().cpu().contiguous())
    _check_finite(values, shape)
    ranks = values.map(lambda x: torch.full_like(x, UNREACHABLE, dtype=torch.int32))
    bits = tuple(x.numpy().view(np.int32) for x in values)
    _search(bits, tuple(x.numpy() for x in ranks), np.empty(shape.edges, np.int64))
    return ranks


def _check_layout(importance: EdgeTensors, shape: GraphShape) -> None:
    layers, tokens = shape.layers, shape.tokens
    expected = (
        (layers, shape.heads, tokens, tokens),
        (layers, shape.joins, tokens),
        (layers * int(shape.mlp), tokens),
    )
    for (kind, axes), value, want in zip(_AXES.items(), importance, expected, strict=True):
        if tuple(value.shape) != want:
            raise ValueError(
                f"{kind} importances of {shape} need shape {want} ({', '.join(axes)}); "
                f"got {tuple(value.shape)}"
            )
        if value.dtype != torch.float32:
            raise ValueError(
                f"{kind} importances must be torch.float32; got {value.dtype}: call .float() first"
            )


def _check_finite(values: EdgeTensors, shape: GraphShape) -> None:
    # The extremes are non-finite if any value is, and need no temporary as large as the graph.
    if all(_is_finite(x) for x in values):
        return
    named = zip(_AXES.items(), values, shape.reachable(), strict=True)
    for (kind, axes), value, reachable in named:
        bad = (~value.isfinite() & reachable).nonzero()
        if len(bad):
            where = ", ".join(f"{a} {i}" for a, i in zip(axes, bad[0].tolist(), strict=True))
            raise ValueError(
                f"importances must be finite; got {value[tuple(bad[0])].item()} for the {kind} "
                f"edge at {where} ({len(bad)} non-finite {kind} importances in all)"
            )


def _is_finite(value: Tensor) -> bool:
    return value.numel() == 0 or all(bool(x.isfinite()) for x in value.aminmax())


# The compiled part. Nodes are numbered level * tokens + token. `no_type_check` keeps jaxtyping's
# import hook from wrapping what numba must compile.


@njit(cache=True)
@no_type_check
def _search(importance, ranks, keys):
    """Fill the rank arrays. Importances come as int32 views of their float32 bits.

    `keys` has room for one int64 per reachable edge: the keys of a node's in-edges lie from
    `first[node]`, the push number of the first, to `stop[node]`; those from `cursor[node]` on are
    not taken yet, and the one at the cursor is in the heap.
    """
    attention, residual, mlp = importance
    attention_rank, residual_rank, mlp_rank = ranks
    heads, tokens = attention.shape[1], attention.shape[2]
    joins = residual.shape[1]
    nodes = (joins * attention.shape[0] + 1) * tokens
    first = np.zeros(nodes, np.int64)
    cursor = np.zeros(nodes, np.int64)
    stop = np.zeros(nodes, np.int64)
    reached = np.zeros(nodes, np.bool_)
    heap_key = np.empty(nodes, np.int64)
    heap_node = np.empty(nodes, np.int64)

    new, pushed, size, rank = nodes - 1, 0, 0, 0
    while True:
        if new >= tokens and not reached[new]:  # nodes below `tokens` are embeddings: no in-edges
            reached[new] = True
            first[new] = cursor[new] = pushed
            pushed = _push_in_edges(new, importance, keys, pushed)
            stop[new] = pushed
            _sift_up(heap_key, heap_node, size, keys[cursor[new]], new)
            size += 1
        if size == 0:
            return

        node = heap_node[0]
        position = (heap_key[0] & _PUSH) - first[node]
        level, token = divmod(node, tokens)
        layer, join = divmod(level - 1, joins)
        source = token
        after_mlp = 1 + _has_mlp(mlp, join, joins)
        if position == 0:
            residual_rank[layer, join, token] = rank
        elif position < after_mlp:
            mlp_rank[layer, token] = rank
        else:
            source, head = divmod(position - after_mlp, heads)
            attention_rank[layer, head, token, source] = rank
        rank += 1
        new = (level - 1) * tokens + source

        cursor[node] += 1
        if cursor[node] < stop[node]:
            _sift_down(heap_key, heap_node, size, keys[cursor[node]], node)
        else:
            size -= 1
            _sift_down(heap_key, heap_node, size, heap_key[size], heap_node[size])


@njit(cache=True)
@no_type_check
def _push_in_edges(node, importance, keys, pushed):
    """Write the sorted keys of a node's in-edges from `keys[pushed]` on; return where they end."""
    attention, residual, mlp = importance
    heads, tokens = attention.shape[1], attention.shape[2]
    joins = residual.shape[1]
    level, token = divmod(node, tokens)
    layer, join = divmod(level - 1, joins)
    keys[pushed] = _key(residual[layer, join, token], pushed)
    end = pushed + 1
    if _has_mlp(mlp, join, joins):
        keys[end] = _key(mlp[layer, token], end)
        end += 1
    if join == 0:
        base = end
        for head in range(heads):
            for source in range(token + 1):
                number = base + source * heads + head
                keys[number] = _key(attention[layer, head, token, source], number)
        end = base + heads * (token + 1)
    keys[pushed:end].sort()
    return end


@njit(cache=True)
@no_type_check
def _has_mlp(mlp, join, joins):
    """Whether the nodes at this join of a layer have an MLP in-edge."""
    return mlp.shape[0] > 0 and join == joins - 1


@njit(cache=True)
@no_type_check
def _key(bits, number):
    """A key that sorts by importance, heaviest first, then by push number (under 2**31).

    Magnitudes of floats order as their bits do as integers, so the importance maps to an integer
    that falls as it rises; -0.0 and 0.0 both map to 0.
    """
    magnitude = np.int64(bits) & _MAGNITUDE
    falling = magnitude if bits < 0 else -magnitude
    return (falling << 32) + number


@njit(cache=True)
@no_type_check
def _sift_up(heap_key, heap_node, at, key, node):
    """Put an entry at the free place `at`, the end of the heap, and let it rise."""
    while at > 0:
        parent = (at - 1) >> 1
        if heap_key[parent] < key:
            break
        heap_key[at], heap_node[at] = heap_key[parent], heap_node[parent]
        at = parent
    heap_key[at], heap_node[at] = key, node


@njit(cache=True)
@no_type_check
def _sift_down(heap_key, heap_node, size, key, node):
    """Put an entry in place of the top of a heap of `size` entries and let it sink."""
    at = 0
    while True:
        child = 2 * at + 1
        if child + 1 < size and heap_key[child + 1] < heap_key[child]:
            child += 1
        if child >= size or key < heap_key[child]:
            break
        heap_key[at], heap_node[at] = heap_key[child], heap_node[child]
        at = child
    heap_key[at], heap_node[at] = key, node
