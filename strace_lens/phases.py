"""Phases of one prompt: construction and refinement by size, head and tail by layer.

Source: s-Trace (arXiv 2605.27033), section "phases". The paper draws the boundary of construction
and refinement by eye; here it is a change point of the measured curve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
import ruptures
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from strace_lens.density import DensityCurve
from strace_lens.html_repr import facts
from strace_lens.sizes import smallest_size_from_which
from strace_lens.token_graph.edges import KINDS
from strace_lens.token_graph.trace import Trace

THRESHOLD = 0.1
GRID = 150
LEAST_SIZES = 4
_MOST_BREAKS = 2
_LEAST_DROP = 0.1
_LEAST_VARIANCE = 1e-5  # a TV known to 0.3 %: what a straight piece may miss and be called straight


@dataclass(frozen=True)
class Phase:
    """A stretch of sizes over which TV falls at one pace.

    Attributes:
        name: "plateau" (before), "construction" (the steepest fall) or "refinement" (after).
        start, stop: relative sizes.
        tv_start, tv_stop: total variation at the two ends.
    """

    name: str
    start: float
    stop: float
    tv_start: float
    tv_stop: float


@dataclass(frozen=True, eq=False)
class LayerPhase:
    """The edges of a trace between two sizes, layer by layer.

    Attributes:
        name: "head subgraph" or "tail refinement".
        start, stop: relative sizes; the edges are those the larger trace adds to the smaller.
        first, last: the same as edge counts: ranks from `first` up to, not including, `last`.
        counts: edges of each kind (in the order of `KINDS`) and layer.
        reachable: the graph's edges of each layer.
    """

    name: str
    start: float
    stop: float
    first: int
    last: int
    counts: Int64[Tensor, "kind layer"]
    reachable: Int64[Tensor, " layer"]

    @property
    def edges(self) -> int:
        """Number of edges."""
        return self.last - self.first

    @property
    def kinds(self) -> dict[str, int]:
        """Number of edges of each kind."""
        return dict(zip(KINDS, self.counts.sum(1).tolist(), strict=True))

    @property
    def share_of_layer(self) -> Float[Tensor, " layer"]:
        """Which share of a layer's edges is here."""
        return self.counts.sum(0).double() / self.reachable

    @property
    def share_by_layer(self) -> Float[Tensor, " layer"]:
        """Which share of these edges lies in a layer; NaN if there are none."""
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
        along_sizes: plateau, construction and refinement, those that were found, in order.
        head: the smallest trace from which the head's error stays under a tenth of its mass; None
            where the largest size measured does not get there.
        tail: what later sizes add to it up to the size from which the tail's error stays under a
            tenth of its mass; None likewise, and without a head subgraph to start from.
        looked: False where too few sizes were measured to look for phases along them.
    """

    along_sizes: tuple[Phase, ...]
    head: LayerPhase | None
    tail: LayerPhase | None
    looked: bool = True

    def get(self, name: str) -> Phase | None:
        """The phase of a name, if it was found."""
        return next((p for p in self.along_sizes if p.name == name), None)

    def layer_table(self) -> pd.DataFrame:
        """Head subgraph and tail refinement side by side: edges, kinds, mean layer."""
        return pd.DataFrame(
            [
                {
                    "subgraph": phase.name,
                    "from": phase.start,
                    "to": phase.stop,
                    "edges": phase.edges,
                    **phase.kinds,
                    "mean_layer": phase.mean_layer,
                }
                for phase in (self.head, self.tail)
                if phase is not None
            ]
        )

    def describe(self) -> str:
        """One line on where construction ends and refinement begins."""
        construction, refinement = self.get("construction"), self.get("refinement")
        if construction is None and not self.looked:
            return "no phases looked for: that takes at least four sizes"
        if construction is None:
            return "no construction phase: TV never falls by a tenth at one pace"
        if refinement is None:
            return (
                f"construction from s = {construction.start:.2g} to {construction.stop:.2g}; "
                "no refinement phase follows"
            )
        return (
            f"construction from s = {construction.start:.2g} ends and refinement begins at "
            f"s = {construction.stop:.2g} (TV {construction.tv_stop:.2f}), to {refinement.stop:.2g}"
        )

    def __repr__(self) -> str:
        return f"Phases: {self.describe()}\n{self.layer_table().to_string(index=False)}"

    def _repr_html_(self) -> str:
        return facts(f"Phases: {self.describe()}", self.layer_table())


def find_phases(curve: DensityCurve, threshold: float = THRESHOLD) -> Phases:
    """Phases of a density curve.

    Args:
        curve: at least four sizes, or no phase along the sizes is looked for.
        threshold: share of the head's (tail's) mass its error must stay under.

    Raises:
        ValueError: a threshold outside (0, 1).
    """
    table = curve.table
    sizes = table["size"].to_numpy()
    head_size, tail_size = restored_from(table, curve.head_mass, threshold)
    head = tail = None
    if not math.isnan(head_size):
        head = _layer_phase(curve.trace, "head subgraph", 0.0, head_size)
        if not math.isnan(tail_size):
            end = max(head_size, tail_size)
            tail = _layer_phase(curve.trace, "tail refinement", head_size, end)
    return Phases(
        along_sizes=change_points(sizes, table["tv"].to_numpy()),
        head=head,
        tail=tail,
        looked=len(sizes) >= LEAST_SIZES,
    )


def restored_from(
    table: pd.DataFrame, head_mass: float, threshold: float = THRESHOLD
) -> tuple[float, float]:
    """Sizes from which on the head's and the tail's error stay under a share of their mass.

    NaN where the largest size does not get there. The table has `size`, `head_error` and
    `tail_error`, as `DensityCurve.table`.

    Raises:
        ValueError: a threshold outside (0, 1).
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie in (0, 1); got {threshold}")
    sizes = table["size"].to_numpy()
    head, tail = (
        smallest_size_from_which(sizes, (table[f"{part}_error"] < threshold * mass).to_numpy())
        for part, mass in (("head", head_mass), ("tail", 1 - head_mass))
    )
    return head, tail


def change_points(
    sizes: Float[np.ndarray, " size"], tv: Float[np.ndarray, " size"]
) -> tuple[Phase, ...]:
    """Split a curve into plateau, construction and refinement.

    TV over log10 s is approximated by one to three straight pieces (`ruptures`, optimal partition
    with continuous linear pieces, on a grid of 150 points); the Bayesian information criterion over
    the measured sizes picks how many. Construction is the steepest piece, if TV falls by a tenth
    over it; what comes before is plateau, what comes after refinement.
    """
    if len(sizes) < LEAST_SIZES:
        return ()
    grid, values = on_phase_grid(sizes, tv)
    search = ruptures.Dynp(model="clinear", min_size=3, jump=1).fit(values[:, None])
    fits = [search.predict(n_bkps=n) for n in range(1, _MOST_BREAKS + 1)]
    return phases_of_fits(grid, values, fits, len(sizes))


def on_phase_grid(
    sizes: Float[np.ndarray, " size"], tv: Float[np.ndarray, " size"]
) -> tuple[Float[np.ndarray, " point"], Float[np.ndarray, " point"]]:
    """The 150 values of log10 s at which phases are looked for, and the curve there."""
    grid = np.linspace(np.log10(sizes[0]), np.log10(sizes[-1]), GRID)
    return grid, np.interp(grid, np.log10(sizes), tv)


def phases_of_fits(
    grid: Float[np.ndarray, " point"],
    values: Float[np.ndarray, " point"],
    fits: list[list[int]],
    samples: int,
) -> tuple[Phase, ...]:
    """The phases that the best of several fits makes, as `change_points` does.

    Args:
        grid: log10 of the sizes, as `on_phase_grid`.
        values: the curve there.
        fits: where the pieces of each fit end, the last at `GRID`; a single piece is tried too.
        samples: how many sizes were measured.
    """
    every = [[0, GRID], *([0, *fit] for fit in fits)]
    knots = min(every, key=lambda k: _information(values, k, samples))
    knots[-1] = GRID - 1
    drops = [values[a] - values[b] for a, b in pairwise(knots)]
    pace = [drop / (b - a) for drop, (a, b) in zip(drops, pairwise(knots), strict=True)]
    steepest = int(np.argmax(pace))
    if drops[steepest] < _LEAST_DROP:
        return ()
    bounds = {
        "plateau": (knots[0], knots[steepest]),
        "construction": (knots[steepest], knots[steepest + 1]),
        "refinement": (knots[steepest + 1], knots[-1]),
    }
    return tuple(
        Phase(name, 10 ** grid[a], 10 ** grid[b], float(values[a]), float(values[b]))
        for name, (a, b) in bounds.items()
        if a < b
    )


def _information(values: Float[np.ndarray, " point"], knots: list[int], samples: int) -> float:
    """Bayesian information criterion of the polyline through a curve's own points at the knots."""
    at = [min(k, len(values) - 1) for k in knots]
    line = np.interp(np.arange(len(values)), at, values[at])
    variance = max(float(np.mean((values - line) ** 2)), _LEAST_VARIANCE)
    parameters = 2 * len(knots) - 2
    return samples * math.log(variance) + parameters * math.log(samples)


def _layer_phase(trace: Trace, name: str, start: float, stop: float) -> LayerPhase:
    first = trace.edge_count(start) if start else 0
    last = trace.edge_count(stop)
    below, above, everything = trace.counts_by_size([first, last, trace.edges])
    return LayerPhase(
        name=name,
        start=start,
        stop=stop,
        first=first,
        last=last,
        counts=above - below,
        reachable=everything.sum(0),
    )
