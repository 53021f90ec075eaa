"""The arithmetic of the token graph: which edges there are, and how arrays over them are laid out.

The graph is never stored as objects or adjacency lists. An array over its edges is three tensors,
`EdgeTensors`; everything else (which edges reach the output, what layer an edge belongs to) follows
from `GraphShape`. Source: s-Trace (arXiv 2605.27033), section "token graph".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, Int64, Shaped
from torch import Tensor

UNREACHABLE = 2**31 - 1
"""Rank of an edge that cannot reach the output: larger than every size, so no trace holds it."""

KINDS = ("residual", "attention", "mlp")


def kinds_to_keep(keep: Sequence[str]) -> tuple[str, ...]:
    """Kinds of edges that are never ablated, each once and in the order of `KINDS`.

    Raises:
        ValueError: a single string, or a kind that is not in `KINDS`.
    """
    if isinstance(keep, str):
        raise ValueError(f"keep takes a sequence of kinds, as ({keep!r},); got the string {keep!r}")
    unknown = [kind for kind in keep if kind not in KINDS]
    if unknown:
        raise ValueError(f"unknown kind of edge {unknown[0]!r}; choose from {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in keep)


def keep_text(keep: Sequence[str]) -> str:
    """Kinds that are never ablated as the command line writes them: "none", "attention+mlp"."""
    return "+".join(keep) or "none"


class EdgeTensors(NamedTuple):
    """One value for each edge of a token graph: importances, ranks or booleans.

    `residual[layer, 0]` holds the edges into `hook_resid_mid` (or into the only node of a layer
    where attention and MLP run in parallel), `residual[layer, 1]` those into `hook_resid_post`.
    `mlp` has no rows on an attention-only model.
    """

    attention: Shaped[Tensor, "layer head query key"]
    residual: Shaped[Tensor, "layer sublayer pos"]
    mlp: Shaped[Tensor, "mlp_layer pos"]

    def map(self, function: Callable[[Tensor], Tensor]) -> EdgeTensors:
        """Apply a function to each of the three tensors."""
        return EdgeTensors(*(function(x) for x in self))

    def flat(self) -> Shaped[Tensor, " edge_id"]:
        """All values as one vector: attention, then residual, then MLP, each in C order."""
        return torch.cat([x.reshape(-1) for x in self])


@dataclass(frozen=True)
class GraphShape:
    """Size and kind of a token graph; all counts below are arithmetic on these five fields.

    Attributes:
        layers: number of transformer blocks L.
        heads: query heads a block H.
        tokens: prompt length T.
        parallel: attention and MLP read the same `hook_resid_pre` (Pythia, GPT-J, Phi).
        mlp: False for an attention-only model.
    """

    layers: int
    heads: int
    tokens: int
    parallel: bool = False
    mlp: bool = True

    @property
    def sublayers(self) -> int:
        """Nodes of a layer at one token: 2 where the MLP reads the attention's result, else 1."""
        return 2 if self.mlp and not self.parallel else 1

    @property
    def levels(self) -> int:
        """Nodes of one token, its embedding included."""
        return self.sublayers * self.layers + 1

    @property
    def edges(self) -> int:
        """Number of edges that can reach the output node."""
        per_token = self.sublayers + int(self.mlp)
        below = self.heads * self.tokens * (self.tokens + 1) // 2 + per_token * self.tokens
        return (self.layers - 1) * below + self.heads * self.tokens + per_token

    @property
    def places(self) -> int:
        """Entries of an array over the edges, those of unreachable edges included."""
        return sum(math.prod(shape) for shape in self.tensor_shapes)

    def split(self, flat: Shaped[Tensor, " edge_id"]) -> EdgeTensors:
        """Views of one flat vector as the three tensors; the inverse of `EdgeTensors.flat`."""
        attention, residual, mlp = self.tensor_shapes
        sizes = [int(torch.Size(s).numel()) for s in (attention, residual, mlp)]
        a, r, m = flat.split(sizes)
        return EdgeTensors(a.view(attention), r.view(residual), m.view(mlp))

    def full(self, value: bool | int | float, dtype: torch.dtype) -> EdgeTensors:
        """Edge tensors holding one value everywhere."""
        return EdgeTensors(*(torch.full(s, value, dtype=dtype) for s in self.tensor_shapes))

    def reachable(self) -> EdgeTensors:
        """True for the edges that can reach the output: causal, and in the last layer token T-1."""
        causal = torch.ones(self.tokens, self.tokens, dtype=torch.bool).tril()
        attention = causal.expand(self.layers, self.heads, -1, -1).clone()
        residual = torch.ones(self.layers, self.sublayers, self.tokens, dtype=torch.bool)
        mlp = torch.ones(self.layers * int(self.mlp), self.tokens, dtype=torch.bool)
        attention[-1, :, :-1] = False
        residual[-1, :, :-1] = False
        mlp[-1:, :-1] = False
        return EdgeTensors(attention, residual, mlp)

    def layer_of(self) -> EdgeTensors:
        """The layer (0 .. L-1) whose block each edge belongs to, as int32."""
        layer = torch.arange(self.layers, dtype=torch.int32)
        shapes = self.tensor_shapes
        rows = (layer, layer, layer[: shapes[2][0]])
        return EdgeTensors(
            *(r.view(-1, *[1] * (len(s) - 1)).expand(s) for r, s in zip(rows, shapes, strict=True))
        )

    @property
    def tensor_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the attention, residual and MLP tensors."""
        layers, heads, tokens = self.layers, self.heads, self.tokens
        return (
            (layers, heads, tokens, tokens),
            (layers, self.sublayers, tokens),
            (layers * int(self.mlp), tokens),
        )


def in_reach(values: EdgeTensors, shape: GraphShape) -> EdgeTensors:
    """Values as float32 on the CPU, zero for the edges that cannot reach the output."""
    pairs = zip(values, shape.reachable(), strict=True)
    return EdgeTensors(*(v.float().cpu().masked_fill(~there, 0.0) for v, there in pairs))


class EdgeList(NamedTuple):
    """Some edges of a token graph, one entry each, with their end points as (level, token)."""

    kind: Int[Tensor, " edge"]  # index into KINDS
    layer: Int[Tensor, " edge"]
    head: Int[Tensor, " edge"]  # -1 unless an attention edge
    source_level: Int[Tensor, " edge"]
    source_token: Int[Tensor, " edge"]
    target_level: Int[Tensor, " edge"]
    target_token: Int[Tensor, " edge"]


def edge_list(shape: GraphShape, chosen: EdgeTensors) -> EdgeList:
    """End points of the chosen edges (booleans): attention first, then residual, then MLP."""
    return EdgeList(*(torch.cat(c) for c in zip(*_lists_by_kind(shape, chosen), strict=True)))


def _lists_by_kind(shape: GraphShape, chosen: EdgeTensors) -> list[EdgeList]:
    sublayers = shape.sublayers
    layer, head, query, key = chosen.attention.nonzero().unbind(1)
    level = sublayers * layer
    attention = EdgeList(_like(layer, 1), layer, head, level, key, level + 1, query)

    layer, sublayer, pos = chosen.residual.nonzero().unbind(1)
    level = sublayers * layer + sublayer
    residual = EdgeList(_like(layer, 0), layer, _like(layer, -1), level, pos, level + 1, pos)

    layer, pos = chosen.mlp.nonzero().unbind(1)
    level = sublayers * layer + sublayers - 1
    mlp = EdgeList(_like(layer, 2), layer, _like(layer, -1), level, pos, level + 1, pos)
    return [attention, residual, mlp]


def _like(values: Tensor, fill: int) -> Tensor:
    return torch.full_like(values, fill)


def hook_name(shape: GraphShape, level: int) -> str:
    """Hook point of the nodes at one level, as TransformerLens names it."""
    if level == 0:
        return "blocks.0.hook_resid_pre"
    layer, sublayer = divmod(level - 1, shape.sublayers)
    before_mlp = shape.sublayers == 2 and sublayer == 0
    return f"blocks.{layer}.hook_resid_{'mid' if before_mlp else 'post'}"


def order_of(ranks: EdgeTensors) -> Int64[Tensor, " edge"]:
    """Flat ids of the edges that are ranked, by rising rank; ranks number them from 0."""
    flat = ranks.flat()
    ranked = (flat != UNREACHABLE).nonzero()[:, 0]
    order = torch.empty_like(ranked)
    order[flat[ranked].long()] = ranked
    return order


def ranks_of(order: Int64[Tensor, " edge"], shape: GraphShape) -> EdgeTensors:
    """Ranks of edges given by flat id, first ranked first; the inverse of `order_of`."""
    flat = shape.full(UNREACHABLE, torch.int32).flat()
    flat[order] = torch.arange(len(order), dtype=torch.int32)
    return shape.split(flat)


def is_complete(ranks: EdgeTensors, shape: GraphShape) -> bool:
    """Whether ranks number the reachable edges 0 .. E-1 once each and mark the rest unreachable."""
    reachable: Bool[Tensor, " edge_id"] = shape.reachable().flat()
    flat = ranks.flat()
    if flat.shape != reachable.shape or bool((flat[~reachable] != UNREACHABLE).any()):
        return False
    return torch.equal(flat[reachable].sort().values.long(), torch.arange(shape.edges))
