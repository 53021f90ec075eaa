"""Discovery methods side by side on one task: each run, evaluated and held against random."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from strace_lens.circuits.agreement import auroc, missed_edges
from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.criteria import (
    COSTLY,
    completeness,
    completeness_interval,
    minimality,
    minimality_interval,
)
from strace_lens.circuits.discover.activation import TooManyRowsError
from strace_lens.circuits.discover.methods import METHODS, random_scores
from strace_lens.circuits.discover.run_method import discover_in, unchanged_pairs
from strace_lens.circuits.evaluate import (
    cmds_of,
    faithfulness_curve,
    metric_range,
    ranks_by_magnitude,
)
from strace_lens.circuits.experiment import Experiment, make_experiment
from strace_lens.circuits.graph import ComponentGraph
from strace_lens.circuits.metric_cache import MetricCache
from strace_lens.circuits.scores import Scores
from strace_lens.circuits.task import Task
from strace_lens.circuits.tasks.accuracy import standing_of
from strace_lens.comparison.comparison import RANDOM, Comparison, MethodResult, warnings_of
from strace_lens.comparison.files import (
    ComparisonFolder,
    load_method,
    open_comparison,
    save_method,
)
from strace_lens.comparison.projection import projection_of_task
from strace_lens.ground_truth.models import GroundTruth
from strace_lens.model.architecture import Model, UnsupportedModelError, device_of
from strace_lens.model.hold import verb
from strace_lens.utils.choices import expect_methods
from strace_lens.utils.peak_memory import peak_memory
from strace_lens.utils.progress import Advance, Progress, reporting
from strace_lens.utils.versions import versions

SMALL_GRAPH = 2_000
"""Edges up to which a lucky random ranking does well, and every edge can be tested."""

_DRAWS = 99  # on tiny graphs some are perfect by luck; four may be


@dataclass(frozen=True, eq=False)
class _Setting:
    """What all methods of a comparison share; the experiment is on the evaluation pairs."""

    task: Task
    experiment: Experiment
    truth: Circuit | None
    seed: int
    ranking: str
    sample: int
    completeness: bool
    minimality: bool
    options: Mapping[str, Mapping[str, Any]]


@verb
def compare(
    model: Model,
    task: Task,
    methods: Sequence[str],
    *,
    evaluation: Task | None = None,
    ground_truth: GroundTruth | None = None,
    ablation: str = "resample",
    metric: str | None = None,
    seed: int = 0,
    ranking: str = "mib",
    sample: int = 16,
    completeness: bool = True,
    minimality: bool = True,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    folder: str | Path | None = None,
    overwrite: bool = False,
    memory_budget: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Run discovery methods on a task and measure the circuits of each.

    Random is always run beside them, as the control that every method must beat; on graphs of up to
    2,000 edges, where a lucky draw does well, by 99 rankings.

    The parameters `ablation`, `metric` and `memory_budget` are as for `run_circuits`.

    Args:
        model: the model.
        task: pairs that the methods see.
        methods: keys of `METHODS`.
        evaluation: pairs that circuits are evaluated on; those of `task` unless given.
        ground_truth: of the same model, where its circuit is known; methods are held to its truth
            under this ablation.
        seed: of every method that draws.
        ranking: how edges are ranked, as for `faithfulness`: "mib" takes CPR by sign, and
            circuits, CMD and all else by magnitude, which keeps the edges that hurt the metric.
        sample: edges of a circuit that are dropped, each alone, to see whether it is minimal.
        completeness: whether the complement of each circuit is run.
        minimality: whether circuits are run without each of `sample` edges, most of what a small
            comparison takes.
        options: of single methods, by name; on graphs of more than 2,000 edges
            those of `Method.large_options` unless given.
        folder: where each method's result is written as soon as it is made, and read back if it is
            there already; nothing is written if not given.
        overwrite: discard what another comparison left in the folder, once the first method is
            done; results of this same comparison are still read back.
        progress: told of two steps a method, the random control and the projection; a bar if
            not given.

    Raises:
        ValueError: no method or an unknown one, an unknown option, a model or task that
            `make_experiment` refuses, a task whose full and empty circuits have the same metric, no
            method small enough for this graph, or a folder that holds another comparison.
        FloatingPointError: a logit is NaN or infinite.

    Example:
        >>> from strace_lens.ground_truth.models import ground_truth
        >>> known = ground_truth("linear")
        >>> found = sl.compare(known.model, known.task, ["eap", "ifr"], ground_truth=known)
        >>> found.table[["method", "cpr", "auroc"]]
    """
    names = check_methods(methods)
    ranks_by_magnitude(ranking)  # an unknown one is refused before anything runs
    experiment = make_experiment(
        model,
        task if evaluation is None else evaluation,
        metric=metric,
        ablation=ablation,
        memory_budget=memory_budget,
    )
    metric_range(experiment)  # a task that cannot be measured is refused before anything runs
    truth = None if ground_truth is None else ground_truth.truth(ablation)
    chosen = method_options(experiment.graph, options or {})
    setting = _Setting(
        task, experiment, truth, seed, ranking, sample, completeness, minimality, chosen
    )
    asked = {"completeness": completeness, "minimality": minimality}
    given = {"seed": seed, "ranking": ranking, "sample": sample, **asked, "versions": versions()}
    place = None
    if folder is not None:
        said = {**given, "options": chosen}
        place = open_comparison(folder, experiment, task, truth, said, overwrite=overwrite)
    with reporting(progress, "comparing", 2 * len(names) + 2) as advance:
        results, skipped = _run(setting, names, place, advance)
        advance(0, "random control")
        cmds, aurocs = _random_control(setting, results)
        advance(1, "projecting s-Traces")
        projection = _projection(setting, results)
        advance()
    standing = standing_of(experiment)
    unchanged = [unchanged_pairs(some, ablation) for some in dict.fromkeys((task, experiment.task))]
    comparison = Comparison(
        task=task.name,
        model=experiment.graph.model,
        graph=experiment.graph,
        metric=experiment.metric,
        ablation=ablation,
        pairs=len(task),
        evaluated_pairs=len(experiment.task),
        held_out=evaluation is not None,
        dropped=task.dropped,
        accuracy=standing.accuracy,
        metric_clean=standing.clean,
        metric_corrupted=standing.corrupted,
        results=results,
        skipped=skipped,
        random_cmd=cmds,
        random_auroc=aurocs,
        memory=results[-1].memory,
        warnings=tuple(said for said in unchanged if said is not None),
        truth=truth,
        truth_name=None if ground_truth is None else ground_truth.ablation_truth[ablation],
        projection=projection,
        metadata={**given, "options": {name: chosen[name] for name in names if name in chosen}},
    )
    warnings = (*comparison.warnings, *warnings_of(comparison))
    return dataclasses.replace(comparison, warnings=warnings)


def check_methods(methods: Iterable[str]) -> list[str]:
    """Methods without repeats, in the order given, random among them.

    Raises:
        ValueError: no method, or an unknown one.
    """
    methods = list(methods)
    expect_methods(methods)
    return list(dict.fromkeys([*methods, RANDOM]))


def split(task: Task) -> tuple[Task, Task | None]:
    """Split a task into pairs to discover on and pairs to evaluate on; fewer than four stay whole.

    The first half and the second: `Task.sample` first puts pairs in a random order that may be
    sorted, as those of a file.
    """
    if len(task) < 4:
        return task, None
    half = (len(task) + 1) // 2
    return task.take(slice(0, half)), task.take(slice(half, None))


def method_options(
    graph: ComponentGraph, given: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Options of every method that has some: those given, and those that suit a large graph."""
    if given:
        check_methods(given)
    is_large = graph.edges > SMALL_GRAPH
    large = {n: m.large_options for n, m in METHODS.items() if is_large and m.large_options}
    return {n: {**large.get(n, {}), **given.get(n, {})} for n in {*large, *given}}


def _run(
    setting: _Setting, names: Sequence[str], place: ComparisonFolder | None, advance: Advance
) -> tuple[tuple[MethodResult, ...], dict[str, str]]:
    """The result of every method, read back or measured, and why others were skipped, by name."""
    results: list[MethodResult] = []
    skipped: dict[str, str] = {}
    for name in names:
        done = None if place is None else load_method(place, name)
        if done is not None:
            results.append(done)
            advance(2, f"{name}: read back")
            continue
        if METHODS[name].by_position:
            skipped[name] = (
                "it scores edges at each token, and circuits of edges do not compare with circuits "
                "of edges at tokens; run it with discover"
            )
            advance(2, f"{name}: skipped")
            continue
        advance(0, f"{name}: discovering")
        try:
            scores, peak, how = _discover(setting, name)
        except (TooManyRowsError, UnsupportedModelError) as error:
            skipped[name] = str(error)
            advance(2, f"{name}: skipped")
            continue
        advance(1, f"{name}: evaluating")
        results.append(_measure(setting, scores, peak, how))
        if place is not None:
            save_method(place, results[-1])
        advance(1, f"{name}: evaluated")
    if len(results) == 1 and skipped:
        name, reason = next(iter(skipped.items()))
        raise ValueError(f"no method ran beside random; {name}: {reason}")
    return tuple(results), skipped


def _discover(setting: _Setting, name: str) -> tuple[Scores, float, str]:
    """Scores on the pairs that methods see, the peak of memory in 10^6 bytes, and how it was found.

    The runs that a method needs are its own, since they count among its passes.
    """
    experiment = setting.experiment
    with peak_memory(device_of(experiment.model)) as peak:
        own = make_experiment(
            experiment.model,
            setting.task,
            metric=experiment.metric,
            ablation=experiment.ablation,
            memory_budget=experiment.memory_budget,
        )
        scores = discover_in(own, name, seed=setting.seed, **setting.options.get(name, {}))
    return scores, peak.bytes / 1e6, peak.how


def _measure(setting: _Setting, scores: Scores, peak_mb: float, memory: str) -> MethodResult:
    experiment, truth = setting.experiment, setting.truth
    cache = MetricCache(experiment)
    absolute = ranks_by_magnitude(setting.ranking)
    curve = faithfulness_curve(experiment, scores, ranking=setting.ranking, cache=cache)
    circuit = scores.top(curve.edges_at_85, absolute=absolute)
    measured = MethodResult(
        method=scores.method,
        scores=scores,
        faithfulness=curve,
        circuit=circuit,
        completeness=None,
        minimality=None,
        peak_mb=peak_mb,
        memory=memory,
    )
    if setting.minimality:
        drawn = {"sample": setting.sample, "seed": setting.seed, "cache": cache}
        costs = minimality(experiment, circuit, **drawn).values()
        measured = dataclasses.replace(
            measured,
            minimality=sum(cost >= COSTLY for cost in costs) / len(costs),
            minimality_interval=_known(minimality_interval(experiment, circuit, **drawn)),
        )
    if setting.completeness:
        measured = dataclasses.replace(
            measured,
            completeness=completeness(experiment, circuit, cache=cache),
            completeness_interval=_known(completeness_interval(experiment, circuit, cache=cache)),
        )
    if truth is None:
        return measured
    missed = missed_edges(scores, truth, absolute=absolute)
    return dataclasses.replace(
        measured,
        auroc=auroc(scores, truth, absolute=absolute),
        precision=1 - len(missed) / len(truth),
        missed=missed,
    )


def _known(interval: tuple[float, float]) -> tuple[float, float] | None:
    """An interval, or None where it is none: files hold no NaN."""
    return None if math.isnan(interval[0]) else interval


def _random_control(
    setting: _Setting, results: Sequence[MethodResult]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """CMD and AUROC of the random ranking measured, and of more of them on a small graph."""
    experiment, truth = setting.experiment, setting.truth
    drawn = next(result for result in results if result.method == RANDOM)
    cmds = [drawn.faithfulness.cmd]
    aurocs = [] if drawn.auroc is None else [drawn.auroc]
    if experiment.graph.edges <= SMALL_GRAPH:
        rankings = [
            Scores(experiment.graph, random_scores(experiment, seed=seed), RANDOM, signed=False)
            for seed in range(setting.seed + 1, setting.seed + _DRAWS)
        ]
        cmds += cmds_of(experiment, rankings)
        if truth is not None:
            aurocs += [auroc(ranking, truth) for ranking in rankings]
    return tuple(cmds), tuple(aurocs)


def _projection(setting: _Setting, results: Sequence[MethodResult]) -> pd.DataFrame | None:
    """Traces of the first clean prompts against the truth and every method's circuit."""
    circuits = {} if setting.truth is None else {"truth": setting.truth}
    circuits |= {result.method: result.circuit for result in results}
    return projection_of_task(setting.experiment.model, setting.task, circuits)
