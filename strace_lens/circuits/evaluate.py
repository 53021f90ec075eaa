"""How good a circuit or a ranking of edges is, by running the model: faithfulness and its areas.

Everything is measured in faithfulness: the metric's mean over pairs, on the scale on which the
empty circuit (every edge ablated) is 0 and the full one is 1. Means are taken before the quotient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.circuits.circuit import Circuit, Scores, empty_circuit, full_circuit
from strace_lens.circuits.experiment import Experiment, make_experiment
from strace_lens.circuits.run_circuits import circuit_metric, stack
from strace_lens.circuits.task import Task
from strace_lens.circuits.tasks.accuracy import failure, standing_of
from strace_lens.measures.sizes import check_sizes
from strace_lens.model.architecture import Model
from strace_lens.model.forward import MEMORY_BUDGET
from strace_lens.model.hold import verb
from strace_lens.utils.html_repr import facts
from strace_lens.utils.progress import warn

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Fractions of all edges at which the MIB benchmark measures; 0 is not among them."""

FAITHFUL = 0.85
"""Faithfulness from which a circuit counts as faithful, for `edges_at_85`."""

COSTLY = 0.01
"""Loss of faithfulness from which an edge counts as needed, for `Minimality.share`."""

RANKED_BY = ("mib", "signed", "absolute")
"""By what edges are ranked: sign for CPR and magnitude for the rest, or one of them for all."""

_MASKS_AT_ONCE = 64


@dataclass(frozen=True)
class MetricRange:
    """Between what metrics faithfulness is normalised: means over the pairs of a task.

    Attributes:
        full, empty: of the full and the empty circuit; resample makes that the corrupted run.
        full_gap: largest difference, over pairs, between the full circuit and the untouched model:
            what is lost to rounding.
    """

    full: float
    empty: float
    full_gap: float

    def faithfulness(self, values: Float[Tensor, "circuit pair"]) -> list[float]:
        """(mean - empty) / (full - empty) of each circuit, in float64."""
        means = values.cpu().double().mean(-1)
        return ((means - self.empty) / (self.full - self.empty)).tolist()


@dataclass(frozen=True)
class Faithfulness:
    """Faithfulness of a ranking's best edges, by how many are kept.

    Attributes:
        ranking: one of `RANKED_BY`.
        fractions: of all edges.
        edges: kept at each, int(fraction * all edges) as in MIB; may be 0 on a tiny graph.
        values: faithfulness at each, of the edges ranked by magnitude, or by sign where `ranking`
            is "signed".
        cpr_values: faithfulness at each of the edges that CPR ranks: by sign where `ranking` is
            "mib", otherwise the same as `values`. Scores that are not effects have one order only.
        cpr: area under `cpr_values` (MIB's circuit performance ratio; higher is better).
        cmd: area of |1 - value| over `values` (MIB's circuit-model distance; lower is better).
        full: metric of the full circuit, the mean over pairs.
        empty: metric of the empty one; under resample that of the corrupted run.
        full_gap: largest difference, over pairs, between the full circuit and the untouched model.
        edges_at_85: fewest edges from which `values` are at least 0.85 at every larger size that
            was measured, those of the bisection included.
    """

    ranking: str
    fractions: tuple[float, ...]
    edges: tuple[int, ...]
    values: tuple[float, ...]
    cpr_values: tuple[float, ...]
    cpr: float
    cmd: float
    full: float
    empty: float
    full_gap: float
    edges_at_85: int

    def to_pandas(self) -> pd.DataFrame:
        """One row a size: `fraction` of all edges, `edges`, `faithfulness`.

        A fourth column, `faithfulness_by_sign`, is there where CPR has a curve of its own.
        """
        columns = {"fraction": self.fractions, "edges": self.edges, "faithfulness": self.values}
        if self.cpr_values != self.values:
            columns["faithfulness_by_sign"] = self.cpr_values
        return pd.DataFrame(columns)

    def _repr_html_(self) -> str:
        line = (
            f"Faithfulness: CPR {self.cpr:.3f}, CMD {self.cmd:.3f}; 85 % from "
            f"{self.edges_at_85:,} edges on; metric from {self.empty:.3g} to {self.full:.3g}"
        )
        return facts(line, self.to_pandas())


@dataclass(frozen=True)
class Minimality:
    """What the loss of single edges costs a circuit.

    Attributes:
        edges, costs: of each edge dropped, its name and what the circuit loses in faithfulness.
        faithfulness: of the circuit.
        size: edges of the circuit; more than were dropped where they were sampled.
    """

    edges: tuple[str, ...]
    costs: tuple[float, ...]
    faithfulness: float
    size: int

    @property
    def share(self) -> float:
        """Share of the dropped edges that cost at least 0.01 of faithfulness; 1 is minimal."""
        return sum(cost >= COSTLY for cost in self.costs) / len(self.costs)

    @property
    def table(self) -> pd.DataFrame:
        """`edge` and `cost`, the costliest first."""
        table = pd.DataFrame({"edge": self.edges, "cost": self.costs})
        return table.sort_values("cost", ascending=False, kind="stable", ignore_index=True)


@verb
def faithfulness(
    model: Model,
    task: Task,
    scores: Scores,
    *,
    fractions: Sequence[float] = FRACTIONS,
    ablation: str = "resample",
    metric: str | None = None,
    ranking: str = "mib",
    memory_budget: int = MEMORY_BUDGET,
    allow_other_model: bool = False,
) -> Faithfulness:
    """Faithfulness by size of the circuits that a ranking gives: see `faithfulness_curve`.

    A UserWarning says so where the model fails the task, since faithfulness to an output that is
    wrong explains little: where the clean prompts do not have the higher mean metric, or where the
    model is right no more often than by chance.

    Args:
        model: the model that was scored.
        task: pairs to measure on; they need not be those that the scores were made on.
        scores: a score an edge, with token positions or without.
        fractions: of all edges, in (0, 1], strictly rising, at least two.
        ablation: what an edge outside the circuit carries: "resample", "mean" or "zero".
        metric: key of `METRICS`; the task's own by default.
        ranking: "mib" ranks effects by sign for CPR and by magnitude for all else; "signed" and
            "absolute" rank them in one way for both. By sign a large model's circuits are left
            with what helps alone: see `Scores.top`.
        memory_budget: bytes that one pass may take.
        allow_other_model: take scores that were made with other weights, as on another checkpoint,
            or on a model of another name; the graphs must still have one shape.

    Raises:
        ValueError: scores of another model or of other weights, bad fractions, an unknown ranking,
            or a task on which the full and the empty circuit do not differ.
    """
    experiment = make_experiment(
        model,
        task,
        metric=metric,
        ablation=ablation,
        memory_budget=memory_budget,
        allow_other_model=allow_other_model,
    )
    curve = faithfulness_curve(experiment, scores, fractions=fractions, ranking=ranking)
    failed = failure(standing_of(experiment))
    if failed:
        warn(failed)
    return curve


@verb
def faithfulness_curve(
    experiment: Experiment,
    scores: Scores,
    *,
    fractions: Sequence[float] = FRACTIONS,
    ranking: str = "mib",
    resolution: float = 0.01,
    between: MetricRange | None = None,
) -> Faithfulness:
    """Faithfulness by size, CPR and CMD as the MIB benchmark defines them.

    Mueller et al. (2025), "MIB: A Mechanistic Interpretability Benchmark" (arXiv 2504.13151), and
    `evaluate_area_under_curve` of its circuit track. At ten fractions of all edges from 0.001 to 1
    the int(fraction * edges) best edges are kept; faithfulness is (m(circuit) - m(empty)) /
    (m(full) - m(empty)) of the mean metrics m. CPR is the area under it and CMD that of
    |1 - faithfulness|, by the trapezoid rule on the fractions as they are (no logarithm). Nothing
    is added below 0.001 and nothing divided by the range: a perfect CPR is 0.999. Other fractions
    give areas over their own range. As MIB's results table does, the ranking "mib" takes CPR from
    the edges ranked by signed score and CMD from those ranked by magnitude; circuits that are the
    same in both are run once. MIB also drops edges on no path from input to output; under
    resample, its default ablation, they carry what they would if ablated, so they are left.

    `edges_at_85` bisects the number of edges between the largest size measured below 0.85 and the
    next one, until both lie within `resolution` of the number.

    Args:
        experiment: from `make_experiment`, on the scored model.
        scores, fractions, ranking: as for `faithfulness`.
        resolution: of `edges_at_85`, relative; 0 for the exact edge, 1 to run no further circuits.
        between: of the same experiment, where it is known already.

    Raises:
        ValueError: as `faithfulness`, or a resolution outside [0, 1].
    """
    experiment.expect_own(scores)
    given = check_sizes(np.asarray(fractions, dtype=np.float64)).tolist()
    if len(given) < 2:
        raise ValueError(f"an area needs at least two fractions; got {given}")
    if not 0 <= resolution <= 1:
        raise ValueError(f"resolution must lie in [0, 1]; got {resolution}")
    absolute = ranks_by_magnitude(ranking)
    between = between or metric_range(experiment)
    edges = [int(fraction * scores.edges) for fraction in given]

    def measure(sizes: Sequence[int], absolute: bool) -> list[float]:
        circuits = [scores.top(size, absolute=absolute) for size in sizes]
        return between.faithfulness(circuit_metric(experiment, stack(experiment, circuits)))

    def curve(absolute: bool, known: Mapping[int, float]) -> dict[int, float]:
        new = sorted(set(edges) - known.keys())
        return {**known, **dict(zip(new, measure(new, absolute) if new else (), strict=True))}

    measured = curve(absolute, {0: 0.0, scores.edges: 1.0})
    by_sign = measured
    if ranking == "mib":
        by_sign = curve(False, {n: v for n, v in measured.items() if _same_circuit(scores, n)})
    values, cpr_values = ([of[size] for size in edges] for of in (measured, by_sign))
    return Faithfulness(
        ranking=ranking,
        fractions=tuple(given),
        edges=tuple(edges),
        values=tuple(values),
        cpr_values=tuple(cpr_values),
        cpr=areas(given, cpr_values)[0],
        cmd=areas(given, values)[1],
        full=between.full,
        empty=between.empty,
        full_gap=between.full_gap,
        edges_at_85=_smallest_faithful(measured, lambda n: measure([n], absolute)[0], resolution),
    )


def ranks_by_magnitude(ranking: str) -> bool:
    """Whether a ranking takes circuits, CMD and the edges for 85 % by magnitude; else by sign.

    Raises:
        ValueError: an unknown ranking.
    """
    if ranking not in RANKED_BY:
        raise ValueError(f"unknown ranking {ranking!r}; choose from {', '.join(RANKED_BY)}")
    return ranking != "signed"


def _same_circuit(scores: Scores, size: int) -> bool:
    """Whether the best edges by sign are the best by magnitude."""
    return torch.equal(scores.top(size).keep, scores.top(size, absolute=False).keep)


@verb
def metric_range(experiment: Experiment) -> MetricRange:
    """Metrics of the full and the empty circuit; needed once per experiment, whatever is measured.

    Raises:
        ValueError: they do not differ by more than rounding, so nothing can be normalised.
    """
    ends = stack(experiment, [full_circuit(experiment.graph), empty_circuit(experiment.graph)])
    values = circuit_metric(experiment, ends).cpu().double()
    full, empty = values.mean(-1).tolist()
    gap = rounding = _largest_gap(experiment, values[0], experiment.clean[1])
    if experiment.ablation == "resample":
        rounding = max(gap, _largest_gap(experiment, values[1], experiment.corrupted[1]))
    if not abs(full - empty) > max(10 * rounding, 1e-5 * max(abs(full), abs(empty))):  # NaN too
        raise ValueError(
            f"task {experiment.task.name!r} has a mean {experiment.metric} of {full:.6g} with "
            f"every edge kept and {empty:.6g} with all ablated ({experiment.ablation}); "
            "faithfulness needs the two to differ: choose another metric, ablation or corrupted "
            "prompts"
        )
    return MetricRange(full, empty, gap)


def _largest_gap(
    experiment: Experiment,
    values: Float[Tensor, " pair"],
    logits: Float[Tensor, "pair read vocab"],
) -> float:
    """Largest difference of a circuit's metrics from those of an untouched run."""
    untouched = experiment.score(logits, experiment.reference).cpu().double()
    return float((values - untouched).abs().max())


@verb
def completeness(
    experiment: Experiment, circuit: Circuit, *, between: MetricRange | None = None
) -> float:
    """Faithfulness of a circuit's complement; 0 when the circuit holds all that does the task.

    After the completeness criterion of Wang et al. (2023), "Interpretability in the Wild", section
    4, with the whole circuit knocked out.

    Raises:
        ValueError: a circuit of another model, or as `metric_range`.
    """
    masks = stack(experiment, [~circuit])
    between = between or metric_range(experiment)
    return between.faithfulness(circuit_metric(experiment, masks))[0]


@verb
def minimality(
    experiment: Experiment,
    circuit: Circuit,
    *,
    sample: int | None = 64,
    seed: int = 0,
    between: MetricRange | None = None,
) -> Minimality:
    """What each edge of a circuit is worth to it: faithfulness lost when that edge alone goes too.

    After the minimality criterion of Wang et al. (2023), section 4, with single edges, no sets.

    Args:
        experiment: from `make_experiment`.
        circuit: at least one edge.
        sample, seed: drop only so many edges, drawn from the seed; None for all.
        between: of the same experiment, where it is known already.

    Raises:
        ValueError: an empty circuit, one of another model, a sample below 1, or as `metric_range`.
    """
    if sample is not None and sample < 1:
        raise ValueError(f"sample must be at least 1, or None for all edges; got {sample}")
    if not len(circuit):
        raise ValueError("a circuit without edges has none to drop; give at least one")
    whole = stack(experiment, [circuit])
    between = between or metric_range(experiment)
    chosen = torch.arange(len(circuit))
    if sample is not None:
        order = torch.randperm(len(circuit), generator=torch.Generator().manual_seed(seed))
        chosen = order[:sample].sort().values
    cells, names = circuit.kept.cpu().nonzero().flip(0), circuit.edge_names()
    own = between.faithfulness(circuit_metric(experiment, whole))[0]
    without: list[float] = []
    for dropped in cells[chosen].split(_MASKS_AT_ONCE):
        masks = whole.repeat(len(dropped), *[1] * (whole.ndim - 1))
        masks[(torch.arange(len(dropped)), *dropped.T)] = 0
        without += between.faithfulness(circuit_metric(experiment, masks))
    return Minimality(
        edges=tuple(names[i] for i in chosen.tolist()),
        costs=tuple(own - value for value in without),
        faithfulness=own,
        size=len(circuit),
    )


def areas(fractions: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """CPR and CMD of a curve: the areas under it and between it and 1, by the trapezoid rule."""
    distance = np.abs(1 - np.asarray(values))
    return float(np.trapezoid(values, fractions)), float(np.trapezoid(distance, fractions))


def _smallest_faithful(
    measured: Mapping[int, float], measure: Callable[[int], float], resolution: float
) -> int:
    """`edges_at_85` from faithfulness by number of edges, 0 and all of them included."""
    low = max(size for size, value in measured.items() if value < FAITHFUL)
    high = min(size for size in measured if size > low)
    while high - low > max(1, resolution * high):
        middle = (low + high) // 2
        if measure(middle) < FAITHFUL:
            low = middle
        else:
            high = middle
    return high
