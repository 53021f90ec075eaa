"""What a discovery method says of every edge: its estimated worth to the metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from strace_lens.component_graph.circuit import Circuit
from strace_lens.component_graph.edge_table import edge_table
from strace_lens.component_graph.graph import ComponentGraph
from strace_lens.utils.html_repr import facts


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
        made: options, ablation, seed.

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
    made: Mapping[str, Any] = field(default_factory=dict)

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
        values = self.values.abs() if absolute and self.signed else self.values
        exists = self.graph.exists.to(values.device)
        if values.ndim == 3:
            exists = exists[..., None].expand(values.shape)
        cells = exists.flatten().nonzero()[:, 0]
        return cells[values.flatten()[cells].argsort(descending=True, stable=True)]

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
        count = edge_count(size, self.edges)
        keep = torch.zeros(self.values.numel(), dtype=torch.bool, device=self.values.device)
        keep[self.order(absolute=absolute)[:count]] = True
        made = {"method": self.method, "task": self.task, "absolute": absolute, **self.made}
        return Circuit(self.graph, keep.view(self.values.shape), made)

    def __repr__(self) -> str:
        of = f" on {self.task}" if self.task else ""
        return f"Scores({self.method}{of}, {self.graph.model}: {self.edges:,} edges)"

    def _repr_html_(self) -> str:
        return facts(repr(self), self.to_pandas())

    def to_pandas(self) -> pd.DataFrame:
        """Every edge, one row each, in the order in which `top` takes them.

        Columns: `source`, `destination`, `input` (q, k or v of a head; missing where a node has
        but one input), `source_layer` (-1 for the embedding), `destination_layer` (the number of
        layers for the logits), `position` if there are token positions, and `score`.
        `scores_from_pandas` reads the frame back.
        """
        values, order = self.values.detach().cpu(), self.order().cpu()
        cells = torch.stack(torch.unravel_index(order, values.shape), dim=1)
        wide = values if values.dtype == torch.float64 else values.float()
        return edge_table(self.graph, cells).assign(score=wide.flatten()[order].numpy())


def edge_count(size: int | float, edges: int) -> int:
    """Number of edges that a size means: an int is a number, a float a fraction of all.

    Raises:
        ValueError: a number below 0 or above all edges, a fraction outside (0, 1].
    """
    if isinstance(size, float):
        if not 0 < size <= 1:
            raise ValueError(f"a fraction of edges must lie in (0, 1]; got {size}")
        return max(1, round(size * edges))
    if not 0 <= size <= edges:
        raise ValueError(f"a number of edges must lie in 0..{edges}; got {size}")
    return size
