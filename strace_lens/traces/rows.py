"""Rows of a masked run: one prompt under many masks.

`MaskedRows` stores no mask: row r keeps the edges with `start[r] <= rank < stop[r]`, compared
inside the hook, on the device. `SubsetRows` reads the masks of up to `SUBSETS` unrelated subsets
from one number for each edge, which has a bit for each subset. `WeightedRows` holds a weight for
each edge and row, as a gradient needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from strace_lens.traces.ablation import ZERO, Replacement
from strace_lens.traces.edges import EdgeTensors, GraphShape

Keep = Bool[Tensor, "..."] | Float[Tensor, "..."]
"""What is kept of each edge: all or nothing, or a weight between."""

SUBSETS = 31
"""Most subsets of edges that one int32 for each edge can hold."""


@dataclass(frozen=True, eq=False)
class _RowsOfPrompt:
    """What all rows have.

    Attributes:
        tokens: the prompt.
        shape: of its token graph.
        keep: kinds of edges (of `KINDS`) that every row keeps.
        replacement: what an ablated edge carries instead.
    """

    tokens: Int[Tensor, " pos"]
    shape: GraphShape
    keep: tuple[str, ...] = field(default=(), kw_only=True)
    replacement: Replacement = field(default=ZERO, kw_only=True)

    def __post_init__(self) -> None:
        tokens, length = len(self.tokens), self.replacement.length
        if tokens != self.shape.tokens:
            raise ValueError(f"the prompt has {tokens} tokens, its graph {self.shape.tokens}")
        if length not in (None, tokens):
            raise ValueError(
                f"the {self.replacement.kind} replacement has {length} tokens, the prompt "
                f"{tokens}; give prompts of equal length"
            )


@dataclass(frozen=True, eq=False)
class MaskedRows(_RowsOfPrompt):
    """Rows of a masked run that share a prompt and a ranking.

    Attributes:
        ranks: one rank an edge.
        start, stop: row r keeps the edges with start[r] <= rank < stop[r]; one may be None, which
            bounds no row.
    """

    ranks: EdgeTensors
    start: Int[Tensor, " row"] | None
    stop: Int[Tensor, " row"] | None

    def __len__(self) -> int:
        bound = self.start if self.stop is None else self.stop
        return 0 if bound is None else len(bound)

    def kept(self, kind: str, layer: int | None = None) -> Bool[Tensor, "row *edges"]:
        """Which edges of a kind each row keeps, in one layer or in all."""
        ranks = _numbers(self.ranks, kind, layer)
        if kind in self.keep:
            return _everything(len(self), ranks)
        kept = None if self.stop is None else ranks < _per_row(self.stop, ranks)
        if self.start is not None:
            from_start = ranks >= _per_row(self.start, ranks)
            kept = from_start if kept is None else kept & from_start
        assert kept is not None
        return kept

    def rows(self, which: slice | Int[Tensor, " some"]) -> MaskedRows:
        """Some of the rows."""
        start, stop = (None if x is None else x[which] for x in (self.start, self.stop))
        return replace(self, start=start, stop=stop)

    def on(self, device: torch.device) -> MaskedRows:
        """The same rows with what hooks compare on a device."""
        start, stop = (None if x is None else x.to(device) for x in (self.start, self.stop))
        return replace(self, ranks=self.ranks.map(lambda x: x.to(device)), start=start, stop=stop)


@dataclass(frozen=True, eq=False)
class SubsetRows(_RowsOfPrompt):
    """Rows of a masked run that each keep a subset of the edges, or all edges but the subset.

    Attributes:
        subsets: one int32 an edge; bit i says whether subset i holds the edge.
        bit: of each row's subset, 2**i.
        wanted: what an edge's number has at that bit if the row keeps the edge: 2**i for the
            subset, 0 for all edges but the subset.
    """

    subsets: EdgeTensors
    bit: Int[Tensor, " row"]
    wanted: Int[Tensor, " row"]

    def __len__(self) -> int:
        return len(self.bit)

    def kept(self, kind: str, layer: int | None = None) -> Bool[Tensor, "row *edges"]:
        """Which edges of a kind each row keeps, in one layer or in all."""
        subsets = _numbers(self.subsets, kind, layer)
        if kind in self.keep:
            return _everything(len(self), subsets)
        return (subsets & _per_row(self.bit, subsets)) == _per_row(self.wanted, subsets)

    def rows(self, which: slice | Int[Tensor, " some"]) -> SubsetRows:
        """Some of the rows."""
        return replace(self, bit=self.bit[which], wanted=self.wanted[which])

    def on(self, device: torch.device) -> SubsetRows:
        """The same rows with what hooks compare on a device."""
        subsets = self.subsets.map(lambda bits: bits.to(device))
        return replace(
            self, subsets=subsets, bit=self.bit.to(device), wanted=self.wanted.to(device)
        )


@dataclass(frozen=True, eq=False)
class WeightedRows(_RowsOfPrompt):
    """Rows of a masked run that keep a weight of each edge, in which it can be differentiated.

    An edge of weight w carries w times its value and 1 - w times its replacement.

    Attributes:
        attention, residual, mlp: weights, in single precision whatever the model's; those of
            attention layer by layer.
    """

    attention: tuple[Float[Tensor, "row head query key"], ...]
    residual: Float[Tensor, "row layer sublayer pos"]
    mlp: Float[Tensor, "row mlp_layer pos"]

    def __len__(self) -> int:
        return len(self.residual)

    def kept(self, kind: str, layer: int | None = None) -> Float[Tensor, "row *edges"]:
        """Weights of the edges of a kind; those of attention in one layer."""
        weights = getattr(self, kind)
        return weights if layer is None else weights[layer]


MaskRows = MaskedRows | SubsetRows
"""Rows that keep each edge whole or not at all."""

Rows = MaskRows | WeightedRows


def weighted_rows(
    tokens: Int[Tensor, " pos"],
    shape: GraphShape,
    ranks: EdgeTensors,
    counts: Int[Tensor, " row"],
    replacement: Replacement,
    device: torch.device,
    besides: Sequence[EdgeTensors] = (),
    keep: Sequence[str] = (),
) -> WeightedRows:
    """The traces of so many edges each, as weights of 0 and 1 that ask for a gradient.

    Residual edges are structure (`schedule`): their weights ask for none.

    Args:
        tokens: the prompt.
        shape: of its token graph.
        ranks: one rank an edge.
        counts: how many of the first edges each row keeps.
        replacement: what an ablated edge carries instead.
        device: where the weights live.
        besides: edges that each row keeps whatever their rank, if any.
        keep: kinds of edges whose weights are 1 in every row.
    """
    kept = ranks.map(lambda r: r < _per_row(counts, r))
    if besides:
        always = (torch.stack(of_a_kind) for of_a_kind in zip(*besides, strict=True))
        kept = EdgeTensors(*map(torch.logical_or, kept, always))
    attention, residual, mlp = (
        (torch.ones_like(edges) if kind in keep else edges).float().to(device)
        for kind, edges in kept._asdict().items()
    )
    return WeightedRows(
        tokens=tokens,
        shape=shape,
        attention=tuple(layer.contiguous().requires_grad_() for layer in attention.unbind(1)),
        residual=residual,
        mlp=mlp.requires_grad_(),
        replacement=replacement,
    )


def times(value: Tensor, keep: Keep) -> Tensor:
    """What is kept of a value, in the value's precision."""
    return (value * keep).to(value.dtype)


def complement(keep: Keep) -> Keep:
    """What is not kept."""
    return ~keep if keep.dtype == torch.bool else 1 - keep


def _numbers(edges: EdgeTensors, kind: str, layer: int | None) -> Int[Tensor, "*edges"]:
    """The numbers of the edges of a kind, in one layer or in all."""
    numbers = getattr(edges, kind)
    return numbers if layer is None else numbers[layer]


def _everything(rows: int, edges: Tensor) -> Bool[Tensor, "row *edges"]:
    return torch.ones((), dtype=torch.bool, device=edges.device).expand(rows, *edges.shape)


def _per_row(values: Int[Tensor, " row"], edges: Tensor) -> Int[Tensor, "row *ones"]:
    """One value a row, shaped so that it meets every edge, on the device of the edges."""
    return values.view(-1, *[1] * edges.ndim).to(edges.device)
