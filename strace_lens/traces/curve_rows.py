"""The rows of a density curve: which masks its sizes and controls come to, each run once.

Different sizes often come to one mask, or to one output: at s = 1 the trace, its random control and
the full mask are the same; where kinds of edges are kept whole, as the controls keep residual ones,
sizes between which a ranking adds only edges of these kinds are equal; and where a stream of zeros
stays zero, every trace that reaches no embedding puts out what the empty one does.

The random control is a subgraph that is grown by chance (`random_control`). The other controls are
complements: of the trace, and of the random subgraph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from strace_lens.measures.sizes import check_sizes
from strace_lens.model.architecture import Architecture
from strace_lens.traces.ablation import Replacement
from strace_lens.traces.random_control import random_subsets
from strace_lens.traces.rows import SUBSETS, MaskedRows, MaskRows, SubsetRows
from strace_lens.traces.trace import Trace
from strace_lens.utils.choices import KINDS, kinds_to_keep


@dataclass(frozen=True, eq=False)
class CurveRows:
    """Masks to run, and in which row of them each size finds its output.

    Attributes:
        groups: the masks; those of the trace itself come first.
        full: row of the full mask.
        sizes: relative sizes, rising.
        refined: which of them a refinement added.
        counts: edges of each kind (in the order of `KINDS`) and layer in the trace of each size.
        whole: the same of the whole graph.
        trace: row of the trace at each size.
        inverse, random, random_inverse: rows of the controls at each size, -1 where there is none;
            None without controls.
    """

    groups: tuple[MaskRows, ...]
    full: int
    sizes: tuple[float, ...]
    refined: Bool[Tensor, " size"]
    counts: Int64[Tensor, "size kind layer"]
    whole: Int64[Tensor, "kind layer"]
    trace: Int64[Tensor, " size"]
    inverse: Int64[Tensor, " size"] | None = None
    random: Int64[Tensor, " size"] | None = None
    random_inverse: Int64[Tensor, " size"] | None = None

    @property
    def own(self) -> MaskedRows:
        """The first rows of the trace itself."""
        first = self.groups[0]
        assert isinstance(first, MaskedRows)
        return first

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
        ValueError: sizes outside (0, 1] or not rising, or an unknown kind of edges to keep.
    """
    check_sizes(np.asarray(sizes, dtype=np.float64))
    counts = trace.counts_by_size([trace.edge_count(float(size)) for size in (*sizes, 1.0)])
    own = MaskedRows(
        tokens=trace.prompt.tensor,
        shape=trace.shape,
        ranks=trace.ranks,
        start=None,
        stop=torch.empty(0, dtype=torch.int32),
        keep=kinds_to_keep(keep),
        replacement=replacement,
    )
    masks = _masks(architecture, counts, own)
    distinct, rows = torch.unique(masks, return_inverse=True)
    rows = CurveRows(
        groups=(replace(own, stop=_bounds(distinct, masks, counts)),),
        full=int(rows[-1]),
        sizes=tuple(float(s) for s in sizes),
        refined=torch.zeros(len(sizes), dtype=torch.bool),
        counts=counts[:-1],
        whole=counts[-1],
        trace=rows[:-1],
    )
    return _with_controls(rows, seed) if controls else rows


def with_sizes(
    rows: CurveRows, architecture: Architecture, trace: Trace, sizes: Sequence[float]
) -> CurveRows:
    """The rows of a curve and those of the trace at more sizes, which are marked as refined.

    Masks that no row has yet form one more group, behind the others; there may be none. The new
    sizes have no controls.
    """
    own = rows.own
    counts = trace.counts_by_size([trace.edge_count(size) for size in sizes])
    masks = _masks(architecture, counts, own)
    known = _masks(architecture, torch.cat([rows.counts, rows.whole[None]]), own)
    row_of = dict(zip(known.tolist(), [*rows.trace.tolist(), rows.full], strict=True))
    fresh = sorted(set(masks.tolist()) - set(row_of))
    row_of.update((mask, len(rows) + i) for i, mask in enumerate(fresh))
    groups = rows.groups
    if fresh:
        groups = (*groups, replace(own, stop=_bounds(torch.tensor(fresh), masks, counts)))
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
        counts=merged(rows.counts, counts),
        whole=rows.whole,
        trace=merged(rows.trace, found),
        inverse=without(rows.inverse),
        random=without(rows.random),
        random_inverse=without(rows.random_inverse),
    )


def ablatable(
    counts: Int64[Tensor, "*sizes kind layer"], keep: Sequence[str]
) -> Int64[Tensor, "*sizes"]:
    """How many edges are of kinds that are not kept whole."""
    kinds = [KINDS.index(kind) for kind in KINDS if kind not in keep]
    return counts[..., kinds, :].sum((-2, -1))


def _with_controls(rows: CurveRows, seed: int) -> CurveRows:
    """The rows of a curve and those of its controls at every size.

    Masks that keep every edge have no row of their own.
    """
    own = rows.own
    keep = kinds_to_keep([*own.keep, "residual"])
    every = int(ablatable(rows.whole, keep))
    removed, inverse = torch.unique(ablatable(rows.counts, keep), return_inverse=True)
    start = _bounds(removed, removed[inverse], rows.counts)[removed > 0]
    of_inverse = torch.where(removed > 0, len(own) - 1 + (removed > 0).cumsum(0), rows.full)
    groups: list[MaskRows] = [own]
    if len(start):
        groups.append(replace(own, start=start, stop=None, keep=keep))
    first = len(own) + len(start)

    edges = rows.counts.sum((1, 2)).tolist()
    random = torch.full((len(edges), 2), rows.full)
    for begin in range(0, len(edges), SUBSETS):
        sizes = tuple(edges[begin : begin + SUBSETS])
        subsets, of_kinds = random_subsets(own.shape, seed, sizes)
        taken = ablatable(of_kinds[..., None], keep)
        bits = 1 << torch.arange(len(sizes), dtype=torch.int32)
        # The mask of each control, and that of its inverse, unless it ablates nothing.
        there = torch.stack([taken < every, taken > 0], 1)
        bit = bits[:, None].expand(-1, 2)[there]
        wanted = torch.stack([bits, torch.zeros_like(bits)], 1)[there]
        random[begin : begin + SUBSETS][there] = first + torch.arange(len(bit))
        first += len(bit)
        if len(bit):
            more = SubsetRows(own.tokens, own.shape, subsets, bit, wanted)
            groups.append(replace(more, keep=keep, replacement=own.replacement))
    return replace(
        rows,
        groups=tuple(groups),
        inverse=of_inverse[inverse],
        random=random[:, 0],
        random_inverse=random[:, 1],
    )


def _masks(
    architecture: Architecture, counts: Int64[Tensor, "size kind layer"], own: MaskedRows
) -> Int64[Tensor, " size"]:
    """A number for each size, equal where the traces come to one output: of ablatable edges."""
    masks = ablatable(counts, own.keep)
    if own.keep or not architecture.silent_without_input or own.replacement.references:
        return masks
    first_layer = [own.ranks.attention[0], own.ranks.residual[0, 0]]
    if own.shape.mlp and own.shape.parallel:
        first_layer.append(own.ranks.mlp[0])
    first_embedding = min(int(ranks.min()) for ranks in first_layer)
    return masks.where(counts.sum((1, 2)) > first_embedding, 0)


def _bounds(
    distinct: Int64[Tensor, " row"],
    masks: Int64[Tensor, " size"],
    counts: Int64[Tensor, "size kind layer"],
) -> Tensor:
    """How many edges bound the row of each distinct mask: the first size that comes to it.

    A mask without ablatable edges is bounded by none.
    """
    first = counts.sum((1, 2))[torch.searchsorted(masks, distinct)]
    return first.where(distinct > 0, 0).int()
