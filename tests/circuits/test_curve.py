"""Intervals of a curve against a slow loop over draws, and against single runs of its circuits."""

from __future__ import annotations

import dataclasses
import math
import sys

import numpy as np
import pytest

from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.criteria import (
    COSTLY,
    completeness,
    completeness_interval,
    minimality,
    minimality_interval,
)
from strace_lens.circuits.curve import (
    FAITHFUL,
    Faithfulness,
    PairMetrics,
    areas,
    difference,
    faithfulness_draws,
)
from strace_lens.circuits.discover.run_method import discover_in
from strace_lens.circuits.evaluate import faithfulness_curve, metric_range
from strace_lens.circuits.experiment import Experiment, make_experiment
from strace_lens.circuits.run_circuits import run_circuits
from strace_lens.measures.intervals import TAILS, draws_of
from tests import cases
from tests.circuits.made import tiny_task

SIZES = (0, 2, 5, 11, 40, 100)
FRACTIONS = (0.02, 0.11, 0.4, 1.0)
EDGES = (2, 11, 40, 100)
DRAWS = 150


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["strace_lens.circuits.curve"], "RESAMPLES", DRAWS)


def made(pairs: int, seed: int = 0, by_sign: bool = True) -> Faithfulness:
    """A curve of random metrics that rise from about 0 to about 3."""
    random = np.random.default_rng(seed)
    rise = np.linspace(0, 3, len(SIZES))[:, None]
    metrics = rise + random.normal(0, 0.6, (len(SIZES), pairs))
    signed = random.normal(1.5, 0.6, (len(FRACTIONS), pairs))
    signed[-1] = metrics[-1]
    return Faithfulness(
        ranking="mib",
        fractions=FRACTIONS,
        edges=EDGES,
        values=(0.0,) * 4,
        cpr_values=(0.1,) * 4,
        cpr=0.0,
        cmd=0.0,
        full=3.0,
        empty=0.0,
        full_gap=0.0,
        edges_at_85=40,
        pairs=PairMetrics(
            SIZES,
            tuple(map(tuple, metrics.tolist())),
            tuple(map(tuple, signed.tolist())) if by_sign else (),
        ),
    )


def slow(curve: Faithfulness) -> dict[str, list]:
    """Every draw of pairs, one after the other."""
    found: dict[str, list] = {n: [] for n in ("values", "cpr_values", "cpr", "cmd", "edges_at_85")}
    metrics = curve.pairs.metrics
    for draw in draws_of(len(metrics[0]), DRAWS, 0):

        def value(row: tuple[float, ...], draw: np.ndarray = draw) -> float:
            mean, full, empty = (
                sum(some[i] for i in draw) / len(draw) for some in (row, metrics[-1], metrics[0])
            )
            return (mean - empty) / (full - empty)

        by_size = {size: value(row) for size, row in zip(SIZES, metrics, strict=True)}
        values = [by_size[n] for n in curve.edges]
        signed = [value(row) for row in curve.pairs.by_sign] or values
        found["values"].append(values)
        found["cpr_values"].append(signed)
        found["cpr"].append(np.trapezoid(signed, FRACTIONS))
        found["cmd"].append(np.trapezoid([abs(1 - v) for v in values], FRACTIONS))
        enough = [n for n in SIZES if all(by_size[m] >= FAITHFUL - 1e-9 for m in SIZES if m >= n)]
        found["edges_at_85"].append(min(enough))
    return found


@pytest.mark.parametrize("pairs", [2, 7])
@pytest.mark.parametrize("by_sign", [True, False])
def test_every_interval_is_that_of_a_loop_over_draws(pairs: int, by_sign: bool) -> None:
    curve = made(pairs, by_sign=by_sign)
    draws = slow(curve)
    for measure in ("cpr", "cmd", "edges_at_85"):
        ends = np.quantile(draws[measure], TAILS)
        assert curve.interval(measure) == pytest.approx(tuple(ends), abs=1e-9)
    low, high = curve.interval("cmd")
    assert low < high
    table = curve.to_pandas()
    for name, values in (("faithfulness", "values"), ("faithfulness_by_sign", "cpr_values")):
        ends = np.quantile(draws[values], TAILS, axis=0)
        np.testing.assert_allclose(table[[f"{name}_low", f"{name}_high"]].T, ends, atol=1e-9)
    assert made(pairs, by_sign=by_sign).interval("cmd") == curve.interval("cmd")


def test_a_difference_is_paired() -> None:
    one, other = made(6), made(6, seed=1)
    for measure in ("cpr", "cmd"):
        gaps = np.subtract(slow(one)[measure], slow(other)[measure])
        ends = tuple(np.quantile(gaps, TAILS))
        assert difference(measure, one, other) == pytest.approx(ends, abs=1e-9)
        assert difference(measure, one, one) == (0, 0)
    with pytest.raises(ValueError, match="curves of 6 and 7 pairs"):
        difference("cmd", one, made(7))


def test_one_pair_and_a_range_in_doubt_give_no_interval() -> None:
    single = made(1)
    assert all(math.isnan(end) for end in single.interval("cpr"))
    assert single.to_pandas()["faithfulness_low"].isna().all()
    assert all(math.isnan(end) for end in difference("cmd", single, single))
    full, empty = np.array([1.0, -1.0, 0.5, -0.4]), np.zeros(4)
    assert faithfulness_draws(full[None], full, empty) is None
    assert faithfulness_draws(full[None], full + 2, empty) is not None
    with pytest.raises(ValueError, match="unknown measure 'auroc'"):
        single.interval("auroc")


def test_equal_pairs_have_an_interval_of_no_width() -> None:
    curve = made(1)
    again = PairMetrics(
        SIZES,
        tuple(row * 5 for row in curve.pairs.metrics),
        tuple(row * 5 for row in curve.pairs.by_sign),
    )
    low, high = dataclasses.replace(curve, pairs=again).interval("cpr")
    metrics = np.array(curve.pairs.by_sign)[:, 0]
    empty, full = curve.pairs.metrics[0][0], curve.pairs.metrics[-1][0]
    exact = float(areas(FRACTIONS, (metrics - empty) / (full - empty))[0])
    assert (low, high) == pytest.approx((exact, exact), abs=1e-9)


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return make_experiment(cases.model_of("gpt2"), tiny_task(4, 5))


def runs(experiment: Experiment, circuits: list[Circuit]) -> np.ndarray:
    found = run_circuits(experiment.model, experiment.task, circuits, metric=experiment.metric)
    return found.double().cpu().numpy()


def test_the_metrics_of_a_curve_are_those_of_its_circuits_alone(experiment) -> None:
    scores = discover_in(experiment, "eap")
    curve = faithfulness_curve(experiment, scores)
    sizes, metrics, by_sign = curve.pairs
    assert (sizes[0], sizes[-1]) == (0, experiment.graph.edges)
    assert {*curve.edges, curve.edges_at_85} <= {*sizes}
    inner = [size for size in sizes if size > 0]
    alone = runs(experiment, [scores.top(size) for size in inner])
    np.testing.assert_allclose(metrics[1:], alone, atol=1e-4)
    kept = [size for size in curve.edges if size]
    signed = runs(experiment, [scores.top(size, absolute=False) for size in kept])
    np.testing.assert_allclose(by_sign[-len(kept) :], signed, atol=1e-4)


def test_completeness_and_minimality_have_those_of_single_runs() -> None:
    # On every pair the empty circuit is further from the clean run than the full one.
    experiment = make_experiment(cases.model_of("gpt2"), tiny_task(4, 5), metric="kl_divergence")
    circuit = discover_in(experiment, "random").top(30)
    between = metric_range(experiment)
    full, empty = np.array(between.full_pairs), np.array(between.empty_pairs)
    drawn = faithfulness_draws(runs(experiment, [~circuit]), full, empty)
    assert drawn is not None
    ends = tuple(np.quantile(drawn[:, 0], TAILS))
    assert completeness_interval(experiment, circuit) == pytest.approx(ends, abs=1e-4)
    assert ends[0] <= completeness(experiment, circuit) <= ends[1]
    names = minimality(experiment, circuit, sample=5)
    lacking = []
    for name in names:
        keep = circuit.keep.clone()
        keep[experiment.graph.parse_edge(name)] = 0
        lacking.append(Circuit(experiment.graph, keep))
    drawn = faithfulness_draws(runs(experiment, [circuit, *lacking]), full, empty)
    assert drawn is not None
    shares = [sum(row[0] - x >= COSTLY for x in row[1:]) / len(names) for row in drawn]
    ends = tuple(np.quantile(shares, TAILS))
    assert minimality_interval(experiment, circuit, sample=5) == pytest.approx(ends, abs=0.05)
