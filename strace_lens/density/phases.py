"""Phases of one prompt: construction and refinement by size, head and tail by layer.

Source: s-Trace (arXiv 2605.27033), section "phases". The paper draws the boundary of construction
and refinement by eye; here it is a change point of the measured curve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import ruptures
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from strace_lens.density.curve import DensityCurve
from strace_lens.measures.refinement import THRESHOLD, restored_from
from strace_lens.token_graph.edges import KINDS
from strace_lens.token_graph.trace import Trace
from strace_lens.utils.html_repr import facts

GRID = 150
LEAST_SIZES = 4
LEAST_POINTS = 3
"""Of a piece of the fit: the least that continuous linear pieces take in ruptures."""

_MOST_BREAKS = 2
_LEAST_DROP = 0.1
_ROUNDING = 1e-12
_LEAST_VARIANCE = 1e-5  # a TV known to 0.3 %: what a straight piece may miss and be called straight


Between = tuple[float, float]
"""The measured sizes between which a boundary lies."""


@dataclass(frozen=True)
class Phase:
    """A stretch of sizes over which TV falls at one pace.

    Attributes:
        name: "plateau" (before), "construction" (the steepest fall) or "refinement" (after).
        start, stop: relative sizes.
        tv_start, tv_stop: total variation at the two ends.
        start_between, stop_between: the measured sizes next below and next above that end, between
            which it lies; None at an end of the curve.
    """

    name: str
    start: float
    stop: float
    tv_start: float
    tv_stop: float
    start_between: Between | None = None
    stop_between: Between | None = None


@dataclass(frozen=True, eq=False)
class LayerPhase:
    """The edges of a trace between two sizes, layer by layer.

    Attributes:
        name: "head subgraph" or "tail refinement".
        start, stop: relative sizes; the edges are those the larger trace adds to the smaller.
        stop_between: the largest measured size at which the error is still too large, 0 if there
            is none, and `stop`.
        first, last: the same as edge counts: ranks from `first` up to, not including, `last`.
        counts: edges of each kind (in the order of `KINDS`) and layer.
        reachable: the graph's edges of each layer.
    """

    name: str
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
        """One line on where construction ends and refinement begins."""
        construction, refinement = self.get("construction"), self.get("refinement")
        if construction is None and not self.looked:
            return "no phases looked for: that takes at least four sizes"
        if construction is None:
            return "no construction phase: TV never falls by a tenth at one pace"
        start = _boundary(construction.start, construction.start_between)
        stop = _boundary(construction.stop, construction.stop_between)
        if refinement is None:
            return f"construction from s = {start} to {stop}; no refinement phase follows"
        return (
            f"construction from s = {start} ends and refinement begins at s = {stop}, "
            f"where TV is {construction.tv_stop:.2f}; it goes on to {refinement.stop:.2g}"
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


def change_points(
    sizes: Float[np.ndarray, " size"], tv: Float[np.ndarray, " size"], refined: int = 0
) -> tuple[Phase, ...]:
    """Split a curve into plateau, construction and refinement.

    TV over log10 s is approximated by one to three straight pieces (`ruptures`, optimal partition
    with continuous linear pieces, on a grid of 150 points); the Bayesian information criterion over
    the measured sizes picks how many. The ends of the pieces then move, by no more than the least
    length of a piece on that grid, to where lines are nearest to the curve (`sharpened`).
    Construction is the steepest piece over which TV falls by a tenth; what comes before is plateau,
    what comes after refinement.

    Args:
        sizes: relative sizes, rising.
        tv: total variation at each.
        refined: how many of the sizes a refinement added. They sharpen the curve, but the criterion
            does not count them: where a curve was looked at more closely says nothing about the
            number of its pieces.
    """
    if len(sizes) < LEAST_SIZES:
        return ()
    values = on_phase_grid(sizes, tv)[1]
    search = ruptures.Dynp(model="clinear", min_size=LEAST_POINTS, jump=1).fit(values[:, None])
    fits = [search.predict(n_bkps=n) for n in range(1, _MOST_BREAKS + 1)]
    return phases_of_fits(sizes, tv, fits, refined)


def on_phase_grid(
    sizes: Float[np.ndarray, " size"], tv: Float[np.ndarray, " size"]
) -> tuple[Float[np.ndarray, " point"], Float[np.ndarray, " point"]]:
    """The 150 values of log10 s at which phases are looked for, and the curve there."""
    grid = np.linspace(np.log10(sizes[0]), np.log10(sizes[-1]), GRID)
    return grid, np.interp(grid, np.log10(sizes), tv)


def phases_of_fits(
    sizes: Float[np.ndarray, " size"],
    tv: Float[np.ndarray, " size"],
    fits: list[list[int]],
    refined: int = 0,
) -> tuple[Phase, ...]:
    """The phases that the best of several fits makes, as `change_points` does.

    Args:
        sizes: relative sizes, rising.
        tv: total variation at each.
        fits: where the pieces of each fit end, the last at `GRID`; a single piece is tried too.
        refined: how many of the sizes a refinement added.
    """
    grid, values = on_phase_grid(sizes, tv)
    samples = max(LEAST_SIZES, len(sizes) - refined)
    every = [[0, GRID], *([0, *fit] for fit in fits)]
    best = min(every, key=lambda k: _information(values, k, samples))
    logs = np.log10(sizes)
    knots = [grid[0], *sharpened(logs, tv, grid, best[1:-1]), grid[-1]]
    heights = np.interp(knots, logs, tv)
    drops = heights[:-1] - heights[1:]
    if (drops < _LEAST_DROP).all():
        return ()
    steepest = int(np.argmax(np.where(drops < _LEAST_DROP, -np.inf, drops / np.diff(knots))))
    bounds = {
        "plateau": (0, steepest),
        "construction": (steepest, steepest + 1),
        "refinement": (steepest + 1, len(knots) - 1),
    }
    return tuple(
        Phase(
            name=name,
            start=float(10 ** knots[a]),
            stop=float(10 ** knots[b]),
            tv_start=float(heights[a]),
            tv_stop=float(heights[b]),
            start_between=_between(logs, sizes, knots[a]),
            stop_between=_between(logs, sizes, knots[b]),
        )
        for name, (a, b) in bounds.items()
        if a < b
    )


def sharpened(
    logs: Float[np.ndarray, " size"],
    tv: Float[np.ndarray, " size"],
    grid: Float[np.ndarray, " point"],
    breaks: list[int],
) -> list[float]:
    """The breaks of the connected lines nearest to a curve, close to some points of a grid.

    On the grid a piece has a least length, and its ends lie on the curve: a steep fall is fitted
    too wide, and its ends jump from one dent of the curve to the next. Here each break moves to any
    point of the grid, or any measured size, that is no further than that length from it, and the
    lines need not touch the curve. All breaks together are those of least squared distance,
    integrated over log10 s.

    Args:
        logs: log10 of the measured sizes.
        tv: the curve there.
        grid: of the fit.
        breaks: its breaks as points of the grid; one or two, or none.
    """
    if not breaks:
        return []
    reach = LEAST_POINTS * (grid[1] - grid[0]) + _ROUNDING
    points = np.union1d(grid, logs)
    near = [points[np.abs(points - grid[k]) <= reach] for k in breaks]
    tried = np.stack(np.meshgrid(*near, indexing="ij"), -1).reshape(-1, len(breaks))
    inside = (tried > logs[0] + _ROUNDING) & (tried < logs[-1] - _ROUNDING)
    tried = tried[inside.all(1) & (np.diff(tried, axis=1) > _ROUNDING).all(1)]
    ends = np.ones((len(tried), 1))
    knots = np.concatenate([ends * logs[0], tried, ends * logs[-1]], 1)
    return tried[np.argmin(_misfit(logs, tv, knots))].tolist()


def _misfit(
    logs: Float[np.ndarray, " size"],
    tv: Float[np.ndarray, " size"],
    knots: Float[np.ndarray, "fit knot"],
) -> Float[np.ndarray, " fit"]:
    """Integrated squared distance of a curve from the best connected lines with some knots.

    The lines are the curve's projection on the hat functions of the knots. Between two nodes,
    measured sizes and knots alike, curve and hats are straight, so that every integral is exact.
    """
    nodes = np.union1d(logs, knots)
    curve = np.interp(nodes, logs, tv)
    steps, widths = np.diff(nodes), np.diff(knots, axis=1)
    along = np.clip((nodes - knots[:, :-1, None]) / widths[..., None], 0, 1)
    ones = np.ones_like(along[:, :1])
    hats = np.concatenate([ones, along], 1) - np.concatenate([along, 0 * ones], 1)
    gram = np.zeros((*knots.shape, knots.shape[1]))
    for piece in range(widths.shape[1]):
        inner = slice(piece, piece + 2)
        gram[:, inner, inner] += widths[:, piece, None, None] / 6 * np.array([[2, 1], [1, 2]])
    shares = _integrals(hats, curve, steps)
    heights = np.linalg.solve(gram, shares[..., None])[..., 0]
    return _integrals(curve[None], curve, steps) - (heights * shares).sum(1)


def _integrals(
    some: Float[np.ndarray, "*rows node"],
    other: Float[np.ndarray, " node"],
    steps: Float[np.ndarray, " step"],
) -> Float[np.ndarray, "*rows"]:
    """Of the products of functions with another, all of them straight between nodes."""
    a, b, c, d = some[..., :-1], some[..., 1:], other[:-1], other[1:]
    return ((2 * a * c + a * d + b * c + 2 * b * d) * steps).sum(-1) / 6


def _information(values: Float[np.ndarray, " point"], knots: list[int], samples: int) -> float:
    """Bayesian information criterion of the polyline through a curve's own points at the knots."""
    at = [min(k, len(values) - 1) for k in knots]
    line = np.interp(np.arange(len(values)), at, values[at])
    variance = max(float(np.mean((values - line) ** 2)), _LEAST_VARIANCE)
    parameters = 2 * len(knots) - 2
    return samples * math.log(variance) + parameters * math.log(samples)


def _between(
    logs: Float[np.ndarray, " size"], sizes: Float[np.ndarray, " size"], knot: float
) -> Between | None:
    """The measured sizes next below and next above a knot; None at an end of the curve."""
    below = np.flatnonzero(logs < knot - _ROUNDING)
    above = np.flatnonzero(logs > knot + _ROUNDING)
    if not (len(below) and len(above)):
        return None
    return float(sizes[below[-1]]), float(sizes[above[0]])


def _boundary(size: float, between: Between | None) -> str:
    if between is None:
        return f"{size:.2g}"
    return f"{size:.2g} (between {between[0]:.3g} and {between[1]:.3g})"


def _layer_phase(
    trace: Trace, name: str, start: float, stop: float, sizes: Float[np.ndarray, " size"]
) -> LayerPhase:
    first = trace.edge_count(start) if start else 0
    last = trace.edge_count(stop)
    below, above, everything = trace.counts_by_size([first, last, trace.edges])
    smaller = sizes[sizes < stop]
    return LayerPhase(
        name=name,
        start=start,
        stop=stop,
        stop_between=(float(smaller[-1]) if len(smaller) else 0.0, stop),
        first=first,
        last=last,
        counts=above - below,
        reachable=everything.sum(0),
    )
