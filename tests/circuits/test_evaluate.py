"""Faithfulness, its areas, completeness and minimality against loops of single runs and truths."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strace_lens.circuits import evaluate
from strace_lens.circuits.circuit import (
    Circuit,
    circuit_of_edges,
    empty_circuit,
    full_circuit,
)
from strace_lens.circuits.criteria import (
    COSTLY,
    completeness,
    minimality,
    minimality_interval,
)
from strace_lens.circuits.curve import Faithfulness, areas
from strace_lens.circuits.evaluate import (
    FRACTIONS,
    _smallest_faithful,
    cmds_of,
    faithfulness,
    faithfulness_curve,
    metric_range,
)
from strace_lens.circuits.experiment import Experiment, make_experiment
from strace_lens.circuits.metric_cache import MetricCache
from strace_lens.circuits.run_circuits import run_circuits
from strace_lens.circuits.scores import Scores
from strace_lens.circuits.task import Task
from strace_lens.ground_truth.linear import linear_task, linear_weights
from strace_lens.ground_truth.models import tracr_ground_truth
from strace_lens.ground_truth.truth import written_and_read
from strace_lens.ground_truth.weights import model_of
from tests import cases, tiny
from tests.circuits.made import tiny_task
from tests.ground_truth.exact_effects import exact_effects

SEEDS = 4001, 4501

# ------------------------------------------------------------------ the areas, by hand


def test_areas_of_a_curve_worked_by_hand():
    # Trapezoids of width 0.1, 0.4 and 0.5; 1.2 is 0.2 away from 1.
    cpr, cmd = areas((0.1, 0.2, 0.6, 1.0), (0.0, 0.5, 1.2, 1.0))
    assert cpr == pytest.approx(0.1 * 0.25 + 0.4 * 0.85 + 0.4 * 1.1)
    assert cmd == pytest.approx(0.1 * 0.75 + 0.4 * 0.35 + 0.4 * 0.1)


def test_areas_are_those_of_the_benchmarks_own_code():
    # Printed by MIB's run_evaluation.py for GPT-2 small, IOI, EAP-IG on 8 examples.
    values = [
        *(0.019733655092845453, 0.0887017567842513, 0.30987243945853277, 0.6089829995759188),
        *(0.9111720307934588, 0.8767607049910842, 0.9323771262762143, 0.9045808511402504),
        *(1.013144402912753, 1.0),
    ]
    assert areas(FRACTIONS, values) == pytest.approx((0.9653902172751483, 0.04412530505505405))


def test_a_perfect_and_a_useless_ranking_on_the_benchmarks_grid():
    assert areas(FRACTIONS, [1.0] * 10) == pytest.approx((0.999, 0.0))
    assert areas(FRACTIONS, [0.0] * 10) == pytest.approx((0.0, 0.999))


# ------------------------------------------------------------------ the curve


def words_task() -> Task:
    """Prompts on which the full and the empty circuit of the tiny models are far apart."""
    clean, corrupted = (
        torch.tensor([tiny.token_ids(6, seed + pair) for pair in range(2)]) for seed in SEEDS
    )
    return dataclasses.replace(tiny_task(), clean=clean, corrupted=corrupted)


@functools.cache
def problem_of(name: str, ablation: str = "resample") -> Experiment:
    return make_experiment(cases.model_of(name), words_task(), ablation=ablation)


def random_scores(experiment: Experiment, seed: int, *positions: int) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    shape = (*experiment.graph.exists.shape, *positions)
    return Scores(experiment.graph, torch.randn(shape, generator=generator), "random")


def slow_value(
    experiment: Experiment, scores: Scores, size: int, *, absolute: bool = True
) -> float:
    """Faithfulness of the best edges, ranked by `sorted` and run alone."""
    values = scores.values.abs() if absolute else scores.values
    exists = experiment.graph.exists
    if values.ndim == 3:
        exists = exists[..., None].expand(values.shape)
    cells = sorted(exists.nonzero().tolist(), key=lambda cell: -float(values[tuple(cell)]))
    keep = torch.zeros_like(exists)
    for cell in cells[:size]:
        keep[tuple(cell)] = True

    full, empty = slow_ends(experiment)
    return (slow_mean(experiment, Circuit(experiment.graph, keep)) - empty) / (full - empty)


@functools.cache
def slow_ends(experiment: Experiment) -> tuple[float, float]:
    graph = experiment.graph
    return slow_mean(experiment, full_circuit(graph)), slow_mean(experiment, empty_circuit(graph))


def slow_mean(experiment: Experiment, circuit: Circuit) -> float:
    run = run_circuits(experiment.model, experiment.task, [circuit], ablation=experiment.ablation)
    return float(run.double().mean())


@pytest.mark.extended
@pytest.mark.parametrize(
    ("name", "ablation", "ranking"),
    [
        ("gpt2", "resample", "signed"),
        ("llama", "mean", "signed"),
        ("llama", "zero", "absolute"),
        ("gpt2", "resample", "mib"),
    ],
)
def test_every_point_of_the_curve_is_one_run_alone(name, ablation, ranking):
    experiment = problem_of(name, ablation)
    scores = random_scores(experiment, 3)
    fractions = (0.004, 0.1, 0.35, 0.8, 1.0)
    curve = faithfulness_curve(experiment, scores, fractions=fractions, ranking=ranking)
    assert curve.fractions == fractions
    assert curve.edges == tuple(int(f * experiment.graph.edges) for f in fractions)
    by_sign, by_magnitude = (
        [slow_value(experiment, scores, n, absolute=absolute) for n in curve.edges]
        for absolute in (False, True)
    )
    assert max(abs(a - b) for a, b in zip(by_sign, by_magnitude, strict=True)) > 1e-2
    for_cpr = by_magnitude if ranking == "absolute" else by_sign
    for_cmd = by_sign if ranking == "signed" else by_magnitude
    assert curve.values == pytest.approx(for_cmd, abs=1e-4)
    assert curve.cpr_values == pytest.approx(for_cpr, abs=1e-4)
    assert curve.cpr == pytest.approx(areas(fractions, for_cpr)[0], abs=1e-4)
    assert curve.cmd == pytest.approx(areas(fractions, for_cmd)[1], abs=1e-4)
    assert curve.full_gap < 1e-4


def test_faithfulness_warns_of_a_task_that_the_model_fails():
    experiment = problem_of("gpt2")
    task, scores = experiment.task, random_scores(experiment, 3)
    ends = metric_range(experiment)
    if ends.full > ends.empty:
        task = dataclasses.replace(task, answers=task.incorrect, incorrect=task.answers)
    low, high = sorted((ends.full, ends.empty))
    said = f"is {-high:.3g} on clean" if ends.full > ends.empty else f"is {low:.3g} on clean"
    with pytest.warns(UserWarning, match=said) as told:
        faithfulness(experiment.model, task, scores, fractions=(0.5, 1.0))
    assert len(told) == 1


def test_faithfulness_is_silent_where_the_model_does_the_task():
    experiment = problem_of("gpt2")
    logits = experiment.clean[1][:, -1]
    best, worst = logits.argmax(-1, keepdim=True), logits.argmin(-1, keepdim=True)
    task = dataclasses.replace(experiment.task, answers=best.cpu(), incorrect=worst.cpu())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        faithfulness(experiment.model, task, random_scores(experiment, 3), fractions=(0.5, 1.0))


@pytest.mark.extended
def test_both_rankings_of_the_benchmark_are_the_single_ones_put_together():
    experiment = problem_of("gpt2")
    scores = random_scores(experiment, 3)
    both, signed, absolute = (
        faithfulness_curve(experiment, scores, ranking=ranking)
        for ranking in ("mib", "signed", "absolute")
    )
    assert both.cpr == pytest.approx(signed.cpr, abs=1e-6)
    assert (both.cmd, both.edges_at_85) == (absolute.cmd, absolute.edges_at_85)
    assert abs(signed.cpr - absolute.cpr) > 1e-3
    shown = ["faithfulness", "faithfulness_low", "faithfulness_high"]
    by_sign = ["faithfulness_by_sign", "faithfulness_by_sign_low", "faithfulness_by_sign_high"]
    assert list(both.to_pandas()) == ["fraction", "edges", *shown, *by_sign]
    assert list(signed.to_pandas()) == ["fraction", "edges", *shown]


@pytest.mark.extended
@pytest.mark.parametrize("negative", [0, 1])
def test_circuits_that_are_the_same_by_sign_and_by_magnitude_run_once(negative):
    experiment = problem_of("gpt2")
    metric_range(experiment)
    made = random_scores(experiment, 3)
    values = made.values.abs()
    if negative:  # the weakest of all: only the circuits of half the edges and more hold it
        cells = experiment.graph.exists.nonzero()
        values[tuple(cells[values[tuple(cells.T)].argmin()])] *= -1
    scores = dataclasses.replace(made, values=values)
    rows = [experiment.passes.forward_rows]
    for ranking in ("absolute", "mib"):
        faithfulness_curve(experiment, scores, ranking=ranking)
        rows.append(experiment.passes.forward_rows)
    assert rows[2] - rows[1] == rows[1] - rows[0] > 0


def test_the_default_grid_on_a_graph_too_small_for_it_keeps_no_edge_at_first():
    experiment = problem_of("gpt2")
    curve = faithfulness_curve(experiment, random_scores(experiment, 0))
    assert curve.fractions == FRACTIONS
    assert curve.edges[0] == 0
    assert curve.values[0] == 0.0
    assert curve.edges[-1] == experiment.graph.edges
    assert curve.values[-1] == 1.0


@pytest.mark.extended
def test_edges_by_position():
    experiment = problem_of("gpt2")
    scores = random_scores(experiment, 1, 6)
    curve = faithfulness_curve(experiment, scores, fractions=(0.2, 0.6))
    assert curve.edges == tuple(int(f * experiment.graph.edges * 6) for f in (0.2, 0.6))
    slow = [slow_value(experiment, scores, n) for n in curve.edges]
    assert curve.values == pytest.approx(slow, abs=1e-4)


def test_edges_on_no_path_change_nothing_under_resample():
    experiment = problem_of("gpt2")
    circuits = [random_scores(experiment, seed).top(0.15) for seed in range(4)]
    pruned = [circuit.connected() for circuit in circuits]
    assert all(len(p) < len(c) for p, c in zip(pruned, circuits, strict=True))
    runs = run_circuits(experiment.model, experiment.task, [*circuits, *pruned])
    torch.testing.assert_close(runs[:4], runs[4:], atol=1e-4, rtol=1e-4)


@pytest.mark.extended
def test_no_circuit_of_a_cache_is_run_twice_unless_the_model_is_hooked():
    experiment = make_experiment(cases.model_of("llama"), words_task())
    scores, cache = random_scores(experiment, 5), MetricCache(experiment)

    def measured() -> tuple[Faithfulness, dict[str, float], tuple[float, float]]:
        curve = faithfulness_curve(experiment, scores, cache=cache)
        circuit = scores.top(30)
        costs = minimality(experiment, circuit, sample=3, cache=cache)
        return curve, costs, minimality_interval(experiment, circuit, sample=3, cache=cache)

    first = measured()
    before = experiment.passes.forward_rows
    assert measured() == first
    assert experiment.passes.forward_rows == before
    point = experiment.model.hook_dict["blocks.1.hook_mlp_out"]
    point.add_hook(lambda value, hook: value + 0.5)
    try:
        other = faithfulness_curve(experiment, scores, cache=cache)
    finally:
        point.remove_hooks("fwd")
    assert max(abs(np.subtract(other.values, first[0].values))) > 1e-3
    assert measured() == first
    assert experiment.passes.forward_rows > before


def test_without_a_cache_every_circuit_is_run_again():
    experiment = problem_of("gpt2")
    circuit = random_scores(experiment, 5).top(30)
    metric_range(experiment)
    rows = [experiment.passes.forward_rows]
    for _ in range(2):
        completeness(experiment, circuit)
        rows.append(experiment.passes.forward_rows)
    assert rows[2] - rows[1] == rows[1] - rows[0] == len(experiment.task)


@pytest.mark.extended
def test_cmds_of_many_rankings_are_those_of_each_alone():
    experiment = problem_of("gpt2")
    rankings = [
        dataclasses.replace(random_scores(experiment, seed), signed=False) for seed in range(3)
    ]
    alone = [faithfulness_curve(experiment, scores).cmd for scores in rankings]
    assert cmds_of(experiment, rankings) == pytest.approx(alone, abs=1e-6)
    assert len(set(alone)) == 3


def test_the_range_is_the_clean_and_the_corrupted_run():
    experiment = problem_of("gpt2")
    between = metric_range(experiment)
    clean = experiment.score(experiment.clean[1], experiment.reference)
    corrupted = experiment.score(experiment.corrupted[1], experiment.reference)
    assert between.full == pytest.approx(float(clean.mean()), abs=1e-4)
    assert between.empty == pytest.approx(float(corrupted.mean()), abs=1e-4)
    means = torch.tensor([[between.empty], [between.full], [2 * between.full - between.empty]])
    assert between.faithfulness(means) == pytest.approx([0, 1, 2], abs=1e-5)


# ------------------------------------------------------------------ edges at 85 %


def smallest(level_from: int, edges: int, grid: list[int], resolution: float = 0.0) -> int:
    measured = {0: 0.0, edges: 1.0} | {n: float(n >= level_from) for n in grid}
    return _smallest_faithful(measured, lambda n: float(n >= level_from), resolution)


@settings(max_examples=60)
@given(st.data())
def test_bisection_finds_the_first_edge_of_a_step(data):
    edges = data.draw(st.integers(1, 5000))
    first = data.draw(st.integers(1, edges))
    grid = data.draw(st.lists(st.integers(1, edges), max_size=6))
    assert smallest(first, edges, grid) == first
    rough = smallest(first, edges, grid, 0.01)
    assert first <= rough <= max(first + 1, first / 0.99)


def test_bisection_starts_above_the_last_size_that_fails():
    measured = {0: 0.0, 10: 0.9, 20: 0.5, 40: 0.95, 80: 0.86, 100: 1.0}
    asked: list[int] = []

    def measure(n: int) -> float:
        asked.append(n)
        return 0.85 if n >= 33 else 0.8499

    assert _smallest_faithful(measured, measure, 0.0) == 33
    assert asked[0] == 30
    assert all(20 < n < 40 for n in asked)


def test_a_coarse_resolution_runs_nothing_further():
    def never(n: int) -> float:
        raise AssertionError(n)

    assert _smallest_faithful({0: 0.0, 50: 0.2, 100: 0.9, 1000: 1.0}, never, 1.0) == 100


def test_edges_at_85_is_faithful_and_one_edge_less_is_not(monkeypatch):
    monkeypatch.setattr(evaluate, "RESOLUTION", 0.0)
    experiment = problem_of("gpt2")
    scores = random_scores(experiment, 7)
    curve = faithfulness_curve(experiment, scores)
    assert slow_value(experiment, scores, curve.edges_at_85) >= 0.85 - 1e-5
    assert slow_value(experiment, scores, curve.edges_at_85 - 1) < 0.85 + 1e-5
    larger = [v for n, v in zip(curve.edges, curve.values, strict=True) if n >= curve.edges_at_85]
    assert min(larger) >= 0.85


# ------------------------------------------------------------------ completeness, minimality


@functools.cache
def linear_problem(ablation: str = "resample") -> Experiment:
    weights = linear_weights()
    return make_experiment(model_of(weights, "linear"), linear_task(12), ablation=ablation)


def effects(ablation: str = "resample") -> torch.Tensor:
    return exact_effects(linear_weights(), linear_problem(ablation).task, ablation).mean(0)


@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
def test_the_true_circuit_of_a_linear_model_is_faithful_and_complete(ablation):
    experiment = linear_problem(ablation)
    truth = written_and_read(linear_weights(), experiment.graph)
    assert 0 < len(truth) < experiment.graph.edges
    assert completeness(experiment, truth) == pytest.approx(0, abs=1e-5)
    assert completeness(experiment, ~truth) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
def test_costs_in_a_linear_model_are_the_exact_effects(ablation):
    experiment = linear_problem(ablation)
    truth = written_and_read(linear_weights(), experiment.graph)
    between = metric_range(experiment)
    exact = effects(ablation) / (between.full - between.empty)
    for circuit in (truth, full_circuit(experiment.graph)):
        found = minimality(experiment, circuit, sample=None)
        assert list(found) == circuit.edge_names()
        wanted = {name: float(exact[experiment.graph.parse_edge(name)]) for name in found}
        assert found == pytest.approx(wanted, abs=1e-4)


def test_ranking_a_linear_model_by_exact_effects_beats_the_reverse():
    experiment = linear_problem()
    best = Scores(experiment.graph, effects().float(), "exact")
    worst = Scores(experiment.graph, -effects().float(), "reverse")
    good, bad = (faithfulness_curve(experiment, s, ranking="signed") for s in (best, worst))
    assert good.cpr > bad.cpr
    assert good.edges_at_85 < bad.edges_at_85


def test_a_wrong_circuit_is_neither_complete_nor_minimal():
    experiment = linear_problem()
    truth = written_and_read(linear_weights(), experiment.graph)
    direct = ("embed->logits",)
    missing = circuit_of_edges(experiment.graph, set(truth.edge_names()).difference(direct))
    between = metric_range(experiment)
    share = float(effects()[experiment.graph.parse_edge(*direct)]) / (between.full - between.empty)
    assert abs(share) > 0.01
    assert completeness(experiment, missing) == pytest.approx(share, abs=1e-5)
    idle = (~truth).edge_names()[:5]
    padded = circuit_of_edges(experiment.graph, [*truth.edge_names(), *idle])
    costs = minimality(experiment, padded, sample=None)
    assert [costs[name] for name in idle] == pytest.approx([0] * 5, abs=1e-5)


@pytest.mark.extended
def test_the_true_circuits_of_a_compiled_program_are_faithful_complete_and_minimal():
    pytest.importorskip("tracr")
    known = tracr_ground_truth("fraction-of-previous", pairs=8)
    for ablation in ("resample", "zero", "mean"):
        experiment = make_experiment(known.model, known.task, ablation=ablation)
        truth = known.truth(ablation)
        assert completeness(experiment, truth) == pytest.approx(0, abs=1e-4)
        found = minimality(experiment, truth)
        assert min(found.values()) >= COSTLY
        assert min(minimality(experiment, full_circuit(experiment.graph)).values()) < COSTLY


@pytest.mark.extended
def test_one_edge_at_a_time_is_one_run_each():
    experiment = problem_of("llama")
    circuit = random_scores(experiment, 2).top(6)
    found = minimality(experiment, circuit)
    between = metric_range(experiment)
    for name, cost in found.items():
        rest = circuit_of_edges(experiment.graph, set(circuit.edge_names()) - {name})
        less = slow_mean(experiment, circuit) - slow_mean(experiment, rest)
        assert cost == pytest.approx(less / (between.full - between.empty), abs=1e-4)
    assert set(found) == set(circuit.edge_names())


def test_a_sample_is_drawn_from_the_seed():
    experiment = problem_of("gpt2")
    circuit = random_scores(experiment, 2).top(80)
    costs = minimality(experiment, circuit, sample=None)  # more than one batch of masks
    first, again, other = (minimality(experiment, circuit, sample=7, seed=s) for s in (0, 0, 1))
    assert first == again
    assert list(first) != list(other)
    assert len(first) == 7
    assert len(costs) == 80
    assert first == pytest.approx({name: costs[name] for name in first}, abs=1e-4)


def test_minimality_of_edges_by_position_and_of_weights():
    experiment = problem_of("gpt2")
    circuit = random_scores(experiment, 4, 6).top(5)
    found = minimality(experiment, circuit)
    assert list(found) == circuit.edge_names()
    assert all("@" in name for name in found)
    soft = Circuit(experiment.graph, experiment.graph.exists * 0.5)
    ((edge, cost),) = minimality(experiment, soft, sample=1).items()
    keep = soft.keep.clone()
    keep[experiment.graph.parse_edge(edge)] = 0
    runs = run_circuits(experiment.model, experiment.task, [soft, Circuit(experiment.graph, keep)])
    whole, less = metric_range(experiment).faithfulness(runs)
    assert cost == pytest.approx(whole - less, abs=1e-4)


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("metric", ["logit_difference", "probability_difference", "kl_divergence"])
def test_equal_prompts_are_refused_whatever_rounding_makes_of_them(name, metric):
    task = words_task()
    same = dataclasses.replace(task, corrupted=task.clean)
    words = f"'words' has a mean {metric} of .* needs the two to differ"
    with pytest.raises(ValueError, match=words):
        metric_range(make_experiment(cases.model_of(name), same, metric=metric))


def _curve(**options) -> Callable[[], Faithfulness]:
    return lambda: faithfulness_curve(
        problem_of("gpt2"), random_scores(problem_of("gpt2"), 0), **options
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (_curve(fractions=(0.1, 3.0)), r"in \(0, 1\]; got 3.0"),
        (_curve(fractions=(0.5, 0.1)), "rise strictly; got 0.1 after 0.5"),
        (_curve(fractions=(0.5,)), "at least two fractions"),
        (_curve(ranking="sign"), "unknown ranking 'sign'; choose from mib, signed, absolute"),
        (
            lambda: faithfulness_curve(problem_of("gpt2"), random_scores(problem_of("llama"), 0)),
            "belongs to tiny-llama",
        ),
        (
            lambda: completeness(
                problem_of("gpt2"),
                full_circuit(problem_of("gpt2").graph),
                cache=MetricCache(problem_of("llama")),
            ),
            "the cache is of another experiment, on task",
        ),
        (
            lambda: completeness(problem_of("gpt2"), full_circuit(problem_of("llama").graph)),
            "belongs to tiny-llama",
        ),
        (
            lambda: minimality(problem_of("gpt2"), full_circuit(problem_of("llama").graph)),
            "belongs to tiny-llama",
        ),
        (
            lambda: minimality(problem_of("gpt2"), empty_circuit(problem_of("gpt2").graph)),
            "without edges",
        ),
        (
            lambda: minimality(
                problem_of("gpt2"), full_circuit(problem_of("gpt2").graph), sample=0
            ),
            "sample must be at least 1",
        ),
    ],
)
def test_bad_input_is_one_clear_error(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_scores_with_positions_need_prompts_of_one_length():
    task = tiny_task(3, 7, lengths=torch.tensor([3, 7, 5]))
    experiment = make_experiment(cases.model_of("gpt2"), task)
    with pytest.raises(ValueError, match="one length"):
        faithfulness_curve(experiment, random_scores(experiment, 0, 7))
