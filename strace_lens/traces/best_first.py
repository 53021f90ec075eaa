"""Best-first extraction: importances in, one rank for each edge out.

The search is compiled, and needs no heap of edges. The in-edges of a node are pushed all at once,
so they are sorted once and only the first one not yet taken can be the next. A tournament tree over
the nodes, in order of arrival, finds the heaviest of these. Among equals the flat heap of the
definition prefers the edge pushed first: that of the node that arrived first, and in one node the
one that comes first in push order. So the order is the heap's, ties included.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
import torch
from numba import njit

from strace_lens.traces.edges import UNREACHABLE, EdgeTensors, GraphShape

_AXES = {
    "attention": ("layer", "head", "query", "key"),
    "residual": ("layer", "sublayer", "pos"),
    "mlp": ("layer", "pos"),
}
_MAGNITUDE = 0x7FFFFFFF  # the bits of a float32 but its sign
_SIGN = -0x80000000  # its sign
_LARGEST = 0x7F7FFFFF  # the bits of the largest finite one
_PLACE = 0xFFFFFFFF  # the bits of a key that settle ties
_NONE = 0x7FFFFFFFFFFFFFFF  # the key of a node without a candidate: it loses to every other


def best_first(importance: EdgeTensors, shape: GraphShape) -> EdgeTensors:
    """Rank every edge by the step at which a best-first search from the output takes it.

    The heaviest in-edge of the nodes reached so far is taken next; if its source is new, that
    node's in-edges become candidates. Ties go to the edge pushed first: the in-edges of a node are
    pushed residual, then MLP, then attention by (source token, head). Source: s-Trace
    (arXiv 2605.27033), section "extraction".

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
    values = checked(importance, shape)
    ranks = values.map(lambda x: torch.full_like(x, UNREACHABLE, dtype=torch.int32))
    bits = tuple(x.numpy().view(np.int32) for x in values)
    _search(bits, tuple(x.numpy() for x in ranks), np.empty(shape.edges, np.int64))
    return ranks


def connected_order(ranks: EdgeTensors, shape: GraphShape) -> EdgeTensors:
    """The order of a ranking, each edge held back until it hangs from the output.

    A best-first search by rank: a ranking whose every prefix hangs from the output is returned as
    it is. Ranks may have gaps and ties; those of unreachable edges are not read.
    """
    # Floats of falling rank: the bits of a float count its magnitude, so all but the sign of a
    # negative one can be a rank, and no order is lost beyond 2**24.
    weights = ranks.map(lambda r: r.int().clamp(max=_LARGEST) | _SIGN)
    return best_first(weights.map(lambda w: w.view(torch.float32)), shape)


def checked(importance: EdgeTensors, shape: GraphShape) -> EdgeTensors:
    """Importances as contiguous tensors on the CPU, fit to be ranked.

    Raises:
        ValueError: as `best_first` does.
    """
    if shape.edges >= UNREACHABLE:
        raise ValueError(f"int32 ranks number fewer than {UNREACHABLE} edges; got {shape.edges}")
    for (kind, axes), value, want in zip(
        _AXES.items(), importance, shape.tensor_shapes, strict=True
    ):
        if tuple(value.shape) != want:
            raise ValueError(
                f"{kind} importances of {shape} need shape {want} ({', '.join(axes)}); "
                f"got {tuple(value.shape)}"
            )
        if value.dtype != torch.float32:
            raise ValueError(
                f"{kind} importances must be torch.float32; got {value.dtype}: call .float() first"
            )
    values = importance.map(lambda x: x.detach().cpu().contiguous())
    # The extremes are non-finite if any value is, and need no temporary as large as the graph.
    if all(bool(x.isfinite()) for value in values if value.numel() for x in value.aminmax()):
        return values
    for (kind, axes), value, reachable in zip(
        _AXES.items(), values, shape.reachable(), strict=True
    ):
        bad = (~value.isfinite() & reachable).nonzero()
        if len(bad):
            where = ", ".join(f"{a} {i}" for a, i in zip(axes, bad[0].tolist(), strict=True))
            raise ValueError(
                f"importances must be finite; got {value[tuple(bad[0])].item()} for the {kind} "
                f"edge at {where} ({len(bad)} non-finite {kind} importances in all)"
            )
    return values


# The compiled part. Nodes are numbered level * tokens + token. A key is an int64 that sorts by
# importance, heaviest first, then by the place in its low 32 bits. `no_type_check` keeps the import
# hook of jaxtyping from wrapping what numba must compile.


@njit(cache=True)
@no_type_check
def _search(importance, ranks, keys):
    """Fill the rank arrays. Importances come as int32 views of their float32 bits.

    `keys` has room for one int64 per reachable edge. The n-th node to arrive has the keys of its
    in-edges, sorted, from `cursor[n]` (the first not yet taken) up to `stop[n]`.
    """
    attention, residual, mlp = importance
    attention_rank, residual_rank, mlp_rank = ranks
    heads, tokens = attention.shape[1], attention.shape[2]
    sublayers = residual.shape[1]
    # Without the embeddings, which have no in-edges.
    nodes = sublayers * attention.shape[0] * tokens
    node_of = np.empty(nodes, np.int64)
    cursor = np.empty(nodes, np.int64)
    stop = np.empty(nodes, np.int64)
    reached = np.zeros(nodes + tokens, np.bool_)
    tree = np.full(2 * nodes, _NONE, np.int64)

    new, arrived, pushed = nodes + tokens - 1, 0, 0
    for rank in range(len(keys)):
        if new >= tokens and not reached[new]:
            reached[new] = True
            node_of[arrived], cursor[arrived] = new, pushed
            pushed = _push_in_edges(new, importance, keys, pushed)
            stop[arrived] = pushed
            _play(tree, arrived, keys[cursor[arrived]])
            arrived += 1

        winner = tree[1] & _PLACE
        node, position = node_of[winner], keys[cursor[winner]] & _PLACE
        cursor[winner] += 1
        more = cursor[winner] < stop[winner]
        _play(tree, winner, keys[cursor[winner]] if more else _NONE)

        level, token = divmod(node, tokens)
        layer, sublayer = divmod(level - 1, sublayers)
        source = token
        before_attention = 1 + _has_mlp(mlp, sublayer, sublayers)
        if position == 0:
            residual_rank[layer, sublayer, token] = rank
        elif position < before_attention:
            mlp_rank[layer, token] = rank
        else:
            source, head = divmod(position - before_attention, heads)
            attention_rank[layer, head, token, source] = rank
        new = (level - 1) * tokens + source


@njit(cache=True)
@no_type_check
def _push_in_edges(node, importance, keys, start):
    """Write the sorted keys of a node's in-edges from `keys[start]` on; return where they end.

    The place in a key is the edge's position in push order: residual, MLP, then attention by
    (source token, head).
    """
    attention, residual, mlp = importance
    heads, tokens = attention.shape[1], attention.shape[2]
    sublayers = residual.shape[1]
    level, token = divmod(node, tokens)
    layer, sublayer = divmod(level - 1, sublayers)
    keys[start] = _key(residual[layer, sublayer, token], 0)
    count = 1
    if _has_mlp(mlp, sublayer, sublayers):
        keys[start + 1] = _key(mlp[layer, token], 1)
        count = 2
    if sublayer == 0:
        for head in range(heads):
            for source in range(token + 1):
                position = count + source * heads + head
                keys[start + position] = _key(attention[layer, head, token, source], position)
        count += heads * (token + 1)
    keys[start : start + count].sort()
    return start + count


@njit(cache=True)
@no_type_check
def _has_mlp(mlp, sublayer, sublayers):
    """Whether the nodes at this sublayer of a layer have an MLP in-edge."""
    return mlp.shape[0] > 0 and sublayer == sublayers - 1


@njit(cache=True)
@no_type_check
def _key(bits, place):
    """Key of a float32, given as its bits, and a place.

    Magnitudes of floats order as their bits do as integers, so the importance maps to an integer
    that falls as it rises; -0.0 and 0.0 both map to 0.
    """
    magnitude = np.int64(bits) & _MAGNITUDE
    falling = magnitude if bits < 0 else -magnitude
    return (falling << 32) + place


@njit(cache=True)
@no_type_check
def _play(tree, arrival, key):
    """Enter a node's candidate and replay its matches: `tree[1]` is the least key of all nodes.

    The place in the candidate's key becomes the node's arrival. The children of `tree[n]` are
    `tree[2 * n]` and `tree[2 * n + 1]`; the leaves are the second half.
    """
    if key != _NONE:
        key = (key & ~_PLACE) | arrival
    at = len(tree) // 2 + arrival
    tree[at] = key
    while at > 1:
        key = min(key, tree[at ^ 1])
        at >>= 1
        tree[at] = key
