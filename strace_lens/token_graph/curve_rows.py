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
from jaxtyping import Int
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
        trace: row of the trace at each size.
        inverse, random: rows of the controls at each size; None without controls.
    """

    groups: tuple[MaskedRows, ...]
    full: int
    trace: Int[Tensor, " size"]
    inverse: Int[Tensor, " size"] | None = None
    random: Int[Tensor, " size"] | None = None

    @property
    def ablation(self) -> str:
        """What replaces ablated edges."""
        return self.groups[0].replacement.kind

    def __len__(self) -> int:
        return sum(len(group) for group in self.groups)


def most_rows(sizes: Sequence[float], controls: bool) -> int:
    """Rows that a curve runs at the most: every size, its two controls, and the full mask once."""
    below = sum(s < 1 for s in sizes)
    return below + 1 + (below + len(sizes)) * controls


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
    counts = torch.tensor([trace.edge_count(s) for s in sizes], dtype=torch.int32)
    stop = counts.clone()
    if architecture.silent_without_input and not replacement.references:
        stop[stop <= _first_embedding(trace)] = 0
    stop, rows = torch.unique(
        torch.cat([stop, torch.tensor([trace.edges], dtype=torch.int32)]), return_inverse=True
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
    if not controls:
        return CurveRows((own,), full, rows[:-1])

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
    return CurveRows(groups, full, rows[:-1], inverse, random)


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
