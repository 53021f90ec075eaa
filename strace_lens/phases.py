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
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from strace_lens import measures
from strace_lens.ablation import ZERO, Replacement
from strace_lens.architecture import Model
from strace_lens.contract import architecture_of
from strace_lens.density import DensityCurve
from strace_lens.run import MEMORY_BUDGET, last_logits
from strace_lens.sizes import smallest_size_from_which
from strace_lens.token_graph.edges import KINDS, EdgeTensors
from strace_lens.token_graph.masks import MaskedRows, masked_logits
from strace_lens.token_graph.trace import Trace

THRESHOLD = 0.1
GRID = 150
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
            tenth of its mass; None likewise.
    """

    along_sizes: tuple[Phase, ...]
    head: LayerPhase | None
    tail: LayerPhase | None

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
        return f"{self.describe()}{self.layer_table().to_html(index=False)}"


def find_phases(curve: DensityCurve, threshold: float = THRESHOLD) -> Phases:
    """Phases of a density curve.

    Args:
        curve: at least four sizes, or no phase along the sizes is looked for.
        threshold: share of the head's (tail's) mass its error must stay under.

    Raises:
        ValueError: a threshold outside (0, 1).
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie in (0, 1); got {threshold}")
    table = curve.table
    sizes = table["size"].to_numpy()

    def enough_from(column: str, mass: float) -> float:
        return smallest_size_from_which(sizes, (table[column] < threshold * mass).to_numpy())

    head_size = enough_from("head_error", curve.head_mass)
    tail_size = enough_from("tail_error", 1 - curve.head_mass)
    head = tail = None
    if not math.isnan(head_size):
        head = _layer_phase(curve.trace, "head subgraph", 0.0, head_size)
        if not math.isnan(tail_size):
            end = max(head_size, tail_size)
            tail = _layer_phase(curve.trace, "tail refinement", head_size, end)
    return Phases(along_sizes=change_points(sizes, table["tv"].to_numpy()), head=head, tail=tail)


def change_points(
    sizes: Float[np.ndarray, " size"], tv: Float[np.ndarray, " size"]
) -> tuple[Phase, ...]:
    """Split a curve into plateau, construction and refinement.

    TV over log10 s is approximated by one to three straight pieces (`ruptures`, optimal partition
    with continuous linear pieces, on a grid of 150 points); the Bayesian information criterion over
    the measured sizes picks how many. Construction is the steepest piece, if TV falls by a tenth
    over it; what comes before is plateau, what comes after refinement.
    """
    if len(sizes) < 4:
        return ()
    grid = np.linspace(np.log10(sizes[0]), np.log10(sizes[-1]), GRID)
    values = np.interp(grid, np.log10(sizes), tv)
    search = ruptures.Dynp(model="clinear", min_size=3, jump=1).fit(values[:, None])
    fits = [[0, *search.predict(n_bkps=n)] for n in range(1, _MOST_BREAKS + 1)]
    knots = min([[0, GRID], *fits], key=lambda k: _information(values, k, len(sizes)))
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


def phase_ablation(
    model: Model,
    curve: DensityCurve,
    *,
    replacement: Replacement = ZERO,
    seed: int = 0,
    memory_budget: int = MEMORY_BUDGET,
) -> pd.DataFrame:
    """Do early layers build the head and late layers refine the tail? Ablate each part and see.

    From the trace at the end of refinement, ablates the edges of the early half of the layers that
    the refinement added, then those of the late half, then the early and late halves of the head
    subgraph. Beside each stands the mean of five draws of as many edges of the same trace.

    Returns:
        One row an ablation: `ablated`, `edges`, `tv`, `head_error`, `tail_error`,
        `random_head_error`, `random_tail_error`; the first row ablates nothing. Empty where the
        curve has no head subgraph or tail refinement.

    Source: s-Trace (arXiv 2605.27033), claims 2 and 3, which the paper reads off compositions.
    """
    phases = find_phases(curve)
    columns = ["ablated", "edges", "tv", "head_error", "tail_error"]
    columns += ["random_head_error", "random_tail_error"]
    if phases.head is None or phases.tail is None:
        return pd.DataFrame(columns=columns)
    trace, architecture = curve.trace, architecture_of(model)
    end = phases.tail.last
    whole = trace.ranks.map(lambda r: r < end)
    parts = _halves(trace, phases.head, phases.tail)
    generator = torch.Generator().manual_seed(seed)
    names, masks = ["nothing"], [whole]
    for name, part in parts.items():
        names.append(name)
        masks.append(EdgeTensors(*(w & ~p for w, p in zip(whole, part, strict=True))))
        count = sum(int(p.sum()) for p in part)
        masks += [_without_random(whole, count, generator) for _ in range(_DRAWS)]
    groups = [_mask_rows(trace, kept, replacement) for kept in masks]
    logits = masked_logits(model, architecture, groups, memory_budget=memory_budget)
    untouched = last_logits(model, architecture, trace.prompt.tensor[None]).cpu()
    full, ours = untouched.double().log_softmax(-1), logits.double().log_softmax(-1)
    head, tail = measures.head_tail_error(full, ours, curve.head)
    rows, at = [], 0
    for name in names:
        drawn = slice(at + 1, at + 1 + (0 if name == "nothing" else _DRAWS))
        edges = 0 if name == "nothing" else sum(int(p.sum()) for p in parts[name])
        own = [name, edges, float(head[at] + tail[at]), float(head[at]), float(tail[at])]
        rows.append([*own, float(head[drawn].mean()), float(tail[drawn].mean())])
        at = max(drawn.stop, at + 1)
    return pd.DataFrame(rows, columns=columns)


_DRAWS = 5


def _halves(trace: Trace, head: LayerPhase, tail: LayerPhase) -> dict[str, EdgeTensors]:
    """Edges of the refinement and of the head subgraph, in the early and late half of layers."""
    early = trace.shape.layer_of().map(lambda layer: layer < trace.shape.layers // 2)
    parts = {}
    for what, phase in (("refinement", tail), ("head", head)):
        inside = trace.ranks.map(lambda r, p=phase: (r >= p.first) & (r < p.last))
        for half, flip in (("early", False), ("late", True)):
            parts[f"{what}, {half} layers"] = EdgeTensors(
                *(i & (e ^ flip) for i, e in zip(inside, early, strict=True))
            )
    return parts


def _without_random(kept: EdgeTensors, count: int, generator: torch.Generator) -> EdgeTensors:
    flats = kept.flat().clone()
    chosen = flats.nonzero().flatten()
    flats[chosen[torch.randperm(len(chosen), generator=generator)[:count]]] = False
    sizes = [k.numel() for k in kept]
    parts: list[Bool[Tensor, " edge"]] = list(flats.split(sizes))
    return EdgeTensors(*(p.view_as(k) for p, k in zip(parts, kept, strict=True)))


def _mask_rows(trace: Trace, kept: EdgeTensors, replacement: Replacement) -> MaskedRows:
    """One row that keeps the edges marked: rank 0 is kept, rank 1 is not."""
    return MaskedRows(
        tokens=trace.prompt.tensor,
        shape=trace.shape,
        ranks=kept.map(lambda k: (~k).to(torch.int8)),
        start=torch.zeros(1, dtype=torch.int32),
        stop=torch.ones(1, dtype=torch.int32),
        replacement=replacement,
    )
