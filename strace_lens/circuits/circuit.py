"""Circuits: which edges of a component graph are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor

from strace_lens.circuits.graph import EMBED, ComponentGraph, node_of
from strace_lens.circuits.task import Task
from strace_lens.measures.heads import head_table
from strace_lens.model.architecture import Model
from strace_lens.model.forward import Hook
from strace_lens.model.weights import joint_metadata
from strace_lens.utils.html_repr import facts


@dataclass(frozen=True, eq=False)
class Circuit:
    """The edges that a circuit keeps, as booleans or weights in [0, 1], by token position or not.

    Circuits of one model combine like sets: `a | b`, `a & b`, `a - b`, and `~a` for all other
    edges. Of two weights, `|` takes the larger and `&` the smaller, and `a - b` is `a & ~b`.
    `len(a)` counts the edges, and `"a0.h1->m2" in a` tests for an edge by its name as in
    `edge_names` (with token positions `"a0.h1->m2@3"`); a name that no edge of the graph has is
    refused.

    Attributes:
        graph: component graph of the model that the circuit belongs to.
        keep: `[destination, source]`, with or without a third axis of token positions.
        metadata: how the circuit was found.

    Raises:
        ValueError: the mask has the wrong shape, NaN, or weights outside [0, 1].

    Example:
        >>> both = eap.top(0.02) & eap_ig.top(0.02)
        >>> len(both), "m0->logits" in both
    """

    graph: ComponentGraph
    keep: Shaped[Tensor, "destination source *pos"]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted = (self.graph.destinations, self.graph.sources)
        if tuple(self.keep.shape[:2]) != wanted or self.keep.ndim > 3:
            raise ValueError(
                f"a circuit of {self.graph.model} is a mask [destination, source] of {wanted}, "
                f"with an optional third axis of token positions; got {tuple(self.keep.shape)}"
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

    def __contains__(self, name: object) -> bool:
        return bool(self.kept[self._cell(name)])

    def __or__(self, other: Circuit) -> Circuit:
        return self._combined(other, torch.maximum)

    def __and__(self, other: Circuit) -> Circuit:
        return self._combined(other, torch.minimum)

    def __sub__(self, other: Circuit) -> Circuit:
        return self._combined(other, lambda ours, theirs: torch.minimum(ours, _opposite(theirs)))

    def __invert__(self) -> Circuit:
        """The complement: every other edge; a weight w becomes 1 - w."""
        complement = not self.metadata.get("complement", False)
        return replace(
            self,
            keep=_opposite(self.keep) * self.exists,
            metadata={**self.metadata, "complement": complement},
        )

    def __repr__(self) -> str:
        total = int(self.exists.sum())
        return f"Circuit({self.graph.model}, {len(self):,} of {total:,} edges)"

    def _repr_html_(self) -> str:
        return facts(repr(self), self.to_pandas())

    def edge_names(self) -> list[str]:
        """Names of the kept edges, from the output back; `@3` is a token position."""
        cells = self._kept_cells().tolist()
        return [self.graph.edge_name(d, s) + "".join(f"@{p}" for p in pos) for d, s, *pos in cells]

    def nodes(self) -> list[str]:
        """Names of the nodes that an edge leaves or enters, in the model's order."""
        kept = self._over_positions()
        enters = (kept.any(1)[:, None] & self.graph.feeds).any(0)
        used = kept.any(0) | enters
        return [n for n, u in zip(self.graph.source_names, used.tolist(), strict=True) if u]

    def connected(self) -> Circuit:
        """The circuit without the edges that lie on no path from the embedding to the logits.

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
        """Number of edges in both circuits over that in either, in [0, 1]; 1 if both are empty.

        Raises:
            ValueError: the circuits are of two models, or only one has token positions.
        """
        self._expect_alike(other)
        either = int((self.kept | other.kept).sum())
        return int((self.kept & other.kept).sum()) / either if either else 1.0

    def heads(self) -> pd.DataFrame:
        """Number of kept edges at each head, one row for each layer and head.

        Returns:
            Columns `layer`, `head`, `edges`, `edges_in` and `edges_out` (their sum is `edges`): the
            kept edges that enter an input of the head, and that leave it; one at two token
            positions counts twice. If queries are grouped, an edge into a key or value counts
            for each head that reads it.

        Example:
            >>> scores.top(0.02).heads().nlargest(5, "edges_out")
        """
        kept = self.kept.cpu()
        kept = kept.sum(-1) if kept.ndim == 3 else kept.long()
        entering, leaving = kept.sum(1) @ self.graph.feeds.long(), kept.sum(0)
        columns = {"edges": entering + leaving, "edges_in": entering, "edges_out": leaving}
        return head_table({name: self.graph.by_head(of) for name, of in columns.items()})

    def hooks(
        self,
        model: Model,
        task: Task | None = None,
        *,
        ablation: str | None = None,
        allow_other_model: bool = False,
    ) -> list[Hook]:
        """Return hooks that ablate every edge outside the circuit, for use in your own runs.

        They patch what `run_circuits` patches. The list can be used any number of times, one run at
        a time, and gradients pass through it if they are enabled; runs under `torch.no_grad` are
        faster.

        Args:
            model: the model that the circuit was found on. A HookedTransformer with MLPs must run
                `hook_mlp_in`: call its `set_use_hook_mlp_in(True)`.
            task: pairs of prompts of one length, from which ablated edges take their values;
                without a task, only "zero" is possible.
            ablation: what an edge outside the circuit carries: its value on the corrupted prompt
                ("resample", the default with a task; run `task.clean`, all pairs in order), its
                mean over all prompts of the task at that position ("mean"; run any prompts of that
                length) or also over positions ("mean-over-positions"), the constant that costs the
                model least ("optimal"; run both like "mean"), or zero ("zero", the default without
                a task; run any prompts, of the circuit's length if it has token positions).
            allow_other_model: accept a model of another name or with other weights.

        Returns:
            Pairs of hook point and function. A run of another shape than the hooks expect raises
            ValueError.

        Raises:
            ValueError: another model, an unknown ablation or one that needs a task, or token
                positions or lengths that do not fit.

        Example:
            >>> hooks = circuit.hooks(model, task)
            >>> model.run_with_hooks(task.clean, fwd_hooks=hooks)
        """
        # The runs of a task are made of circuits, so this module cannot import theirs above.
        from strace_lens.circuits.hooks import circuit_hooks

        return circuit_hooks(
            model, self, task, ablation=ablation, allow_other_model=allow_other_model
        )

    def to_networkx(self) -> nx.MultiDiGraph:
        """The circuit as a networkx MultiDiGraph with nodes such as `a0.h1` and `m0`.

        Edge attributes: `input` (the destination's name), `weight`, and `position` if the circuit
        has token positions. Graph attributes: `model`, `component_graph`, `positions` (None if it
        has none), `dtype` and `made`, from which `circuit_from_networkx` makes the circuit again.
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
        """The kept edges, one row per edge, from the output back.

        Columns: those of `edge_table`, and `weight`. `circuit_from_pandas` makes the circuit again.
        """
        cells = self._kept_cells()
        weights = self.keep.cpu()[tuple(cells.T)]
        wide = weights.double() if weights.dtype == torch.float64 else weights.float()
        return edge_table(self.graph, cells).assign(weight=wide.numpy())

    def _kept_cells(self) -> Int64[Tensor, "edge axis"]:
        return self.kept.cpu().nonzero().flip(0)

    def _cell(self, name: object) -> tuple[int, ...]:
        """The cell of the edge of a name, as `edge_names` gives it."""
        if not isinstance(name, str):
            raise TypeError(f"edges go by name, as 'a0.h1->m2'; got {name!r}")
        edge, at, position = name.partition("@")
        cell = self.graph.parse_edge(edge)
        if self.keep.ndim == 2:
            if at:
                raise ValueError(f"{name!r} names a token position, and {self!r} has none")
            return cell
        positions = self.keep.shape[2]
        if not position.isdecimal() or int(position) >= positions:
            raise ValueError(
                f"{name!r} names no token position of {self!r}; end it with @0 to @{positions - 1}"
            )
        return (*cell, int(position))

    def _expect_alike(self, other: Circuit) -> None:
        """Refuse a circuit of another model, or with other token positions."""
        self.graph.check_same(other.graph)
        if self.keep.shape != other.keep.shape:
            raise ValueError(
                f"masks of shapes {tuple(self.keep.shape)} and {tuple(other.keep.shape)} do not "
                "compare; use two with the same token positions, or none"
            )

    def _combined(self, other: Circuit, function: Callable[[Tensor, Tensor], Tensor]) -> Circuit:
        """The circuit of a function of both masks.

        Raises:
            ValueError: the circuits are of two models, or do not have the same token positions.
        """
        if not isinstance(other, Circuit):
            return NotImplemented
        self._expect_alike(other)
        metadata = joint_metadata("circuits", self.metadata, other.metadata)
        ours, theirs = self.keep * self.exists, (other.keep * other.exists).to(self.keep.device)
        if ours.dtype != theirs.dtype:
            wide = torch.promote_types(ours.dtype, theirs.dtype)
            ours, theirs = ours.to(wide), theirs.to(wide)
        return replace(self, keep=function(ours, theirs), metadata=metadata)

    def _over_positions(self) -> Bool[Tensor, "destination source"]:
        kept = self.kept.cpu()
        return kept if kept.ndim == 2 else kept.any(-1)


def _opposite(keep: Tensor) -> Tensor:
    return ~keep if keep.dtype == torch.bool else 1 - keep


def full_circuit(graph: ComponentGraph) -> Circuit:
    """Every edge."""
    return Circuit(graph, graph.exists)


def empty_circuit(graph: ComponentGraph) -> Circuit:
    """No edge."""
    return Circuit(graph, torch.zeros_like(graph.exists))


def circuit_of_edges(graph: ComponentGraph, names: Iterable[str]) -> Circuit:
    """Return the circuit of the named edges.

    Raises:
        ValueError: a name is not that of an edge of the graph.
    """
    keep = torch.zeros_like(graph.exists)
    for name in names:
        keep[graph.parse_edge(name)] = True
    return Circuit(graph, keep)


def circuit_of_nodes(graph: ComponentGraph, names: Iterable[str]) -> Circuit:
    """Return the circuit that keeps all out-edges of the named nodes and ablates all other nodes.

    Raises:
        ValueError: a name is not that of a node of the graph.
    """
    kept = torch.zeros(graph.sources, dtype=torch.bool)
    for name in names:
        kept[graph.source_index(name)] = True
    return Circuit(graph, graph.exists & kept)


def edge_table(graph: ComponentGraph, cells: Int64[Tensor, "edge axis"]) -> pd.DataFrame:
    """Return a row for each cell, (destination, source) or (destination, source, position).

    Returns:
        Columns `source`, `destination` and `input` (q, k or v of a head; missing if a node has only
        one input), `source_layer` (-1 for the embedding), `destination_layer` (the number of
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
