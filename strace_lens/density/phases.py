"""Phases of one prompt: construction and refinement by size, head and tail by layer.

Source: s-Trace (arXiv 2605.27033), section "phases".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from strace_lens.density.change_points import LEAST_SIZES, Between, Phase, change_points
from strace_lens.density.curve import DensityCurve
from strace_lens.measures.sizes import THRESHOLD, restored_from
from strace_lens.traces.subgraph import Subgraph
from strace_lens.traces.trace import Trace
from strace_lens.utils.choices import KINDS
from strace_lens.utils.html_repr import facts


@dataclass(frozen=True, eq=False)
class LayerPhase:
    """The edges of a trace between two sizes, layer by layer.

    Attributes:
        name: "head subgraph" or "tail refinement".
        trace: the trace to which the edges belong.
        start, stop: relative sizes; the edges are those that the larger trace adds to the smaller.
        stop_between: the largest measured size at which the error is still too large, 0 if there
            is none, and `stop`.
        first, last: the same as ranks, from `first` up to, but not including, `last`.
        counts: number of edges of each kind (in the order of `KINDS`) and layer.
        reachable: number of the graph's edges in each layer.
    """

    name: str
    trace: Trace
    start: float
    stop: float
    stop_between: Between
    first: int
    last: int
    counts: Int64[Tensor, "kind layer"]
    reachable: Int64[Tensor, " layer"]

    @property
    def edges(self) -> int:
        """Number of edges."""
        return self.last - self.first

    @property
    def subgraph(self) -> Subgraph:
        """The subgraph of these edges; for the tail refinement, those that it adds.

        Example:
            >>> phases.tail.subgraph.heads().nlargest(5, "edges")
        """
        return self.trace.between(self.first, self.last)

    @property
    def kinds(self) -> dict[str, int]:
        """Number of edges of each kind."""
        return dict(zip(KINDS, self.counts.sum(1).tolist(), strict=True))

    @property
    def share_of_layer(self) -> Float[Tensor, " layer"]:
        """The share of each layer's edges that belong to the phase."""
        return self.counts.sum(0).double() / self.reachable

    @property
    def share_by_layer(self) -> Float[Tensor, " layer"]:
        """The share of the phase's edges in each layer; NaN if there are none."""
        return self.counts.sum(0).double() / self.edges

    @property
    def mean_layer(self) -> float:
        """Mean layer of the edges, from 0; NaN if there are none."""
        layers = torch.arange(len(self.reachable), dtype=torch.float64)
        return float((self.share_by_layer * layers).sum())


@dataclass(frozen=True, eq=False)
class Phases:
    """Phases of one density curve.

    A single prompt gives no interval for its boundaries; that takes resampling of many prompts.

    Attributes:
        along_sizes: those of plateau, construction and refinement that were found, in order.
        head: the smallest trace from which the head's error stays under a tenth of its mass; None
            if it does not at the largest size measured.
        tail: the edges that later sizes add to it, up to the size from which the tail's error stays
            under a tenth of its mass; None if no size reaches that, or if `head` is None.
        looked: False if too few sizes were measured to look for phases along them.
    """

    along_sizes: tuple[Phase, ...]
    head: LayerPhase | None
    tail: LayerPhase | None
    looked: bool = True

    def get(self, name: str) -> Phase | None:
        """The phase of this name, or None if it was not found."""
        return next((p for p in self.along_sizes if p.name == name), None)

    def layer_table(self) -> pd.DataFrame:
        """Head subgraph and tail refinement side by side: sizes, edges, kinds, mean layer.

        Each ends at the size `to`; at the size `not_yet_at`, the one measured before it, the error
        is still too large.
        """
        return pd.DataFrame(
            [
                {
                    "subgraph": phase.name,
                    "from": phase.start,
                    "to": phase.stop,
                    "not_yet_at": phase.stop_between[0],
                    "edges": phase.edges,
                    **phase.kinds,
                    "mean_layer": phase.mean_layer,
                }
                for phase in (self.head, self.tail)
                if phase is not None
            ]
        )

    def describe(self) -> str:
        """One line that says where construction ends and refinement begins."""
        construction, refinement = self.get("construction"), self.get("refinement")
        if not self.looked:
            return "no phases looked for: that takes at least four sizes"
        if construction is None:
            return "no construction phase: TV never falls by a tenth at one pace"
        fall = (
            f"TV falls from {_tv(construction.tv_start)} to {_tv(construction.tv_stop)} between "
            f"s = {construction.start:.2g} and {construction.stop:.2g} (construction)"
        )
        rest = "no refinement phase follows"
        if refinement is not None:
            rest = f"then slowly to {_tv(refinement.tv_stop)} at {refinement.stop:.2g} (refinement)"
        return f"{fall}, {rest}{_measured(construction)}"

    def __repr__(self) -> str:
        return f"Phases: {self.describe()}\n{self.layer_table().to_string(index=False)}"

    def _repr_html_(self) -> str:
        return facts(f"Phases: {self.describe()}", self.layer_table())


def find_phases(curve: DensityCurve, threshold: float = THRESHOLD) -> Phases:
    """Find the phases of a density curve.

    Args:
        curve: the curve; phases along the sizes are found only if it has at least four sizes.
        threshold: share of the head's (tail's) mass that its error must stay under.

    Raises:
        ValueError: a threshold outside (0, 1).

    Example:
        >>> phases = sl.find_phases(curve)
        >>> phases.get("construction"), phases.head
    """
    table = curve.table
    sizes = table["size"].to_numpy()
    head_size, tail_size = restored_from(table, curve.head_mass, threshold)
    refined = int(np.count_nonzero(table["refined"].to_numpy()))
    head = tail = None
    if not math.isnan(head_size):
        head = _layer_phase(curve.trace, "head subgraph", 0.0, head_size, sizes)
        if not math.isnan(tail_size):
            end = max(head_size, tail_size)
            tail = _layer_phase(curve.trace, "tail refinement", head_size, end, sizes)
    return Phases(
        along_sizes=change_points(sizes, table["tv"].to_numpy(), refined),
        head=head,
        tail=tail,
        looked=len(sizes) >= LEAST_SIZES,
    )


def _tv(value: float) -> str:
    """A total variation with two decimals, 0 and 1 without any."""
    return f"{abs(round(value, 2)):.2f}".replace("0.00", "0").replace("1.00", "1")


def _measured(phase: Phase) -> str:
    """Between which measured sizes the ends of a phase lie."""
    parts = [
        f"{verb} between the measured sizes {between[0]:.3g} and {between[1]:.3g}"
        for verb, between in (("starts", phase.start_between), ("ends", phase.stop_between))
        if between is not None
    ]
    return f"; construction {' and '.join(parts)}" if parts else ""


def _layer_phase(
    trace: Trace, name: str, start: float, stop: float, sizes: Float[np.ndarray, " size"]
) -> LayerPhase:
    first, last = trace.edge_count(start) if start else 0, trace.edge_count(stop)
    below, above, everything = trace.counts_by_size([first, last, trace.edges])
    smaller = sizes[sizes < stop]
    return LayerPhase(
        name=name,
        trace=trace,
        start=start,
        stop=stop,
        stop_between=(float(smaller[-1]) if len(smaller) else 0.0, stop),
        first=first,
        last=last,
        counts=above - below,
        reachable=everything.sum(0),
    )
