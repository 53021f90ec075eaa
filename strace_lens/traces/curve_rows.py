"""The rows of a density curve: which masks its sizes and controls come to, each run once.

Different sizes often come to one mask, or to one output: at s = 1 the trace, its random control and
the full mask are the same; where kinds of edges are kept whole, as the controls keep residual ones,
sizes between which a ranking adds only edges of these kinds are equal; and where a stream of zeros
stays zero, every trace that reaches no embedding puts out what the empty one does.

The random control is a subgraph that is grown by chance. The other controls are complements: of the
trace, and of the random subgraph.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64
from numba import njit
from torch import Tensor

from strace_lens.model.architecture import Architecture
from strace_lens.traces.ablation import Replacement
from strace_lens.traces.edges import KINDS, UNREACHABLE, EdgeTensors, GraphShape, kinds_to_keep
from strace_lens.traces.rows import SUBSETS, MaskedRows, MaskRows, SubsetRows
from strace_lens.traces.trace import Trace

DRAWING_BYTES = 2**28
"""Bytes that random controls may take while several of them are drawn at once."""

REMEMBERED_BYTES = 2**25
"""Largest numbers of random subgraphs that are remembered; two of them are."""


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
    numbers = shape.full(0, torch.int32)
    _take(numbers, 0, shape, seed, count)
    return numbers.map(lambda number: (number - 1).masked_fill(number == 0, UNREACHABLE))


def random_subsets(
    shape: GraphShape, seed: int, sizes: tuple[int, ...]
) -> tuple[EdgeTensors, tuple[tuple[int, ...], ...]]:
    """The subgraphs of `random_ranks` at up to `SUBSETS` sizes, in one number for each edge.

    They are drawn side by side where memory allows. Those of a small graph are remembered, since
    prompts of equal length have the same.

    Args:
        shape: the graph's size and kind.
        seed: of the draws.
        sizes: how many edges each subgraph has.

    Returns:
        int32 numbers whose bit i says whether subgraph i holds the edge, not to be written to; and
        how many edges of each of `KINDS` each subgraph holds.
    """
    small = 4 * shape.places <= REMEMBERED_BYTES
    return _remembered_subsets(shape, seed, sizes) if small else _subsets(shape, seed, sizes)


def _subsets(
    shape: GraphShape, seed: int, sizes: tuple[int, ...]
) -> tuple[EdgeTensors, tuple[tuple[int, ...], ...]]:
    at_once = drawn_at_once(shape)

    def draw(first: int) -> tuple[EdgeTensors, list[tuple[int, ...]]]:
        drawn = shape.full(0, torch.int32)
        which = range(first, len(sizes), at_once)
        return drawn, [_take(drawn, 1 << i, shape, seed, sizes[i]) for i in which]

    # Neighbours are of like size: dealt out in turn, they give each thread about as much to do.
    with ThreadPoolExecutor(at_once) as pool:
        dealt = list(pool.map(draw, range(at_once)))
    subsets = dealt[0][0]
    for drawn, _ in dealt[1:]:
        for bits, more in zip(subsets, drawn, strict=True):
            bits |= more
    return subsets, tuple(dealt[i % at_once][1][i // at_once] for i in range(len(sizes)))


_remembered_subsets = lru_cache(maxsize=2)(_subsets)


def _take(into: EdgeTensors, bit: int, shape: GraphShape, seed: int, count: int) -> tuple[int, ...]:
    """Draw a subgraph, mark its edges as `_grow` does, and say how many it has of each kind."""
    nodes, choices = np.random.default_rng([seed, count]).random((2, count))
    arrays = tuple(x.numpy() for x in into)
    taken = _grow(arrays, bit, nodes, choices, np.empty(shape.edges, np.int32))
    return tuple(int(n) for n in taken)


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


@dataclass(frozen=True, eq=False)
class CurveRows:
    """Masks to run, and in which row of them each size finds its output.

    Attributes:
        groups: the masks.
        full: row of the full mask.
        sizes: relative sizes, rising.
        refined: which of them a refinement added.
        ablatable: how many edges of kinds that are not kept whole the trace holds at each size.
        mask: a number for each size, the same where the mask of the trace comes to the same output.
        trace: row of the trace at each size.
        inverse, random, random_inverse: rows of the controls at each size, -1 where there is none;
            None without controls.
    """

    groups: tuple[MaskRows, ...]
    full: int
    sizes: tuple[float, ...]
    refined: Bool[Tensor, " size"]
    ablatable: Int64[Tensor, " size"]
    mask: Int64[Tensor, " size"]
    trace: Int[Tensor, " size"]
    inverse: Int[Tensor, " size"] | None = None
    random: Int[Tensor, " size"] | None = None
    random_inverse: Int[Tensor, " size"] | None = None

    @property
    def own(self) -> MaskedRows:
        """The rows of the trace itself, which come first."""
        first = self.groups[0]
        assert isinstance(first, MaskedRows)
        return first

    @property
    def ablation(self) -> str:
        """What replaces ablated edges."""
        return self.own.replacement.kind

    @property
    def keep(self) -> tuple[str, ...]:
        """Kinds of edges that are never ablated."""
        return self.own.keep

    def __len__(self) -> int:
        return sum(len(group) for group in self.groups)


def most_rows(sizes: Sequence[float], controls: bool, refine: int = 0) -> int:
    """Rows that a curve runs at the most: every size, its three controls, and the full mask once.

    Sizes that a refinement adds have no controls.
    """
    below = sum(s < 1 for s in sizes)
    return below + 1 + (below + 2 * len(sizes)) * controls + refine


def curve_rows(
    architecture: Architecture,
    trace: Trace,
    sizes: Sequence[float],
    *,
    controls: bool,
    replacement: Replacement,
    seed: int,
    keep: Sequence[str] = (),
) -> CurveRows:
    """Distinct masks of a trace at every size, of its inverse, of a random control and its inverse.

    Args:
        architecture: of the model.
        trace: ranks of every edge.
        sizes: relative sizes, rising.
        controls: whether to run the controls, which keep every residual edge.
        replacement: what an ablated edge carries.
        seed: of the random control.
        keep: kinds of edges that no row ablates.

    Raises:
        ValueError: an unknown kind of edges to keep.
    """
    keep = kinds_to_keep(keep)
    counts = _counts(trace, [*sizes, 1.0])
    by_kind = _by_kind(trace, counts)
    ablatable = _ablatable(by_kind, keep)
    masks = _masks(architecture, trace, counts, ablatable, replacement, keep)
    distinct, rows = torch.unique(masks, return_inverse=True)
    stop = _stops(distinct, masks, counts)
    own = MaskedRows(
        tokens=trace.prompt.tensor,
        shape=trace.shape,
        ranks=trace.ranks,
        start=torch.zeros_like(stop),
        stop=stop,
        keep=keep,
        replacement=replacement,
    )
    plan = CurveRows(
        groups=(own,),
        full=int(rows[-1]),
        sizes=tuple(float(s) for s in sizes),
        refined=torch.zeros(len(sizes), dtype=torch.bool),
        ablatable=ablatable[:-1],
        mask=masks[:-1],
        trace=rows[:-1],
    )
    return _with_controls(plan, trace, counts[:-1], by_kind, seed) if controls else plan


def _with_controls(
    plan: CurveRows,
    trace: Trace,
    counts: Int[Tensor, " size"],
    by_kind: Int64[Tensor, "some kind"],
    seed: int,
) -> CurveRows:
    """The rows of a curve and those of its controls at every size.

    Args:
        plan: the rows of the trace alone.
        trace: whose rows they are.
        counts: edges at every size.
        by_kind: how many of them are of each kind, and in the last row those of the whole graph.
        seed: of the random control.
    """
    own = plan.own
    keep = kinds_to_keep([*plan.keep, "residual"])
    *ablated, every = _ablatable(by_kind, keep).tolist()
    removed, inverse = torch.unique(torch.tensor(ablated), return_inverse=True)
    start = _stops(removed, removed[inverse], counts)
    full = removed == 0
    rows = torch.where(full, plan.full, len(own) - 1 + (~full).cumsum(0))
    start = start[~full]
    groups: list[MaskRows] = [own]
    if len(start):
        stop = torch.full_like(start, trace.edges)
        groups.append(dataclasses.replace(own, start=start, stop=stop, keep=keep))
    first = len(own) + len(start)
    random, subsets = _random_controls(plan, trace.shape, counts.tolist(), seed, keep, every, first)
    return dataclasses.replace(
        plan,
        groups=(*groups, *subsets),
        inverse=rows[inverse],
        random=random[0],
        random_inverse=random[1],
    )


def _random_controls(
    plan: CurveRows,
    shape: GraphShape,
    edges: list[int],
    seed: int,
    keep: tuple[str, ...],
    every: int,
    first: int,
) -> tuple[Int64[Tensor, "2 size"], list[SubsetRows]]:
    """Rows of the random control and of its inverse at each size, and the masks of these rows.

    Each size has a subset of its own. Masks that keep every edge have no row of their own.

    Args:
        plan: the rows of the trace alone.
        shape: of its graph.
        edges: how many each subset has.
        seed: of the draws.
        keep: kinds of edges that every row keeps.
        every: how many edges can be ablated.
        first: number of the first row.
    """
    own = plan.own
    found, groups = torch.full((2, len(edges)), plan.full), []
    for begin in range(0, len(edges), SUBSETS):
        sizes = tuple(edges[begin : begin + SUBSETS])
        subsets, kinds = random_subsets(shape, seed, sizes)
        bit, wanted = [], []
        for i, of_kind in enumerate(kinds):
            pairs = zip(KINDS, of_kind, strict=True)
            taken = sum(count for kind, count in pairs if kind not in keep)
            # The mask of the control, and that of its inverse, unless it ablates nothing.
            for side, (full, value) in enumerate(((taken == every, 1 << i), (taken == 0, 0))):
                if not full:
                    found[side, begin + i] = first + len(bit)
                    bit.append(1 << i)
                    wanted.append(value)
        first += len(bit)
        if bit:
            numbers = (torch.tensor(x, dtype=torch.int32) for x in (bit, wanted))
            groups.append(
                SubsetRows(
                    own.tokens, own.shape, subsets, *numbers, keep=keep, replacement=own.replacement
                )
            )
    return found, groups


def with_sizes(
    rows: CurveRows, architecture: Architecture, trace: Trace, sizes: Sequence[float]
) -> CurveRows:
    """The rows of a curve and those of the trace at more sizes, which are marked as refined.

    Masks that no row has yet form one more group, behind the others; there may be none. The new
    sizes have no controls.
    """
    own = rows.own
    counts = _counts(trace, [*sizes, 1.0])
    ablatable = _ablatable(_by_kind(trace, counts), rows.keep)
    every, ablatable, counts = int(ablatable[-1]), ablatable[:-1], counts[:-1]
    masks = _masks(architecture, trace, counts, ablatable, own.replacement, rows.keep)
    row_of = {
        every: rows.full,
        **dict(zip(rows.mask.tolist(), rows.trace.tolist(), strict=True)),
    }
    fresh = sorted(set(masks.tolist()) - set(row_of))
    row_of.update((mask, len(rows) + i) for i, mask in enumerate(fresh))
    groups = rows.groups
    if fresh:
        stop = _stops(torch.tensor(fresh), masks, counts)
        groups = (*groups, dataclasses.replace(own, start=torch.zeros_like(stop), stop=stop))
    every = torch.tensor([*rows.sizes, *sizes], dtype=torch.float64)
    order = every.argsort()
    found = torch.tensor([row_of[mask] for mask in masks.tolist()])

    def merged(old: Tensor, new: Tensor) -> Tensor:
        return torch.cat([old, new])[order]

    def without(old: Tensor | None) -> Tensor | None:
        return None if old is None else merged(old, torch.full_like(found, -1))

    return CurveRows(
        groups=groups,
        full=rows.full,
        sizes=tuple(every[order].tolist()),
        refined=merged(rows.refined, torch.ones(len(sizes), dtype=torch.bool)),
        ablatable=merged(rows.ablatable, ablatable),
        mask=merged(rows.mask, masks),
        trace=merged(rows.trace, found),
        inverse=without(rows.inverse),
        random=without(rows.random),
        random_inverse=without(rows.random_inverse),
    )


def _counts(trace: Trace, sizes: Sequence[float]) -> Int[Tensor, " size"]:
    return torch.tensor([trace.edge_count(s) for s in sizes], dtype=torch.int32)


def _by_kind(trace: Trace, counts: Int[Tensor, " size"]) -> Int64[Tensor, "size kind"]:
    """How many edges of each kind are among the first k edges."""
    return trace.counts_by_size(counts.tolist()).sum(2)


def _ablatable(by_kind: Int64[Tensor, "size kind"], keep: Sequence[str]) -> Int64[Tensor, " size"]:
    """How many edges are of kinds that are not kept whole."""
    return by_kind[:, [KINDS.index(kind) for kind in KINDS if kind not in keep]].sum(1)


def _masks(
    architecture: Architecture,
    trace: Trace,
    counts: Int[Tensor, " size"],
    ablatable: Int64[Tensor, " size"],
    replacement: Replacement,
    keep: Sequence[str],
) -> Int64[Tensor, " size"]:
    """A number for each count, equal where the traces come to one output: of ablatable edges."""
    if keep or not architecture.silent_without_input or replacement.references:
        return ablatable
    return ablatable.where(counts > _first_embedding(trace), 0)


def _first_embedding(trace: Trace) -> int:
    """Rank of the first edge that reads an embedding."""
    first_layer = [trace.ranks.attention[0], trace.ranks.residual[0, 0]]
    if trace.shape.mlp and trace.shape.parallel:
        first_layer.append(trace.ranks.mlp[0])
    return min(int(ranks.min()) for ranks in first_layer)


def _stops(
    distinct: Int64[Tensor, " row"], masks: Int64[Tensor, " size"], counts: Int[Tensor, " size"]
) -> Int[Tensor, " row"]:
    """How many edges the row of each distinct mask keeps: the first count that comes to it.

    A mask without ablatable edges keeps none.
    """
    first = [counts[masks == mask][0] if mask else counts[0] * 0 for mask in distinct.tolist()]
    return torch.stack(first) if first else counts[:0]
