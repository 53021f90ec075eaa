"""Scores: how much each edge of a component graph matters, and circuits of the best edges."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from strace_lens.circuits.circuit import Circuit, edge_table
from strace_lens.circuits.graph import ComponentGraph
from strace_lens.measures.heads import head_table
from strace_lens.measures.sizes import edge_count
from strace_lens.utils.html_repr import facts


@dataclass(frozen=True, eq=False)
class Scores:
    """One score per edge, about metric(full model) - metric(this edge ablated): positive helps.

    Attributes:
        graph: component graph of the model that was scored.
        values: `[destination, source]`, with or without a third axis of token positions; cells that
            are not edges hold zero.
        method: name of the method, for tables and files.
        task: name of the task.
        forwards: number of forward passes over all pairs of the task that the method took; a pass
            over half of the rows counts as a half.
        backwards: the same for backward passes.
        seconds: wall time; NaN for scores read from a file, which does not hold it.
        signed: whether values estimate effects on the metric, so that an edge that hurts it has a
            negative value of large magnitude. False if only the order of values has a meaning.
        metadata: options, ablation, seed.

    Raises:
        ValueError: the values have the wrong shape, or are NaN or infinite.
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
                f"scores of {self.graph.model} have shape {wanted}, with an optional third axis of "
                f"token positions; got {tuple(self.values.shape)}"
            )
        if not bool(torch.isfinite(self.values).all()):
            raise ValueError(f"scores of {self.method!r} hold NaN or infinity; check its options")

    @property
    def edges(self) -> int:
        """Number of scored edges; an edge at two positions counts twice."""
        positions = self.values.shape[2] if self.values.ndim == 3 else 1
        return self.graph.edges * positions

    def order(self, *, absolute: bool = True) -> Int[Tensor, " edge"]:
        """Flat indices of all edges, highest score first, ties in the model's order.

        Args:
            absolute: rank effects by magnitude.
        """
        return self._by_magnitude if absolute and self.signed else self._by_value

    @functools.cached_property
    def _by_magnitude(self) -> Int[Tensor, " edge"]:
        return _descending(self.graph, self.values.abs())

    @functools.cached_property
    def _by_value(self) -> Int[Tensor, " edge"]:
        return _descending(self.graph, self.values)

    def top(self, size: int | float, *, absolute: bool = True) -> Circuit:
        """Return the circuit of the edges with the highest scores.

        Args:
            size: a number of edges (int), or a fraction s of all edges in (0, 1] (float), which
                takes floor(s * |E|) of them.
            absolute: rank effects by magnitude, so that edges which hurt the metric are kept too.
                By sign, a model whose edges balance each other loses all inhibiting edges: on
                SmolLM2's indirect object, half of all edges by sign restore 2 % of the metric, by
                magnitude a tenth restore more than half.

        Raises:
            TypeError: the size is a boolean or not a number.
            ValueError: the size is out of range; for no edges at all, use `empty_circuit`.
        """
        size = edge_count(size, self.edges)
        keep = torch.zeros(self.values.numel(), dtype=torch.bool, device=self.values.device)
        keep[self.order(absolute=absolute)[:size]] = True
        made = {"method": self.method, "task": self.task, "absolute": absolute, **self.metadata}
        return Circuit(self.graph, keep.view(self.values.shape), made)

    def __repr__(self) -> str:
        of = f" on {self.task}" if self.task else ""
        return f"Scores({self.method}{of}, {self.graph.model}: {self.edges:,} edges)"

    def _repr_html_(self) -> str:
        return facts(repr(self), self.to_pandas())

    def heads(self) -> pd.DataFrame:
        """The scores of each head, one row for each layer and head.

        Returns:
            Columns `layer`, `head`, `score` and `absolute_score`: the sum of the scores of the
            edges that leave the head, and of their magnitudes. If scores are linear in what an edge
            carries, as in EAP, the first is the effect of the head itself (that of attribution
            patching). Methods that score nodes give all edges that leave a node the same score,
            which is then counted once.

        Example:
            >>> scores.heads().nlargest(5, "score")
        """
        low, high = self.range_by_source()
        if bool((low == high).all()):
            leaving = low[None]
        else:
            values = self.values.detach()
            leaving = values.masked_fill(~self.graph.exists_like(values), 0)
        leaving = leaving.cpu().double().reshape(len(leaving), self.graph.sources, -1)
        sums = {"score": leaving.sum((0, 2)), "absolute_score": leaving.abs().sum((0, 2))}
        return head_table({name: self.graph.by_head(of) for name, of in sums.items()})

    def range_by_source(
        self,
    ) -> tuple[Float[Tensor, "source *pos"], Float[Tensor, "source *pos"]]:
        """The lowest and the highest score among the edges that leave each source.

        They are equal if the method scores nodes.
        """
        values = self.values.detach()
        exists = self.graph.exists_like(values)
        low = values.masked_fill(~exists, torch.inf).amin(0)
        return low, values.masked_fill(~exists, -torch.inf).amax(0)

    def to_pandas(self) -> pd.DataFrame:
        """All edges, one row per edge, in the order in which `top` takes them.

        Columns: those of `edge_table`, and `score`. `scores_from_pandas` makes the scores again.
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
