"""The component graph of a model: what writes to the residual stream, and what reads it.

Sources write: the embedding, every head, every MLP. Destinations read: the query input of a head,
the key and value inputs of a key-value head, the input of an MLP, and the final residual. An edge
is a pair (destination, source) whose source comes earlier. There is no object per edge: masks and
scores are dense `[destination, source]` tensors, and names are made on request.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import re
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

EMBED, LOGITS = "embed", "logits"

EdgeValues = Float[Tensor, "destination source *pos"]
"""A number for each edge, zero where there is none, at each token position or for all alike."""


@dataclass(frozen=True)
class ComponentGraph:
    """Shape of a component graph, from which its edges are computed.

    Sources are numbered `embed`, then for each layer its heads and its MLP. Destinations are
    numbered by layer: q of every head, k and v of every key-value head, the MLP; last the logits.

    Attributes:
        model: name of the model; circuits of another model are refused.
        layers: number of blocks.
        heads: number of query heads per block.
        kv_heads: number of key-value heads per block.
        mlp: False for an attention-only model.
        parallel: attention and MLP read the same stream, so an MLP does not read its layer's heads.
    """

    model: str
    layers: int
    heads: int
    kv_heads: int
    mlp: bool = True
    parallel: bool = False

    @property
    def sources_per_layer(self) -> int:
        """Number of sources of one block: its heads and its MLP."""
        return self.heads + self.mlp

    @property
    def destinations_per_layer(self) -> int:
        """Number of query, key, value and MLP inputs of one block."""
        return self.heads + 2 * self.kv_heads + self.mlp

    @property
    def sources(self) -> int:
        """Number of sources."""
        return 1 + self.layers * self.sources_per_layer

    @property
    def destinations(self) -> int:
        """Number of destinations."""
        return 1 + self.layers * self.destinations_per_layer

    @functools.cached_property
    def edges(self) -> int:
        """Number of edges."""
        return int(self.exists.sum())

    @functools.cached_property
    def exists(self) -> Bool[Tensor, "destination source"]:
        """Which pairs are edges: those whose source writes before the destination reads."""
        written = torch.tensor([self.written_before(d) for d in range(self.destinations)])
        return torch.arange(self.sources) < written[:, None]

    def exists_like(self, values: Shaped[Tensor, "destination source *pos"]) -> Bool[Tensor, "..."]:
        """Which cells of a tensor of edge values are edges: `exists` in its shape and device."""
        exists = self.exists.to(values.device)
        return exists if values.ndim == 2 else exists[..., None].expand(values.shape)

    def written_before(self, destination: int) -> int:
        """How many sources a destination can read; they are the first ones."""
        layer, place = divmod(destination, self.destinations_per_layer)
        is_mlp = self.mlp and place == self.destinations_per_layer - 1
        heads_too = is_mlp and not self.parallel and layer < self.layers
        return 1 + layer * self.sources_per_layer + self.heads * heads_too

    def heads_of(self, layer: int) -> slice:
        """Numbers of a block's heads as sources; its MLP, if it has one, comes right after them."""
        first = 1 + layer * self.sources_per_layer
        return slice(first, first + self.heads)

    def by_head(self, values: Shaped[Tensor, " source"]) -> Shaped[Tensor, "layer head"]:
        """The entries of values over the sources that belong to heads, by layer and head."""
        return values[1:].view(self.layers, self.sources_per_layer)[:, : self.heads]

    def inputs_of(self, layer: int) -> dict[str, slice]:
        """Numbers of a block's destinations by kind: "q", "k", "v" and "mlp" (may be empty)."""
        sizes = {"q": self.heads, "k": self.kv_heads, "v": self.kv_heads, "mlp": int(self.mlp)}
        first = layer * self.destinations_per_layer
        ends = itertools.pairwise(itertools.accumulate(sizes.values(), initial=first))
        return {kind: slice(*end) for kind, end in zip(sizes, ends, strict=True)}

    @functools.cached_property
    def feeds(self) -> Bool[Tensor, "destination source"]:
        """Which sources are computed from what a destination reads (none for the logits)."""
        feeds = torch.zeros(self.destinations, self.sources, dtype=torch.bool)
        heads = torch.arange(self.heads)
        for layer in range(self.layers):
            sources, inputs = self.heads_of(layer), self.inputs_of(layer)
            feeds[inputs["q"].start + heads, sources.start + heads] = True
            for kind in "kv":
                own = heads // (self.heads // self.kv_heads)
                feeds[inputs[kind].start + own, sources.start + heads] = True
            feeds[inputs["mlp"], sources.stop : sources.stop + self.mlp] = True
        return feeds

    @functools.cached_property
    def source_names(self) -> tuple[str, ...]:
        """Names of the sources: `embed`, `a{layer}.h{head}`, `m{layer}`."""
        names = [EMBED]
        for layer in range(self.layers):
            names += [f"a{layer}.h{head}" for head in range(self.heads)]
            names += [f"m{layer}"] * self.mlp
        return tuple(names)

    @functools.cached_property
    def destination_names(self) -> tuple[str, ...]:
        """Names of the destinations: `a{layer}.h{head}<q>`, `m{layer}`, `logits`.

        The k and v inputs of grouped queries belong to a key-value head: `a{layer}.kv{head}<k>`.
        """
        kv = "h" if self.heads == self.kv_heads else "kv"
        names = []
        for layer in range(self.layers):
            names += [f"a{layer}.h{head}<q>" for head in range(self.heads)]
            names += [f"a{layer}.{kv}{head}<{k}>" for k in "kv" for head in range(self.kv_heads)]
            names += [f"m{layer}"] * self.mlp
        return (*names, LOGITS)

    @functools.cached_property
    def _numbers(self) -> tuple[dict[str, int], dict[str, int]]:
        return (
            {name: i for i, name in enumerate(self.destination_names)},
            {name: i for i, name in enumerate(self.source_names)},
        )

    def source_index(self, name: str) -> int:
        """Number of a source.

        Raises:
            ValueError: there is no source of that name.
        """
        return _look_up(self._numbers[1], name, f"source of {self.model}")

    def destination_index(self, name: str) -> int:
        """Number of a destination; the input of a head may be written `a2.h0<q>` or `a2.h0.q`.

        Raises:
            ValueError: there is no destination of that name.
        """
        name = re.sub(r"\.([qkv])$", r"<\1>", name)
        shared = re.fullmatch(r"(a\d+)\.h(\d+)<([kv])>", name)
        if shared and self.heads != self.kv_heads and int(shared[2]) < self.heads:
            own = int(shared[2]) // (self.heads // self.kv_heads)
            raise ValueError(
                f"{self.model} groups its queries, so {name!r} is no input of one head: "
                f"head {shared[2]} reads {shared[1]}.kv{own}<{shared[3]}>"
            )
        return _look_up(self._numbers[0], name, f"destination of {self.model}")

    def edge_name(self, destination: int, source: int) -> str:
        """Name of an edge: `a0.h1->a2.h0<q>`."""
        return f"{self.source_names[source]}->{self.destination_names[destination]}"

    def parse_edge(self, name: str) -> tuple[int, int]:
        """Numbers (destination, source) of the edge of a name.

        Raises:
            ValueError: the name is not that of an edge of this graph.
        """
        source, arrow, destination = name.partition("->")
        if not arrow:
            raise ValueError(f"{name!r} is no edge; write it as 'a0.h1->m2'")
        pair = self.destination_index(destination), self.source_index(source)
        if not self.exists[pair]:
            raise ValueError(f"{name!r} is no edge of {self.model}: its source comes too late")
        return pair

    @functools.cached_property
    def source_layers(self) -> Int[Tensor, " source"]:
        """Layer of every source, -1 for the embedding."""
        return (torch.arange(self.sources) - 1).div(self.sources_per_layer, rounding_mode="floor")

    @functools.cached_property
    def destination_layers(self) -> Int[Tensor, " destination"]:
        """Layer of every destination; the logits have the number of layers."""
        return torch.arange(self.destinations) // self.destinations_per_layer

    def check_same(self, other: ComponentGraph) -> None:
        """Refuse what belongs to another graph.

        Raises:
            ValueError: the graphs differ; the message names both.
        """
        if self != other:
            raise ValueError(
                f"this belongs to {other.model} ({other.layers} layers, {other.heads} heads), "
                f"not to {self.model} ({self.layers} layers, {self.heads} heads)"
            )


def node_of(destination: str) -> str:
    """The node that a destination is an input of: `a0.h1<q>` to `a0.h1`."""
    return re.sub(r"<.>$", "", destination)


def _look_up(numbers: dict[str, int], name: str, what: str) -> int:
    if name not in numbers:
        (nearest,) = difflib.get_close_matches(name, numbers, 1, cutoff=0)
        raise ValueError(f"there is no {what} named {name!r}; the nearest is {nearest!r}")
    return numbers[name]
