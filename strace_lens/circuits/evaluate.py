"""How good a circuit or a ranking of edges is, measured by faithfulness and areas under its curve.

Everything is measured in faithfulness: the metric's mean over pairs, on the scale on which the
empty circuit (every edge ablated) is 0 and the full one is 1. Means are taken before the quotient.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from strace_lens.circuits.circuit import empty_circuit, full_circuit
from strace_lens.circuits.curve import FAITHFUL, Faithfulness, PairMetrics, areas
from strace_lens.circuits.experiment import Experiment, make_experiment
from strace_lens.circuits.metric_cache import MetricCache, cache_of
from strace_lens.circuits.run_circuits import circuit_metric, stack
from strace_lens.circuits.scores import Scores
from strace_lens.circuits.select_edges import Selection
from strace_lens.circuits.task import Task
from strace_lens.circuits.tasks.accuracy import failure, standing_of
from strace_lens.measures.sizes import check_sizes
from strace_lens.model.architecture import Model
from strace_lens.model.hold import verb
from strace_lens.utils.choices import RANKED_BY
from strace_lens.utils.progress import warn

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Fractions of all edges at which the MIB benchmark measures; 0 is not among them."""

RESOLUTION = 0.01
"""Of `edges_at_85`, relative."""


class MetricRange(NamedTuple):
    """Between what metrics faithfulness is normalised: means over the pairs of a task."""

    full: float  # of the full circuit
    empty: float  # of the empty one; under resample that of the corrupted run
    full_gap: float  # largest difference, over pairs, of the full circuit from the untouched model
    full_pairs: tuple[float, ...]  # metric of the full circuit on each pair
    empty_pairs: tuple[float, ...]  # that of the empty one

    def faithfulness(self, values: Float[Tensor, "circuit pair"]) -> list[float]:
        """(mean - empty) / (full - empty) of each circuit, in float64."""
        means = values.cpu().double().mean(-1)
        return ((means - self.empty) / (self.full - self.empty)).tolist()


class _Point(NamedTuple):
    """A circuit of a curve."""

    value: float  # its faithfulness
    pairs: tuple[float, ...]  # its metric on each pair


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
    level: str = "edge",
    selection: str = "top",
    connected: bool = False,
    memory_budget: int | None = None,
    allow_other_model: bool = False,
) -> Faithfulness:
    """Measure the faithfulness of a ranking's circuits at several sizes.

    See `faithfulness_curve`. A UserWarning is given if the model fails the task, since faithfulness
    to a wrong output explains little: if the clean prompts do not have the higher mean metric, or
    if the model is right no more often than by chance.

    The parameters `ablation`, `metric`, `memory_budget` and `allow_other_model` are as for
    `run_circuits`.

    Args:
        model: the model that was scored.
        task: pairs to measure on; they need not be those on which the scores were computed.
        scores: a score for each edge, with or without token positions.
        fractions: at least two fractions of all edges, in (0, 1], strictly increasing.
        ranking: "mib" ranks effects by sign for CPR and by magnitude for everything else; "signed"
            and "absolute" rank them in one way for both. By sign, a large model's circuits keep
            only what helps: see `Scores.top`.
        level: "edge", or "node" to rank and keep nodes with all of their out-edges, by the scores
            of a method that gives all out-edges of a node the same score.
        selection: "top" takes the best edges of all; "greedy" starts at the logits and takes the
            best of the edges into what it has reached; "ratio" takes half of the edges by sign and
            the rest by magnitude ("ratio:0.7" another share); "program" takes the connected circuit
            of the largest sum, see `best_connected`.
        connected: run circuits without the edges that lie on no path from the embedding to the
            logits, as MIB does at the level of edges. It changes nothing under "resample".

    Raises:
        ValueError: scores of another model or of other weights, invalid fractions, an unknown
            ranking, a level or selection that does not fit the scores (see `Selection`), or a task
            on which the full and the empty circuit do not differ.

    Example:
        >>> sl.faithfulness(model, task, sl.discover(model, task, "eap")).edges_at_85
    """
    experiment = make_experiment(
        model,
        task,
        metric=metric,
        ablation=ablation,
        memory_budget=memory_budget,
        allow_other_model=allow_other_model,
    )
    curve = faithfulness_curve(
        experiment,
        scores,
        fractions=fractions,
        ranking=ranking,
        level=level,
        selection=selection,
        connected=connected,
    )
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
    level: str = "edge",
    selection: str = "top",
    connected: bool = False,
    cache: MetricCache | None = None,
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
    same in both are run once. MIB drops the edges of a circuit that lie on no path from input to
    output, which is `connected`; under resample, its default ablation, they carry what they would
    if ablated. Its "node" level and its `apply_greedy` are `level` and `selection`. Where queries
    are grouped MIB counts the key and value of every query head, here those of key-value heads
    count, so that its circuits of one fraction are not quite these.

    `edges_at_85` bisects the number of edges between the largest size measured below 0.85 and the
    next one, until both lie within `RESOLUTION` of the number.

    The parameters `scores`, `fractions`, `ranking`, `level`, `selection` and `connected` are as for
    `faithfulness`.

    Args:
        experiment: from `make_experiment`, on the scored model.
        cache: of the circuits of this ranking, to which those of the curve are added.

    Raises:
        ValueError: as `faithfulness`, or a cache of another experiment.
    """
    experiment.expect_own(scores)
    cache = cache_of(experiment, cache)
    given = check_sizes(np.asarray(fractions, dtype=np.float64)).tolist()
    if len(given) < 2:
        raise ValueError(f"an area needs at least two fractions; got {given}")
    absolute = ranks_by_magnitude(ranking)
    selected = Selection(scores, level, selection, connected)
    between = metric_range(experiment)
    edges = [int(fraction * selected.items) for fraction in given]

    def measure(sizes: Sequence[int], absolute: bool) -> dict[int, _Point]:
        if not sizes:
            return {}
        circuits = [selected.circuit(size, absolute=absolute) for size in sizes]
        metrics = cache.metrics(stack(experiment, circuits))
        values, rows = between.faithfulness(metrics), metrics.cpu().double().tolist()
        points = (_Point(v, tuple(row)) for v, row in zip(values, rows, strict=True))
        return dict(zip(sizes, points, strict=True))

    def at_size(size: int) -> float:
        found = measure([size], absolute)
        measured.update(found)
        return found[size].value

    measured = {
        0: _Point(0.0, between.empty_pairs),
        selected.items: _Point(1.0, between.full_pairs),
    }
    measured |= measure(sorted(set(edges) - measured.keys()), absolute)
    by_sign = measured
    if ranking == "mib" and scores.signed:
        others = [n for n in measured if not selected.same_by_sign(n)]
        by_sign = measured | measure(others, absolute=False)
    values, cpr_values = (tuple(of[size].value for size in edges) for of in (measured, by_sign))
    own = () if by_sign is measured else tuple(by_sign[size].pairs for size in edges)
    at_85 = _smallest_faithful({n: p.value for n, p in measured.items()}, at_size, RESOLUTION)
    sizes = sorted(measured)
    return Faithfulness(
        ranking=ranking,
        fractions=tuple(given),
        edges=tuple(edges),
        values=values,
        cpr_values=cpr_values,
        cpr=float(areas(given, cpr_values)[0]),
        cmd=float(areas(given, values)[1]),
        full=between.full,
        empty=between.empty,
        full_gap=between.full_gap,
        edges_at_85=at_85,
        pairs=PairMetrics(tuple(sizes), tuple(measured[n].pairs for n in sizes), own),
        level=level,
        selection=selection,
        connected=connected,
    )


def ranks_by_magnitude(ranking: str) -> bool:
    """Whether a ranking takes circuits, CMD and the edges for 85 % by magnitude; else by sign.

    Raises:
        ValueError: an unknown ranking.
    """
    if ranking not in RANKED_BY:
        raise ValueError(f"unknown ranking {ranking!r}; choose from {', '.join(RANKED_BY)}")
    return ranking != "signed"


@verb
def cmds_of(experiment: Experiment, rankings: Sequence[Scores]) -> list[float]:
    """CMD of many rankings whose scores are no effects, the circuits of all run as one batch."""
    edges = rankings[0].edges
    sizes = [int(fraction * edges) for fraction in FRACTIONS]
    inner = [size for size in dict.fromkeys(sizes) if 0 < size < edges]
    circuits = stack(experiment, [r.top(n) for r in rankings for n in inner])
    found = iter(metric_range(experiment).faithfulness(MetricCache(experiment).metrics(circuits)))
    cmds = []
    for _ in rankings:
        measured = {0: 0.0, edges: 1.0} | {size: next(found) for size in inner}
        cmds.append(float(areas(FRACTIONS, [measured[size] for size in sizes])[1]))
    return cmds


_ranges: weakref.WeakKeyDictionary[Experiment, MetricRange] = weakref.WeakKeyDictionary()


@verb
def metric_range(experiment: Experiment) -> MetricRange:
    """Metrics of the full and the empty circuit, measured once for each experiment.

    Raises:
        ValueError: they do not differ by more than rounding, so nothing can be normalised.
    """
    if experiment in _ranges:
        return _ranges[experiment]
    ends = stack(experiment, [full_circuit(experiment.graph), empty_circuit(experiment.graph)])
    values = circuit_metric(experiment, ends).cpu().double()
    full, empty = values.mean(-1).tolist()
    clean, corrupted = (
        experiment.score(logits, experiment.reference).cpu().double()
        for logits in (experiment.clean[1], experiment.corrupted[1])
    )
    gap = rounding = float((values[0] - clean).abs().max())
    if experiment.ablation == "resample":
        rounding = max(gap, float((values[1] - corrupted).abs().max()))
    if not abs(full - empty) > max(10 * rounding, 1e-5 * max(abs(full), abs(empty))):  # NaN too
        raise ValueError(
            f"task {experiment.task.name!r} has a mean {experiment.metric} of {full:.6g} with "
            f"every edge kept and {empty:.6g} with all ablated ({experiment.ablation}); "
            "faithfulness needs the two to differ: choose another metric, ablation or corrupted "
            "prompts"
        )
    return _ranges.setdefault(
        experiment, MetricRange(full, empty, gap, *map(tuple, values.tolist()))
    )


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
