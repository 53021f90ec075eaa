"""One real comparison of a tiny model for every test of figures, and variants of it.

It is put together here because `compare` draws many random rankings, which figures do not need.
"""

from __future__ import annotations

import dataclasses
import functools

import torch

from strace_lens.circuits.agreement import auroc, missed_edges
from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.discover.run_method import discover_in
from strace_lens.circuits.evaluate import faithfulness_curve, metric_range
from strace_lens.circuits.experiment import Experiment, make_experiment
from strace_lens.circuits.task import Task
from strace_lens.comparison.comparison import Comparison, MethodResult
from strace_lens.comparison.projection import projection_of_task
from tests import tiny
from tests.cases import model_of

METHODS = ("edge-patching", "eap", "ifr", "random")
TRUE_EDGES = 12


def task(pairs: int = 2, length: int = 4) -> Task:
    """Random words; the corrupted prompt differs in all of them."""
    rows = [tiny.token_ids(length, seed) for seed in range(2 * pairs)]
    return Task(
        name="made-up",
        clean=torch.tensor(rows[:pairs]),
        corrupted=torch.tensor(rows[pairs:]),
        lengths=torch.full((pairs,), length),
        answers=torch.full((pairs, 1), 20),
        incorrect=torch.full((pairs, 1), 21),
        metric="logit_difference",
        dropped=1,
    )


@functools.cache
def comparison(name: str = "gpt2", known: bool = True) -> Comparison:
    """Methods on a tiny model; the best edges by exact patching stand for the true circuit."""
    experiment = make_experiment(model_of(name), task())
    truth = discover_in(experiment, "edge-patching").top(TRUE_EDGES) if known else None
    results = tuple(_result(experiment, method, truth) for method in METHODS)
    circuits = {} if truth is None else {"truth": truth}
    circuits |= {result.method: result.circuit for result in results}
    random = results[-1]
    return Comparison(
        task="made-up",
        model=experiment.graph.model,
        graph=experiment.graph,
        metric="logit_difference",
        ablation="resample",
        pairs=2,
        evaluated_pairs=2,
        held_out=False,
        dropped=1,
        accuracy=0.5,
        metric_clean=metric_range(experiment).full,
        metric_corrupted=metric_range(experiment).empty,
        results=results,
        skipped={"acdc": "the graph has too many edges"},
        warnings=("the model does the task on half of the pairs only",),
        truth=truth,
        truth_name="resample" if known else None,
        random_cmd=(random.faithfulness.cmd,),
        random_auroc=() if random.auroc is None else (random.auroc,),
        memory="by hand",
        projection=projection_of_task(experiment.model, experiment.task, circuits),
        metadata={"seed": 7, "versions": {"torch": "2"}},
    )


def of(made: Comparison, method: str) -> MethodResult:
    """The result of a method."""
    (found,) = [result for result in made.results if result.method == method]
    return found


def renamed(made: Comparison, name: str) -> Comparison:
    """The comparison under another name in every text that a caller chooses."""
    method = dataclasses.replace(made.results[0], method=name)
    return dataclasses.replace(
        made,
        task=name,
        model=name,
        results=(method, *made.results[1:]),
        skipped={name: name},
        warnings=(name,),
        memory=name,
        truth_name=name,
        projection=None if made.projection is None else made.projection.assign(circuit=name),
        metadata={"seed": name, "versions": {name: name}},
    )


def _result(experiment: Experiment, method: str, truth: Circuit | None) -> MethodResult:
    scores = discover_in(experiment, method)
    # What a clock says is another thing in every run.
    scores = dataclasses.replace(scores, seconds=(1 + scores.forwards) / 64)
    curve = faithfulness_curve(experiment, scores)
    missed = () if truth is None else missed_edges(scores, truth)
    return MethodResult(
        method=method,
        scores=scores,
        faithfulness=curve,
        circuit=scores.top(curve.edges_at_85),
        completeness=-1e-7,
        minimality=0.5,
        auroc=None if truth is None else auroc(scores, truth),
        precision=None if truth is None else 1 - len(missed) / len(truth),
        missed=missed,
        peak_mb=1.5,
        memory="by hand",
    )
