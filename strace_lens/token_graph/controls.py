"""The random control: subgraphs grown by chance, against which a trace of their size is measured.

The other controls, the inverses of a trace and of a random subgraph, are their complements.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
import torch
from numba import njit

from strace_lens.token_graph.edges import UNREACHABLE, EdgeTensors, GraphShape


def random_ranks(shape: GraphShape, seed: int, edges: int | None = None) -> EdgeTensors:
    """Grow a subgraph from the output by chance, and number its edges as they are taken.

    A node that has been reached and has in-edges left is drawn uniformly, and one of its in-edges
    is taken: residual and MLP edges first, in random order, then attention edges in random order.
    The source of that edge is reached by then. So the authors' code draws its random control
    (s-Trace, arXiv 2605.27033, section "controls"), anew for each size.

    Args:
        shape: the graph's size and kind.
        seed: of the draws. Subgraphs of different sizes are drawn independently of each other.
        edges: how many edges to take; all of them by default.

    Returns:
        int32 ranks on the CPU in the layout of `best_first`: 0 .. `edges` - 1 in the order in which
        edges are taken, `UNREACHABLE` for all others.

    Raises:
        ValueError: more edges than the graph has, or a negative number.
    """
    count = shape.edges if edges is None else edges
    if not 0 <= count <= shape.edges:
        raise ValueError(f"edges must lie in 0 .. {shape.edges}; got {edges}")
    ranks = shape.full(UNREACHABLE, torch.int32)
    nodes, choices = np.random.default_rng([seed, count]).random((2, count))
    _grow(tuple(x.numpy() for x in ranks), nodes, choices, np.empty(shape.edges, np.int32))
    return ranks


# The compiled part. Nodes are numbered level * tokens + token, as in `best_first`.


@njit(cache=True)
@no_type_check
def _grow(ranks, nodes, choices, pool):
    """Fill the ranks of as many edges as there are draws.

    Args:
        ranks: attention, residual and MLP ranks.
        nodes: uniform on [0, 1), one a step: which node of the frontier.
        choices: likewise: which of its in-edges.
        pool: room for the attention in-edges of every node that is reached.
    """
    attention, residual, mlp = ranks
    heads, tokens, joins = attention.shape[1], attention.shape[2], residual.shape[1]
    levels = joins * attention.shape[0] + 1
    reached = np.zeros(levels * tokens, np.bool_)
    frontier = np.empty(levels * tokens, np.int64)
    taken = np.zeros((levels * tokens, 2), np.bool_)  # the residual edge, and the MLP edge
    first, stop = np.zeros(levels * tokens, np.int64), np.zeros(levels * tokens, np.int64)
    length = used = 0
    new = levels * tokens - 1
    for rank in range(len(nodes)):
        if new >= tokens and not reached[new]:  # an embedding has no in-edges
            reached[new] = True
            frontier[length] = new
            length += 1
            level, token = divmod(new, tokens)
            join = (level - 1) % joins
            taken[new, 1] = mlp.shape[0] == 0 or join != joins - 1
            first[new] = stop[new] = used
            if join == 0:
                count = heads * (token + 1)
                for edge in range(count):
                    pool[used + edge] = edge
                used += count
                stop[new] = used
        place = int(nodes[rank] * length)
        node = frontier[place]
        level, token = divmod(node, tokens)
        layer, join = divmod(level - 1, joins)
        source = token
        if not (taken[node, 0] and taken[node, 1]):
            kind = int(taken[node, 0])
            if not (taken[node, 0] or taken[node, 1]):
                kind = int(choices[rank] < 0.5)
            taken[node, kind] = True
            if kind == 0:
                residual[layer, join, token] = rank
            else:
                mlp[layer, token] = rank
        else:
            chosen = first[node] + int(choices[rank] * (stop[node] - first[node]))
            source, head = divmod(pool[chosen], heads)
            pool[chosen] = pool[first[node]]
            first[node] += 1
            attention[layer, head, token, source] = rank
        if taken[node, 0] and taken[node, 1] and first[node] == stop[node]:
            length -= 1
            frontier[place] = frontier[length]
        new = (level - 1) * tokens + source
