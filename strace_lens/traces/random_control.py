"""The random control: subgraphs that are grown from the output by chance.

A node that has been reached and has in-edges left is drawn uniformly, and one of its in-edges is
taken: residual and MLP edges first, in random order, then attention edges in random order. The
source of that edge is reached by then. So the authors' code draws its random control, anew for each
size. Source: s-Trace (arXiv 2605.27033), section "controls".
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Int64
from numba import njit
from torch import Tensor

from strace_lens.traces.edges import EdgeTensors, GraphShape

DRAWING_BYTES = 2**28
"""Bytes that random controls may take while several of them are drawn at once."""

REMEMBERED_BYTES = 2**25
"""Largest numbers of random subgraphs that are remembered; two of them are."""


def random_subsets(
    shape: GraphShape, seed: int, sizes: tuple[int, ...]
) -> tuple[EdgeTensors, Int64[Tensor, "size kind"]]:
    """Random subgraphs of up to `rows.SUBSETS` sizes, in one number for each edge.

    They are drawn side by side where memory allows. Those of a small graph are remembered, since
    prompts of equal length have the same.

    Args:
        shape: the graph's size and kind.
        seed: of the draws. Subgraphs of different sizes are drawn independently of each other.
        sizes: how many edges each subgraph has.

    Returns:
        int32 numbers whose bit i says whether subgraph i holds the edge, not to be written to; and
        how many edges of each of `KINDS` each subgraph holds.
    """
    small = 4 * shape.places <= REMEMBERED_BYTES
    return _remembered_subsets(shape, seed, sizes) if small else _subsets(shape, seed, sizes)


def _subsets(
    shape: GraphShape, seed: int, sizes: tuple[int, ...]
) -> tuple[EdgeTensors, Int64[Tensor, "size kind"]]:
    at_once = drawn_at_once(shape)
    kinds = torch.empty(len(sizes), 3, dtype=torch.int64)

    def draw(first: int) -> EdgeTensors:
        drawn = shape.full(0, torch.int32)
        # Neighbours are of like size: dealt out in turn, they give each thread as much to do.
        for i in range(first, len(sizes), at_once):
            kinds[i] = grow(drawn, 1 << i, shape, seed, sizes[i])
        return drawn

    with ThreadPoolExecutor(at_once) as pool:
        subsets, *others = pool.map(draw, range(at_once))
    for drawn in others:
        for bits, more in zip(subsets, drawn, strict=True):
            bits |= more
    return subsets, kinds


_remembered_subsets = lru_cache(maxsize=2)(_subsets)


def grow(
    into: EdgeTensors, bit: int, shape: GraphShape, seed: int, edges: int
) -> Int64[Tensor, " kind"]:
    """Grow a random subgraph and mark its edges.

    Args:
        into: an int32 for each edge, not yet marked.
        bit: marks the number of each edge taken; 0 to mark it with the place at which the edge was
            taken, counted from 1.
        shape: the graph's size and kind.
        seed: of the draws.
        edges: how many edges to take.

    Returns:
        How many edges of each of `KINDS` were taken.
    """
    nodes, choices = np.random.default_rng([seed, edges]).random((2, edges))
    arrays = tuple(x.numpy() for x in into)
    return torch.from_numpy(_grow(arrays, bit, nodes, choices, np.empty(shape.edges, np.int32)))


def drawn_at_once(shape: GraphShape) -> int:
    """How many threads draw random subgraphs: as many as torch has, if memory allows."""
    return max(1, min(torch.get_num_threads(), DRAWING_BYTES // drawing_bytes(shape)))


def drawing_bytes(shape: GraphShape) -> int:
    """Bytes that a thread takes to draw random subgraphs: numbers, two draws an edge, a pool."""
    return 4 * shape.places + 20 * shape.edges


# The compiled part. Nodes are numbered level * tokens + token, as in `best_first`.


@njit(cache=True, nogil=True)
@no_type_check
def _grow(edges, bit, nodes, choices, pool):
    """Take as many edges as there are draws, and count them by kind in the order of `KINDS`.

    Args:
        edges: a number for each attention, residual and MLP edge, not yet marked.
        bit: marks the number of each edge taken; 0 to mark it with the edge's rank plus 1.
        nodes: uniform on [0, 1), one a step: which node of the frontier.
        choices: likewise: which of its in-edges.
        pool: room for the attention in-edges of every node that is reached.
    """
    attention, residual, mlp = edges
    counts = np.zeros(3, np.int64)
    heads, tokens, sublayers = attention.shape[1], attention.shape[2], residual.shape[1]
    levels = sublayers * attention.shape[0] + 1
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
            sublayer = (level - 1) % sublayers
            taken[new, 1] = mlp.shape[0] == 0 or sublayer != sublayers - 1
            first[new] = stop[new] = used
            if sublayer == 0:
                count = heads * (token + 1)
                for edge in range(count):
                    pool[used + edge] = edge
                used += count
                stop[new] = used
        place = int(nodes[rank] * length)
        node = frontier[place]
        level, token = divmod(node, tokens)
        layer, sublayer = divmod(level - 1, sublayers)
        source, kind, mark = token, 1, bit if bit else rank + 1
        if not (taken[node, 0] and taken[node, 1]):
            kind = 2 * int(taken[node, 0])
            if not (taken[node, 0] or taken[node, 1]):
                kind = 2 * int(choices[rank] < 0.5)
            taken[node, kind // 2] = True
            if kind == 0:
                residual[layer, sublayer, token] |= mark
            else:
                mlp[layer, token] |= mark
        else:
            chosen = first[node] + int(choices[rank] * (stop[node] - first[node]))
            source, head = divmod(pool[chosen], heads)
            pool[chosen] = pool[first[node]]
            first[node] += 1
            attention[layer, head, token, source] |= mark
        counts[kind] += 1
        if taken[node, 0] and taken[node, 1] and first[node] == stop[node]:
            length -= 1
            frontier[place] = frontier[length]
        new = (level - 1) * tokens + source
    return counts
