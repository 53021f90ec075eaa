"""Circuits and scores: which edges of a component graph are kept, and what each edge is worth."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, Int64, Shaped
from torch import Tensor

from strace_lens.circuits.graph import EMBED, ComponentGraph, node_of
from strace_lens.utils.html_repr import facts


@dataclass(frozen=True, eq=False)
class Circuit:
    """Edges kept, as booleans or as weights in [0, 1], the same at every token position or not.

    Attributes:
        graph: of the model that the circuit belongs to.
        keep: `[destination, source]`, or with a third axis of token positions.
        metadata: how it was found.

    Raises:
        ValueError: a mask of the wrong shape, with NaN, or with weights outside [0, 1].
    """

    graph: ComponentGraph
    keep: Shaped[Tensor, "destination source *pos"]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted = (self.graph.destinations, self.graph.sources)
        if tuple(self.keep.shape[:2]) != wanted or self.keep.ndim > 3:
            raise ValueError(
                f"a circuit of {self.graph.model} is a mask [destination, source] of {wanted}, "
                f"with token positions behind if they differ; got {tuple(self.keep.shape)}"
            )
        if self.keep.dtype != torch.bool:
            wrong = self.keep[~((self.keep >= 0) & (self.keep <= 1))]
            if wrong.numel():
                raise ValueError(f"weights of a circuit must lie in [0, 1]; got {float(wrong[0])}")

    @property
    def exists(self) -> Bool[Tensor, "destination source *pos"]:
        """Which cells of `keep` are edges."""
        return self.graph.exists_like(self.keep)

    @property
    def kept(self) -> Bool[Tensor, "destination source *pos"]:
        """Edges with a weight above zero."""
        return (self.keep > 0) & self.exists

    def __len__(self) -> int:
        """Number of edges with a weight above zero; an edge at two positions counts twice."""
        return int(self.kept.sum())

    def __invert__(self) -> Circuit:
        """The complement: every other edge; a weight w becomes 1 - w."""
        other = ~self.keep if self.keep.dtype == torch.bool else 1 - self.keep
        return replace(
            self, keep=other * self.exists, metadata={**self.metadata, "complement": True}
        )

    def __repr__(self) -> str:
        total = int(self.exists.sum())
        return f"Circuit({self.graph.model}, {len(self):,} of {total:,} edges)"

    def _repr_html_(self) -> str:
        return facts(repr(self), self.to_pandas())

    def edge_names(self) -> list[str]:
        """Names of the edges kept, from the output back; `@3` names a token position."""
        cells = self._kept_cells().tolist()
        return [self.graph.edge_name(d, s) + "".join(f"@{p}" for p in pos) for d, s, *pos in cells]

    def nodes(self) -> list[str]:
        """Names of the nodes that an edge leaves or enters, in the model's order."""
        kept = self._over_positions()
        enters = (kept.any(1)[:, None] & self.graph.feeds).any(0)
        used = kept.any(0) | enters
        return [n for n, u in zip(self.graph.source_names, used.tolist(), strict=True) if u]

    def connected(self) -> Circuit:
        """Without the edges that lie on no path from the embedding to the logits.

        A head is reached if any of its inputs is, as in EAP-IG's pruning of dead nodes.
        """
        feeds, kept = self.graph.feeds, self._over_positions()
        reached = torch.zeros(self.graph.sources, dtype=torch.bool)
        reached[self.graph.source_index(EMBED)] = True
        useful = torch.zeros(self.graph.destinations, dtype=torch.bool)
        useful[-1] = True
        for _ in range(2 * self.graph.layers):  # a path enters a block's heads, then its MLP
            reached |= ((kept & reached).any(1)[:, None] & feeds).any(0)
            useful |= ((kept & useful[:, None]).any(0) & feeds).any(1)
        on_path = useful[:, None] & reached
        if self.keep.ndim == 3:
            on_path = on_path[..., None]
        return replace(self, keep=self.keep * on_path)

    def jaccard(self, other: Circuit) -> float:
        """Edges of both over edges of either, in [0, 1]; 1 for two empty circuits.

        Raises:
            ValueError: circuits of two models, or only one of them with positions.
        """
        self.graph.check_same(other.graph)
        if self.keep.shape != other.keep.shape:
            raise ValueError(
                f"masks of shapes {tuple(self.keep.shape)} and {tuple(other.keep.shape)} do not "
                "compare; use two with the same token positions, or none"
            )
        either = int((self.kept | other.kept).sum())
        return int((self.kept & other.kept).sum()) / either if either else 1.0

    def to_networkx(self) -> nx.MultiDiGraph:
        """The circuit as a graph of nodes `a0.h1`, `m0`; an edge says which input it enters.

        Edge attributes: `input` (the destination's name), `weight`, and `position` if the circuit
        has token positions. Graph attributes: `model`, `component_graph`, `positions` (None if it
        has none), `dtype` and `made`, from which `circuit_from_networkx` reads it back.
        """
        graph = nx.MultiDiGraph(
            model=self.graph.model,
            component_graph=self.graph,
            positions=self.keep.shape[2] if self.keep.ndim == 3 else None,
            dtype=str(self.keep.dtype).removeprefix("torch."),
            metadata=dict(self.metadata),
        )
        names, cells = self.graph.destination_names, self._kept_cells()
        weights = self.keep.cpu()[tuple(cells.T)].double().tolist()
        for (to, source, *position), weight in zip(cells.tolist(), weights, strict=True):
            where = {"position": position[0]} if position else {}
            ends = self.graph.source_names[source], node_of(names[to])
            graph.add_edge(*ends, input=names[to], weight=weight, **where)
        return graph

    def to_pandas(self) -> pd.DataFrame:
        """The edges kept, one row each, from the output back.

        Columns: those of `edge_table`, and `weight`. `circuit_from_pandas` reads the frame back.
        """
        cells = self._kept_cells()
        weights = self.keep.cpu()[tuple(cells.T)]
        wide = weights.double() if weights.dtype == torch.float64 else weights.float()
        return edge_table(self.graph, cells).assign(weight=wide.numpy())

    def _kept_cells(self) -> Int64[Tensor, "edge axis"]:
        return self.kept.cpu().nonzero().flip(0)

    def _over_positions(self) -> Bool[Tensor, "destination source"]:
        kept = self.kept.cpu()
        return kept if kept.ndim == 2 else kept.any(-1)


def full_circuit(graph: ComponentGraph) -> Circuit:
    """Every edge."""
    return Circuit(graph, graph.exists)


def empty_circuit(graph: ComponentGraph) -> Circuit:
    """No edge."""
    return Circuit(graph, torch.zeros_like(graph.exists))


def circuit_of_edges(graph: ComponentGraph, names: Iterable[str]) -> Circuit:
    """The circuit of the named edges.

    Raises:
        ValueError: a name that is no edge of the graph.
    """
    keep = torch.zeros_like(graph.exists)
    for name in names:
        keep[graph.parse_edge(name)] = True
    return Circuit(graph, keep)


def circuit_of_nodes(graph: ComponentGraph, names: Iterable[str]) -> Circuit:
    """The circuit that ablates every node but the named ones: all out-edges of each are kept.

    Raises:
        ValueError: a name that is no node of the graph.
    """
    kept = torch.zeros(graph.sources, dtype=torch.bool)
    for name in names:
        kept[graph.source_index(name)] = True
    return Circuit(graph, graph.exists & kept)


@dataclass(frozen=True, eq=False)
class Scores:
    """One score an edge: about metric(full model) - metric(this edge ablated), so positive helps.

    Attributes:
        graph: of the model that was scored.
        values: `[destination, source]`, or with a third axis of token positions; what is no edge
            holds zero.
        method: its name, for tables and files.
        task: its name.
        forwards: passes over all pairs of the task that the method took; one over half of the rows
            counts a half.
        backwards: likewise, backward.
        seconds: wall time; NaN for scores read from a file, which does not hold it.
        signed: values estimate what an edge is worth to the metric, so an edge that hurts it has a
            negative one of large magnitude. False where only their order means something.
        metadata: options, ablation, seed.

    Raises:
        ValueError: values of the wrong shape, NaN or infinite.
    """

    graph: ComponentGraph
    values: Float[Tensor, "destination source *pos"]
    method: str
    task: str = ""
    forwards: float = 0.0
    backwards: float = 0.0
    seconds: float = 0.0
    signed: bool = True
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted = (self.graph.destinations, self.graph.sources)
        if tuple(self.values.shape[:2]) != wanted or self.values.ndim > 3:
            raise ValueError(
                f"scores of {self.graph.model} have shape {wanted}, with token positions behind if "
                f"they differ; got {tuple(self.values.shape)}"
            )
        if not bool(torch.isfinite(self.values).all()):
            raise ValueError(f"scores of {self.method!r} hold NaN or infinity; check its options")

    @property
    def edges(self) -> int:
        """Number of edges scored; an edge at two positions counts twice."""
        positions = self.values.shape[2] if self.values.ndim == 3 else 1
        return self.graph.edges * positions

    def order(self, *, absolute: bool = True) -> Int[Tensor, " edge"]:
        """Flat indices of all edges, highest score first, ties in the model's order.

        Args:
            absolute: by magnitude, where the scores are effects.
        """
        return self._by_magnitude if absolute and self.signed else self._by_value

    @functools.cached_property
    def _by_magnitude(self) -> Int[Tensor, " edge"]:
        return _descending(self.graph, self.values.abs())

    @functools.cached_property
    def _by_value(self) -> Int[Tensor, " edge"]:
        return _descending(self.graph, self.values)

    def top(self, size: int | float, *, absolute: bool = True) -> Circuit:
        """The circuit of the highest scores.

        Args:
            size: a number of edges (int), or a fraction of all edges in (0, 1] (float).
            absolute: rank effects by magnitude, so that edges which hurt the metric are kept too.
                By sign, a model whose edges balance each other loses all that hold it back: on
                SmolLM2's indirect object, half of all edges by sign restore 2 % of the metric, by
                magnitude a tenth restore more than half.

        Raises:
            ValueError: a size out of range.
        """
        if isinstance(size, float):
            if not 0 < size <= 1:
                raise ValueError(f"a fraction of edges must lie in (0, 1]; got {size}")
            size = max(1, round(size * self.edges))
        if not 0 <= size <= self.edges:
            raise ValueError(f"a number of edges must lie in 0..{self.edges}; got {size}")
        keep = torch.zeros(self.values.numel(), dtype=torch.bool, device=self.values.device)
        keep[self.order(absolute=absolute)[:size]] = True
        made = {"method": self.method, "task": self.task, "absolute": absolute, **self.metadata}
        return Circuit(self.graph, keep.view(self.values.shape), made)

    def __repr__(self) -> str:
        of = f" on {self.task}" if self.task else ""
        return f"Scores({self.method}{of}, {self.graph.model}: {self.edges:,} edges)"

    def _repr_html_(self) -> str:
        return facts(repr(self), self.to_pandas())

    def to_pandas(self) -> pd.DataFrame:
        """Every edge, one row each, in the order in which `top` takes them.

        Columns: those of `edge_table`, and `score`. `scores_from_pandas` reads the frame back.
        """
        values, order = self.values.detach().cpu(), self.order().cpu()
        cells = torch.stack(torch.unravel_index(order, values.shape), dim=1)
        wide = values if values.dtype == torch.float64 else values.float()
        return edge_table(self.graph, cells).assign(score=wide.flatten()[order].numpy())


def _descending(
    graph: ComponentGraph, values: Float[Tensor, "destination source *pos"]
) -> Int[Tensor, " edge"]:
    cells = graph.exists_like(values).flatten().nonzero()[:, 0]
    return cells[values.flatten()[cells].argsort(descending=True, stable=True)]


def edge_table(graph: ComponentGraph, cells: Int64[Tensor, "edge axis"]) -> pd.DataFrame:
    """One row for each cell (destination, source) or (destination, source, position), in order.

    Returns:
        Columns `source`, `destination` and `input` (q, k or v of a head; missing where a node has
        but one input), `source_layer` (-1 for the embedding), `destination_layer` (the number of
        layers for the logits), and `position` if there are positions.
    """
    to, source = cells[:, 0].numpy(), cells[:, 1].numpy()
    destinations = graph.destination_names
    inputs = [name[-2] if name.endswith(">") else None for name in destinations]
    columns = {
        "source": np.array(graph.source_names, dtype=object)[source],
        "destination": np.array([node_of(name) for name in destinations], dtype=object)[to],
        "input": np.array(inputs, dtype=object)[to],
        "source_layer": graph.source_layers.numpy()[source],
        "destination_layer": graph.destination_layers.numpy()[to],
    }
    if cells.shape[1] == 3:
        columns["position"] = cells[:, 2].numpy()
    return pd.DataFrame(columns)
