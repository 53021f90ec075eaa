"""The edges of the token graph: which there are, how arrays over them are laid out, as a table.

The graph is never stored as objects or adjacency lists. An array over its edges is three tensors,
`EdgeTensors`; everything else (which edges reach the output, what layer an edge belongs to) follows
from `GraphShape`. Source: s-Trace (arXiv 2605.27033), section "token graph".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int, Int64, Shaped
from torch import Tensor

from strace_lens.utils.choices import KINDS

UNREACHABLE = 2**31 - 1
"""Rank of an edge that cannot reach the output: larger than every size, so no trace holds it."""


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
        shapes = self.tensor_shapes
        parts = flat.split([math.prod(shape) for shape in shapes])
        return EdgeTensors(*(x.view(shape) for x, shape in zip(parts, shapes, strict=True)))

    def full(self, value: bool | int | float, dtype: torch.dtype) -> EdgeTensors:
        """Edge tensors holding one value everywhere."""
        return EdgeTensors(*(torch.full(s, value, dtype=dtype) for s in self.tensor_shapes))

    def reachable(self) -> EdgeTensors:
        """True for the edges that can reach the output: causal, and in the last layer token T-1."""
        there = self.full(True, torch.bool)
        there.attention.tril_()
        there.attention[-1, :, :-1] = False
        there.residual[-1, :, :-1] = False
        there.mlp[-1:, :-1] = False
        return there

    def layer_of(self) -> EdgeTensors:
        """The layer (0 .. L-1) whose block each edge belongs to, as int32."""
        layers = self.full(0, torch.int32)
        for layer in range(self.layers):
            for of_layer in layers.map(lambda x, layer=layer: x[layer : layer + 1]):
                of_layer.fill_(layer)
        return layers

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
    copies = values.map(lambda v: v.to("cpu", torch.float32, copy=True))
    zero_out_of_reach_(copies, shape)
    return copies


def zero_out_of_reach_(values: EdgeTensors, shape: GraphShape) -> None:
    """Set the values of the edges that cannot reach the output to zero, in place."""
    for value, there in zip(values, shape.reachable(), strict=True):
        value.masked_fill_(~there, 0.0)


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
    sublayers = shape.sublayers
    layer, head, query, key = chosen.attention.nonzero().unbind(1)
    attention = (1, layer, head, sublayers * layer, key, query)
    layer, sublayer, pos = chosen.residual.nonzero().unbind(1)
    residual = (0, layer, torch.full_like(layer, -1), sublayers * layer + sublayer, pos, pos)
    layer, pos = chosen.mlp.nonzero().unbind(1)
    mlp = (2, layer, torch.full_like(layer, -1), sublayers * (layer + 1) - 1, pos, pos)
    lists = [
        EdgeList(torch.full_like(layer, kind), layer, head, level, source, level + 1, target)
        for kind, layer, head, level, source, target in (attention, residual, mlp)
    ]
    return EdgeList(*(torch.cat(column) for column in zip(*lists, strict=True)))


ENDS = ["kind", "layer", "head", "source", "source_position", "target", "target_position"]
"""The columns that tell an edge from all others."""


def edge_table(shape: GraphShape, strings: Sequence[str], chosen: EdgeTensors) -> pd.DataFrame:
    """The chosen edges (booleans), one row each, in the order of their flat ids.

    Args:
        shape: of the token graph.
        strings: its tokens as text.
        chosen: which edges.

    Returns:
        The columns `ENDS`, and `source_token` and `target_token` behind their positions.
    """
    edges = edge_list(shape, chosen)
    names = np.array([hook_name(shape, level) for level in range(shape.levels)], dtype=object)
    tokens = np.array(strings, dtype=object)
    head = edges.head.numpy()
    return pd.DataFrame(
        {
            "kind": np.array(KINDS, dtype=object)[edges.kind.numpy()],
            "layer": edges.layer.numpy(),
            "head": pd.arrays.IntegerArray(head, head < 0),
            "source": names[edges.source_level.numpy()],
            "source_position": edges.source_token.numpy(),
            "source_token": tokens[edges.source_token.numpy()],
            "target": names[edges.target_level.numpy()],
            "target_position": edges.target_token.numpy(),
            "target_token": tokens[edges.target_token.numpy()],
        }
    )


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
