"""The rows of a density curve: which masks its sizes and controls come to, each run once.

Different sizes often come to one mask, or to one output: at s = 1 the trace, its random control and
the full mask are the same; the controls keep every residual edge, so that sizes between which a
ranking adds only residual edges are equal; and where a stream of zeros stays zero, every trace that
reaches no embedding puts out what the empty one does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from strace_lens.ablation import Replacement
from strace_lens.architecture import Architecture
from strace_lens.token_graph.controls import random_ranks
from strace_lens.token_graph.edges import KINDS
from strace_lens.token_graph.rows import MaskedRows
from strace_lens.token_graph.trace import Trace


@dataclass(frozen=True, eq=False)
class CurveRows:
    """Masks to run, and in which row of them each size finds its output.

    Attributes:
        groups: the masks.
        full: row of the full mask.
        sizes: relative sizes, rising.
        refined: which of them a refinement added.
        stop: how many edges the mask of the trace keeps at each size.
        trace: row of the trace at each size.
        inverse, random: rows of the controls at each size, -1 where there is none; None without
            controls.
    """

    groups: tuple[MaskedRows, ...]
    full: int
    sizes: tuple[float, ...]
    refined: Bool[Tensor, " size"]
    stop: Int[Tensor, " size"]
    trace: Int[Tensor, " size"]
    inverse: Int[Tensor, " size"] | None = None
    random: Int[Tensor, " size"] | None = None

    @property
    def ablation(self) -> str:
        """What replaces ablated edges."""
        return self.groups[0].replacement.kind

    def __len__(self) -> int:
        return sum(len(group) for group in self.groups)


def most_rows(sizes: Sequence[float], controls: bool, refine: int = 0) -> int:
    """Rows that a curve runs at the most: every size, its two controls, and the full mask once.

    Sizes that a refinement adds have no controls.
    """
    below = sum(s < 1 for s in sizes)
    return below + 1 + (below + len(sizes)) * controls + refine


def curve_rows(
    architecture: Architecture,
    trace: Trace,
    sizes: Sequence[float],
    *,
    controls: bool,
    replacement: Replacement,
    seed: int,
) -> CurveRows:
    """Distinct masks of a trace at every size, of its inverse and of a random control."""
    counts = _counts(trace, sizes)
    stops = _stops(architecture, trace, counts, replacement)
    stop, rows = torch.unique(
        torch.cat([stops, torch.tensor([trace.edges], dtype=torch.int32)]), return_inverse=True
    )
    own = MaskedRows(
        tokens=trace.prompt.tensor,
        shape=trace.shape,
        ranks=trace.ranks,
        start=torch.zeros_like(stop),
        stop=stop,
        replacement=replacement,
    )
    full = len(stop) - 1
    plan = CurveRows(
        groups=(own,),
        full=full,
        sizes=tuple(float(s) for s in sizes),
        refined=torch.zeros(len(sizes), dtype=torch.bool),
        stop=stops,
        trace=rows[:-1],
    )
    if not controls:
        return plan

    removed, inverse = _distinct(trace, counts, full_mask=0, full=full, first=len(own))
    inverses = dataclasses.replace(
        own, start=removed, stop=torch.full_like(removed, trace.edges), keep_residual=True
    )
    grown = dataclasses.replace(trace, ranks=random_ranks(trace.shape, seed))
    everything = _without_residual(grown, torch.tensor([trace.edges]))[0]
    kept, random = _distinct(
        grown, counts, full_mask=int(everything), full=full, first=len(own) + len(inverses)
    )
    randoms = dataclasses.replace(
        own, ranks=grown.ranks, start=torch.zeros_like(kept), stop=kept, keep_residual=True
    )
    groups = tuple(group for group in (own, inverses, randoms) if len(group))
    return dataclasses.replace(plan, groups=groups, inverse=inverse, random=random)


def with_sizes(
    rows: CurveRows, architecture: Architecture, trace: Trace, sizes: Sequence[float]
) -> CurveRows:
    """The rows of a curve and those of the trace at more sizes, which are marked as refined.

    Masks that no row has yet form one more group, behind the others; there may be none. The new
    sizes have no controls.
    """
    own = rows.groups[0]
    stops = _stops(architecture, trace, _counts(trace, sizes), own.replacement)
    row_of = {
        trace.edges: rows.full,
        **dict(zip(rows.stop.tolist(), rows.trace.tolist(), strict=True)),
    }
    fresh = sorted(set(stops.tolist()) - set(row_of))
    row_of.update((stop, len(rows) + i) for i, stop in enumerate(fresh))
    groups = rows.groups
    if fresh:
        stop = torch.tensor(fresh, dtype=torch.int32)
        groups = (*groups, dataclasses.replace(own, start=torch.zeros_like(stop), stop=stop))
    every = torch.tensor([*rows.sizes, *sizes], dtype=torch.float64)
    order = every.argsort()
    found = torch.tensor([row_of[stop] for stop in stops.tolist()])

    def merged(old: Tensor, new: Tensor) -> Tensor:
        return torch.cat([old, new])[order]

    none = torch.full_like(found, -1)
    return CurveRows(
        groups=groups,
        full=rows.full,
        sizes=tuple(every[order].tolist()),
        refined=merged(rows.refined, torch.ones(len(sizes), dtype=torch.bool)),
        stop=merged(rows.stop, stops),
        trace=merged(rows.trace, found),
        inverse=None if rows.inverse is None else merged(rows.inverse, none),
        random=None if rows.random is None else merged(rows.random, none),
    )


def _counts(trace: Trace, sizes: Sequence[float]) -> Int[Tensor, " size"]:
    return torch.tensor([trace.edge_count(s) for s in sizes], dtype=torch.int32)


def _stops(
    architecture: Architecture, trace: Trace, counts: Int[Tensor, " size"], replacement: Replacement
) -> Int[Tensor, " size"]:
    """How many edges are kept for traces of some counts: none by one that puts out as the empty."""
    if not architecture.silent_without_input or replacement.references:
        return counts.clone()
    return counts.where(counts > _first_embedding(trace), 0)


def _first_embedding(trace: Trace) -> int:
    """Rank of the first edge that reads an embedding."""
    first_layer = [trace.ranks.attention[0], trace.ranks.residual[0, 0]]
    if trace.shape.mlp and trace.shape.parallel:
        first_layer.append(trace.ranks.mlp[0])
    return min(int(ranks.min()) for ranks in first_layer)


def _without_residual(trace: Trace, counts: Int[Tensor, " size"]) -> Int[Tensor, " size"]:
    """How many attention and MLP edges the first k edges hold."""
    by_kind = trace.counts_by_size(counts.tolist())
    return by_kind.sum((1, 2)) - by_kind[:, KINDS.index("residual")].sum(1)


def _distinct(
    trace: Trace, counts: Int[Tensor, " size"], *, full_mask: int, full: int, first: int
) -> tuple[Int[Tensor, " row"], Int[Tensor, " size"]]:
    """Counts that differ in more than residual edges, and the row of each size among them.

    Rows are numbered from `first`; sizes whose attention and MLP edges number `full_mask` find
    theirs in row `full`.
    """
    kinds, index = torch.unique(_without_residual(trace, counts), return_inverse=True)
    one_each = torch.stack([counts[index == i][0] for i in range(len(kinds))])
    own = kinds != full_mask
    rows = torch.full_like(kinds, full)
    rows[own] = first + torch.arange(int(own.sum()))
    return one_each[own], rows[index]
