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
from dataclasses import dataclass
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64
from numba import njit
from torch import Tensor

from strace_lens.model.architecture import Architecture
from strace_lens.token_graph.ablation import Replacement
from strace_lens.token_graph.edges import KINDS, UNREACHABLE, EdgeTensors, GraphShape, kinds_to_keep
from strace_lens.token_graph.rows import MaskedRows
from strace_lens.token_graph.trace import Trace


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
        source = token
        if not (taken[node, 0] and taken[node, 1]):
            kind = int(taken[node, 0])
            if not (taken[node, 0] or taken[node, 1]):
                kind = int(choices[rank] < 0.5)
            taken[node, kind] = True
            if kind == 0:
                residual[layer, sublayer, token] = rank
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

    groups: tuple[MaskedRows, ...]
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
    def ablation(self) -> str:
        """What replaces ablated edges."""
        return self.groups[0].replacement.kind

    @property
    def keep(self) -> tuple[str, ...]:
        """Kinds of edges that are never ablated."""
        return self.groups[0].keep

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
    counts = _counts(trace, sizes)
    ablatable = _ablatable(trace, counts, keep)
    everything = torch.tensor([trace.edges], dtype=torch.int32)
    masks = torch.cat(
        [
            _masks(architecture, trace, counts, replacement, keep),
            _ablatable(trace, everything, keep),
        ]
    )
    distinct, rows = torch.unique(masks, return_inverse=True)
    stop = _stops(distinct, masks, torch.cat([counts, everything]))
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
        ablatable=ablatable,
        mask=masks[:-1],
        trace=rows[:-1],
    )
    return _with_controls(plan, trace, counts, seed) if controls else plan


def _with_controls(
    plan: CurveRows, trace: Trace, counts: Int[Tensor, " size"], seed: int
) -> CurveRows:
    """The rows of a curve and those of its controls at every size."""
    (own,) = plan.groups
    keep = kinds_to_keep([*plan.keep, "residual"])
    removed, inverse = torch.unique(_ablatable(trace, counts, keep), return_inverse=True)
    start = _stops(removed, removed[inverse], counts)
    full = removed == 0
    rows = torch.where(full, plan.full, len(own) - 1 + (~full).cumsum(0))
    start = start[~full]
    groups = [own]
    if len(start):
        stop = torch.full_like(start, trace.edges)
        groups.append(dataclasses.replace(own, start=start, stop=stop, keep=keep))
    first = len(own) + len(start)
    both = torch.full((2, len(counts)), plan.full)
    every = _ablatable(trace, torch.tensor([trace.edges]), keep)
    for size, count in enumerate(counts.tolist()):
        drawn = random_ranks(trace.shape, seed, count)
        taken = sum(int((getattr(drawn, kind) < count).sum()) for kind in KINDS if kind not in keep)
        # The mask of the control, and that of its inverse, unless it ablates nothing.
        which = [row for row, full in enumerate((taken == every, taken == 0)) if not full]
        if which:
            both[which, size] = first + torch.arange(len(which))
            first += len(which)
            groups.append(_one_or_the_other(own, drawn, count, keep, which))
    return dataclasses.replace(
        plan, groups=tuple(groups), inverse=rows[inverse], random=both[0], random_inverse=both[1]
    )


def _one_or_the_other(
    own: MaskedRows, drawn: EdgeTensors, count: int, keep: tuple[str, ...], which: list[int]
) -> MaskedRows:
    """Rows that keep the first edges of a ranking (0), and all others (1)."""
    start = torch.tensor(which, dtype=torch.int32)
    sides = drawn.map(lambda ranks: (ranks >= count).to(torch.int8))
    return dataclasses.replace(own, ranks=sides, start=start, stop=start + 1, keep=keep)


def with_sizes(
    rows: CurveRows, architecture: Architecture, trace: Trace, sizes: Sequence[float]
) -> CurveRows:
    """The rows of a curve and those of the trace at more sizes, which are marked as refined.

    Masks that no row has yet form one more group, behind the others; there may be none. The new
    sizes have no controls.
    """
    own = rows.groups[0]
    counts = _counts(trace, sizes)
    ablatable = _ablatable(trace, counts, rows.keep)
    masks = _masks(architecture, trace, counts, own.replacement, rows.keep)
    row_of = {
        int(_ablatable(trace, torch.tensor([trace.edges]), rows.keep)): rows.full,
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


def _ablatable(
    trace: Trace, counts: Int[Tensor, " size"], keep: Sequence[str]
) -> Int64[Tensor, " size"]:
    """How many edges of the kinds that are not kept whole are among the first k edges."""
    if not keep:
        return counts.long()
    by_kind = trace.counts_by_size(counts.tolist()).sum(2)
    return by_kind[:, [KINDS.index(kind) for kind in KINDS if kind not in keep]].sum(1)


def _masks(
    architecture: Architecture,
    trace: Trace,
    counts: Int[Tensor, " size"],
    replacement: Replacement,
    keep: Sequence[str],
) -> Int64[Tensor, " size"]:
    """A number for each count, equal where the traces come to one output: of ablatable edges."""
    masks = _ablatable(trace, counts, keep)
    if keep or not architecture.silent_without_input or replacement.references:
        return masks
    return masks.where(counts > _first_embedding(trace), 0)


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
