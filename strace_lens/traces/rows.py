"""Rows of a masked run: one prompt under many masks.

`MaskedRows` stores no mask: row r keeps the edges with `start[r] <= rank < stop[r]`, compared
inside the hook, on the device. `SubsetRows` reads the masks of up to `SUBSETS` unrelated subsets
from one number for each edge, which has a bit for each subset. `WeightedRows` holds a weight for
each edge and row, as a gradient needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
class MaskedRows:
    """Rows of a masked run that share a prompt and a ranking.

    Attributes:
        tokens: the prompt.
        shape: of its token graph.
        ranks: one rank an edge.
        start, stop: row r keeps the edges with start[r] <= rank < stop[r]; None bounds no row.
        keep: kinds of edges (of `KINDS`) that are kept whatever their rank.
        replacement: what an ablated edge carries instead.
    """

    tokens: Int[Tensor, " pos"]
    shape: GraphShape
    ranks: EdgeTensors
    start: Int[Tensor, " row"] | None
    stop: Int[Tensor, " row"] | None
    keep: tuple[str, ...] = ()
    replacement: Replacement = ZERO

    def __post_init__(self) -> None:
        _check_lengths(self)
        if self.start is None and self.stop is None:
            raise ValueError("rows need a start or a stop; got neither")

    def __len__(self) -> int:
        bound = self.start if self.stop is None else self.stop
        return 0 if bound is None else len(bound)

    def keep_attention_edges(self, layer: int) -> Bool[Tensor, "row head query key"]:
        """Which attention edges of a layer each row keeps."""
        return self.kept("attention", self.ranks.attention[layer])

    def keep_residual_edges(self) -> Bool[Tensor, "row layer sublayer pos"]:
        """Which residual edges each row keeps."""
        return self.kept("residual", self.ranks.residual)

    def keep_mlp_edges(self) -> Bool[Tensor, "row mlp_layer pos"]:
        """Which MLP edges each row keeps."""
        return self.kept("mlp", self.ranks.mlp)

    def kept(self, kind: str, ranks: Int[Tensor, "*edges"]) -> Bool[Tensor, "row *edges"]:
        """Which edges of a kind each row keeps, from their ranks."""
        if kind in self.keep:
            return _everything(len(self), ranks)
        if self.start is None:  # a trace
            return ranks < _per_row(self.stop, ranks)
        if self.stop is None:  # the inverse of a trace
            return ranks >= _per_row(self.start, ranks)
        return (ranks >= _per_row(self.start, ranks)) & (ranks < _per_row(self.stop, ranks))

    def rows(self, which: slice) -> MaskedRows:
        """Some of the rows."""
        start, stop = (None if x is None else x[which] for x in (self.start, self.stop))
        return replace(self, start=start, stop=stop)

    def on(self, device: torch.device) -> MaskedRows:
        """The same rows with what hooks compare on a device, without bounds that bound nothing."""
        start, stop = self.start, self.stop
        if start is not None and stop is not None:
            if not bool(start.any()):
                start = None
            elif bool((stop >= self.shape.edges).all()):
                stop = None
        return replace(
            self,
            ranks=self.ranks.map(lambda ranks: ranks.to(device)),
            start=None if start is None else start.to(device),
            stop=None if stop is None else stop.to(device),
        )


@dataclass(frozen=True, eq=False)
class SubsetRows:
    """Rows of a masked run that each keep a subset of the edges, or all edges but the subset.

    Attributes:
        tokens: the prompt.
        shape: of its token graph.
        subsets: one int32 an edge; bit i says whether subset i holds the edge.
        bit: of each row's subset, 2**i.
        wanted: what an edge's number has at that bit if the row keeps the edge: 2**i for the
            subset, 0 for all edges but the subset.
        keep: kinds of edges (of `KINDS`) that every row keeps.
        replacement: what an ablated edge carries instead.
    """

    tokens: Int[Tensor, " pos"]
    shape: GraphShape
    subsets: EdgeTensors
    bit: Int[Tensor, " row"]
    wanted: Int[Tensor, " row"]
    keep: tuple[str, ...] = ()
    replacement: Replacement = ZERO

    def __post_init__(self) -> None:
        _check_lengths(self)

    def __len__(self) -> int:
        return len(self.bit)

    def keep_attention_edges(self, layer: int) -> Bool[Tensor, "row head query key"]:
        """Which attention edges of a layer each row keeps."""
        return self.kept("attention", self.subsets.attention[layer])

    def keep_residual_edges(self) -> Bool[Tensor, "row layer sublayer pos"]:
        """Which residual edges each row keeps."""
        return self.kept("residual", self.subsets.residual)

    def keep_mlp_edges(self) -> Bool[Tensor, "row mlp_layer pos"]:
        """Which MLP edges each row keeps."""
        return self.kept("mlp", self.subsets.mlp)

    def kept(self, kind: str, subsets: Int[Tensor, "*edges"]) -> Bool[Tensor, "row *edges"]:
        """Which edges of a kind each row keeps, from their numbers."""
        if kind in self.keep:
            return _everything(len(self), subsets)
        return (subsets & _per_row(self.bit, subsets)) == _per_row(self.wanted, subsets)

    def rows(self, which: slice) -> SubsetRows:
        """Some of the rows."""
        return replace(self, bit=self.bit[which], wanted=self.wanted[which])

    def on(self, device: torch.device) -> SubsetRows:
        """The same rows with what hooks compare on a device."""
        return replace(
            self,
            subsets=self.subsets.map(lambda bits: bits.to(device)),
            bit=self.bit.to(device),
            wanted=self.wanted.to(device),
        )


def _everything(rows: int, edges: Tensor) -> Bool[Tensor, "row *edges"]:
    kept = torch.ones((), dtype=torch.bool, device=edges.device)
    return kept.expand(rows, *edges.shape)


def _per_row(values: Int[Tensor, " row"] | None, edges: Tensor) -> Int[Tensor, "row *ones"]:
    """One value a row, shaped so that it meets every edge, on the device of the edges."""
    assert values is not None
    return values.view(-1, *[1] * edges.ndim).to(edges.device)


@dataclass(frozen=True, eq=False)
class WeightedRows:
    """Rows of a masked run that keep a weight of each edge, in which it can be differentiated.

    An edge of weight w carries w times its value and 1 - w times its replacement.

    Attributes:
        tokens: the prompt.
        shape: of its token graph.
        attention, residual, mlp: weights, in single precision whatever the model's.
        replacement: what an ablated edge carries instead.
    """

    tokens: Int[Tensor, " pos"]
    shape: GraphShape
    attention: tuple[Float[Tensor, "row head query key"], ...]
    residual: Float[Tensor, "row layer sublayer pos"]
    mlp: Float[Tensor, "row mlp_layer pos"]
    replacement: Replacement = ZERO

    def __post_init__(self) -> None:
        _check_lengths(self)

    def __len__(self) -> int:
        return len(self.residual)

    def keep_attention_edges(self, layer: int) -> Float[Tensor, "row head query key"]:
        """Weights of the attention edges of a layer."""
        return self.attention[layer]

    def keep_residual_edges(self) -> Float[Tensor, "row layer sublayer pos"]:
        """Weights of the residual edges."""
        return self.residual

    def keep_mlp_edges(self) -> Float[Tensor, "row mlp_layer pos"]:
        """Weights of the MLP edges."""
        return self.mlp


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
    kept = ranks.map(lambda r: r < counts.to(r.device).view(-1, *[1] * r.ndim))
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


def _check_lengths(rows: Rows) -> None:
    if len(rows.tokens) != rows.shape.tokens:
        raise ValueError(f"the prompt has {len(rows.tokens)} tokens, its graph {rows.shape.tokens}")
    length = rows.replacement.length
    if length is not None and length != len(rows.tokens):
        raise ValueError(
            f"the {rows.replacement.kind} replacement has {length} tokens, the prompt "
            f"{len(rows.tokens)}; give prompts of equal length"
        )
