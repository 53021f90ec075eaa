"""The order that buys residual columns whole: scores of attention and MLP edges in, ranks out.

Residual edges are structure here, not candidates. To read token u at layer l is to buy the residual
edges of u in every layer below l. Scores become a *need* for each node and a priority for each
edge, and edges are ranked by best-first search over the priorities. From every edge
there is a path to the output on which no priority is below its own. The search therefore takes
edges in falling order of priority, and every prefix of the order is connected to the output node.

Where some kinds of edges are never ablated, these come last: an edge that is always there belongs
to every trace whatever its rank, and a trace that spends none of its size on it is the tightest.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import no_type_check

import numpy as np
import torch
from numba import njit

from strace_lens.traces.best_first import best_first, checked
from strace_lens.traces.edges import EdgeTensors, GraphShape, order_of, ranks_of

_TOP = torch.finfo(torch.float32).max
# Need of the last token's nodes, which the output always needs. It is one step of float32 below
# the largest, so that a residual edge can stand one step above it.
_ALWAYS = float(np.nextafter(np.float32(_TOP), np.float32(0)))


def schedule(
    scores: EdgeTensors, shape: GraphShape, residual_cost: float | None = None
) -> EdgeTensors:
    """Rank edges by value per edge bought, where reading a token costs its residual column.

    The problem that this solves exactly:

    - An attention or MLP edge costs 1 and is worth the smaller of its score and the need of the
      node it writes into. A residual edge is worth 0; those of one layer and token, a *link*, cost
      `residual_cost` together. The last token's residual edges are free and come first.
    - An *initial set* holds, with each edge, the residual edges into its target and into its source
      (none at the embeddings). Its density is its value over its cost.
    - The order takes the initial set of largest density, the largest of these on a tie, then the
      same among what is left, and so on: Sidney's decomposition. The density of the block in which
      an edge is taken is its priority, and the need of a node is the priority of the residual edge
      into it. At the end of a block no initial set of that cost or less is worth more.

    Values depend on needs and needs on blocks, but only from later tokens to earlier ones: the
    edges between two tokens read the earlier one, and an edge within a column (every MLP edge,
    and attention to its own token) is worth no more than the density of its block, which it
    therefore cannot raise. So the answer is unique, and edges within a column are never the reason
    to buy it. Given the needs of later tokens, a column is a tree: link below link, the reads of a
    node above the link that ends in it. There the blocks are found by merging from the top down
    (Horn 1972, "Single-machine job sequencing with treelike precedence ordering and linear delay
    penalties"; Sidney 1975, "Decomposition algorithms for single-machine sequencing with precedence
    relations and deferral costs"), in O(E log E). Sums are float64, needs float32: densities that
    round to the same float32 are tied.

    Every prefix hangs from the output. An edge that reads a new node is followed at once by the
    residual edges that the node's column lacks, from the top down to the embedding, so that at most
    one column is incomplete in any prefix. Other ties are those of `best_first`.

    Args:
        scores: float32 in the layout of `shape`; larger is more important, negative scores count
            as zero. Residual entries, and those of edges that cannot reach the output, are not
            read.
        shape: the graph's size and kind.
        residual_cost: cost of a link, in edges; by default its number of residual edges, which is
            2 in sequential models with MLPs and 1 in others.

    Returns:
        int32 ranks on the CPU: 0 .. E-1 for the E reachable edges, `UNREACHABLE` for the others.

    Raises:
        ValueError: a tensor has another shape or dtype, a reachable attention or MLP edge's score
            is NaN or infinite, the graph has more edges than an int32 can rank, or `residual_cost`
            is not positive and finite.
    """
    cost = float(shape.sublayers if residual_cost is None else residual_cost)
    if not (math.isfinite(cost) and cost > 0):
        raise ValueError(f"residual_cost must be positive and finite; got {residual_cost}")
    zeros = torch.zeros(scores.residual.shape, dtype=torch.float32)
    scores = checked(scores._replace(residual=zeros), shape)
    # The needs of the nodes that each layer writes. Those of one layer and token have one need:
    # nothing but their own column reads between them.
    need = torch.zeros(shape.layers, shape.tokens, dtype=torch.float32)
    need[:, -1] = _ALWAYS
    _scheduled_needs(scores.attention.numpy(), cost, need.numpy())
    attention = torch.zeros_like(scores.attention)
    _attention_priorities(scores.attention.numpy(), need.numpy(), attention.numpy())
    # One step of float32 puts a residual edge before all else of its priority. It cannot put it
    # before an edge of that next priority: such an edge was taken before the column was read.
    above = need.nextafter(torch.tensor(_TOP, dtype=torch.float32))
    residual = above[:, None].expand(-1, shape.sublayers, -1)
    mlp = scores.mlp.minimum(need[: len(scores.mlp)]).clamp_min(0)
    return best_first(EdgeTensors(attention, residual, mlp), shape)


# The compiled part. `need[layer, token]` is the need of the nodes that the layer writes at that
# token. In the last layer only the last token is reachable; its own column is always needed.


@njit(cache=True)
@no_type_check
def _scheduled_needs(attention, cost, need):
    """Fill the needs of all tokens but the last, from the last but one down."""
    layers, heads, tokens = attention.shape[:3]
    reads = [np.float32(0)]  # a heap: minus the values of reads that are in no block yet
    values, costs = np.empty(layers), np.empty(layers)  # a stack of blocks, the lowest on top
    lowest = np.empty(layers, np.int64)  # lowest link of each block
    for key in range(tokens - 2, -1, -1):
        reads.clear()
        blocks = 0
        for layer in range(layers - 1, 0, -1):
            for head in range(heads):
                first = max(key + 1, _first_query(layer, layers, tokens))
                for query in range(first, tokens):
                    value = min(attention[layer, head, query, key], need[layer, query])
                    if value > 0:
                        heapq.heappush(reads, -value)
            merged, price, blocks = _merge(reads, values, costs, blocks, cost)
            values[blocks], costs[blocks], lowest[blocks] = merged, price, layer - 1
            blocks += 1
        end = layers - 1
        for block in range(blocks):
            for link in range(lowest[block], end):
                need[link, key] = values[block] / costs[block]
            end = lowest[block]


@njit(cache=True)
@no_type_check
def _merge(reads, values, costs, blocks, cost):
    """Merge a link with the reads and blocks above it while they are denser than it has become.

    Returns the value and the cost of the new block, and how many blocks it leaves.
    """
    value = 0.0
    while True:
        read = -reads[0] if len(reads) > 0 else 0.0
        above = values[blocks - 1] / costs[blocks - 1] if blocks > 0 else 0.0
        if max(read, above) <= value / cost:
            return value, cost, blocks
        if read > above:
            value -= heapq.heappop(reads)
            cost += 1
        else:
            blocks -= 1
            value += values[blocks]
            cost += costs[blocks]


@njit(cache=True)
@no_type_check
def _attention_priorities(attention, need, priority):
    """Bound each score by the needs of the nodes that the edge writes and reads."""
    layers, heads, tokens = attention.shape[:3]
    for layer in range(layers):
        for head in range(heads):
            for query in range(_first_query(layer, layers, tokens), tokens):
                for key in range(query + 1):
                    bound = need[layer, query]
                    if layer > 0:
                        bound = min(bound, need[layer - 1, key])
                    bound = min(bound, attention[layer, head, query, key])
                    priority[layer, head, query, key] = max(bound, np.float32(0))


@njit(cache=True)
@no_type_check
def _first_query(layer, layers, tokens):
    """The first token whose nodes in this layer reach the output."""
    return tokens - 1 if layer == layers - 1 else 0


FREE = 1e-6
"""What a residual column costs where residual edges are kept whole: next to nothing, in edges."""


def schedule_ablatable(
    scores: EdgeTensors,
    shape: GraphShape,
    keep: Sequence[str] = (),
    residual_cost: float | None = None,
) -> EdgeTensors:
    """Schedule edges by their scores (`schedule`), those of kinds that are never ablated last.

    The scores of attention edges that are kept decide too: they say which columns are worth
    reading. On SmolLM2 this ranks residual and MLP edges better than their own scores do, since
    what is read through a residual edge is lost as a whole when it is ablated.

    Args:
        scores: float32 in the layout of `shape`; larger is more important.
        shape: the graph's size and kind.
        keep: kinds of edges that are never ablated.
        residual_cost: as for `schedule`; residual edges that are kept cost next to nothing.

    Returns:
        int32 ranks on the CPU. With nothing kept they are those of `schedule`.
    """
    cost = FREE if "residual" in keep else residual_cost
    return kept_last(schedule(scores, shape, cost), shape, keep)


def kept_last(ranks: EdgeTensors, shape: GraphShape, keep: Sequence[str]) -> EdgeTensors:
    """The same order, but for edges of some kinds, which come last in the order that they had."""
    if not keep:
        return ranks
    order = order_of(ranks)
    kinds = ranks._asdict().items()
    kept = EdgeTensors(*(torch.full_like(x, kind in keep, dtype=torch.bool) for kind, x in kinds))
    there = kept.flat()[order]
    return ranks_of(torch.cat([order[~there], order[there]]), shape)
