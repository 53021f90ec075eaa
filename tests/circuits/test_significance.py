"""Tests of circuits: known circuits pass, random ones fail, and p-values are uniform where due."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from strace_lens.circuits import significance
from strace_lens.circuits.circuit import Circuit, empty_circuit, full_circuit
from strace_lens.circuits.random_circuits import random_circuits
from strace_lens.circuits.significance import (
    STOP_AFTER,
    TESTS,
    equivalence_p_value,
    hsic,
    sequential_p_value,
)
from strace_lens.ground_truth.models import GroundTruth, ground_truth
from tests.circuits.made import GROUPED, random_keep

verdicts = significance.circuit_tests
AGAINST_RANDOM = ["sufficiency", "partial necessity"]


@functools.cache
def known(name: str = "linear", pairs: int = 16) -> GroundTruth:
    return ground_truth(name, pairs=pairs)


def results(circuit: Circuit, **options: Any) -> pd.DataFrame:
    made = known()
    return verdicts(made.model, made.task, circuit, **options).set_index("test")


# ------------------------------------------------------------------ verdicts


@pytest.mark.parametrize(
    "name",
    ["linear", *(pytest.param(n, marks=pytest.mark.extended) for n in ("tracr-reverse",))],
)
def test_a_known_circuit_passes_every_test_and_a_random_one_does_not(name: str) -> None:
    if name.startswith("tracr"):
        pytest.importorskip("tracr", reason="Tracr is not installed")
    made = known(name)
    truth = made.truth("resample")
    table = verdicts(made.model, made.task, truth, draws=39)
    assert table["test"].tolist() == list(TESTS)
    assert table["verdict"].tolist() == ["pass"] * 5
    other = next(random_circuits(truth, "random", 5))
    found = verdicts(made.model, made.task, other, draws=39).set_index("test")["verdict"]
    fails = ["sufficiency", "partial necessity", "minimality", "equivalence"]
    assert (found[fails] == "fail").all()


def test_an_edge_that_does_nothing_makes_a_circuit_not_minimal() -> None:
    truth = known().truth("resample")
    keep = truth.keep.bool().clone()
    dead = (truth.exists & ~truth.kept).nonzero()[0]
    keep[tuple(dead)] = True
    table = results(Circuit(truth.graph, keep), tests=["minimality"], draws=39, sample=100)
    assert table.loc["minimality", "verdict"] == "fail"
    assert table.loc["minimality", "statistic"] == 0


def test_half_of_a_circuit_leaves_its_complement_dependent_on_the_model() -> None:
    generator = np.random.default_rng(0)
    a, noise = generator.normal(size=(2, 40))
    statistic, permuted = hsic(a, a**2 + 0.1 * noise, 199, 0)
    assert (permuted >= statistic).mean() < 0.01
    full = full_circuit(known().truth("resample").graph)
    table = results(full, tests=["non-independence", "minimality", "equivalence"])
    # The complement of all edges is the corrupted run, and no path can be added to all edges.
    assert table["verdict"].tolist() == ["pass", "undefined", "pass"]
    assert math.isnan(table.loc["minimality", "p_value"])


@pytest.mark.extended
def test_the_same_seed_gives_the_same_table_in_any_budget() -> None:
    made = known(pairs=2)
    circuit = next(random_circuits(made.truth("resample"), "random", 3))
    options: dict[str, Any] = {"tests": ["sufficiency", "minimality"], "draws": 19, "sample": 2}

    def table(**others: Any) -> pd.DataFrame:
        return verdicts(made.model, made.task, circuit, **options, **others)

    first = table()
    pd.testing.assert_frame_equal(table(), first)
    pd.testing.assert_frame_equal(table(memory_budget=1), first, rtol=1e-4, atol=1e-6)
    connected = [table(reference="connected", seed=seed) for seed in (0, 0, 1)]
    assert connected[0].equals(connected[1])
    assert not connected[0].equals(connected[2])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tests": ["purity"]}, "unknown test 'purity'; choose from sufficiency"),
        ({"tests": []}, "no test to make"),
        ({"reference": "other"}, "unknown reference 'other'; choose from random, connected"),
        ({"draws": 18}, "18 draws cannot give a p-value of 0.05; give at least 19"),
        ({"sample": 0}, "sample must be at least 1"),
    ],
)
def test_what_cannot_be_tested_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        results(known().truth("resample"), **options)


def test_a_circuit_without_edges_or_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="without edges claims nothing"):
        results(empty_circuit(known().truth("resample").graph))
    with pytest.raises(ValueError, match="belongs to grouped"):
        results(full_circuit(GROUPED))


# ------------------------------------------------------------------ p-values


def test_sequential_p_values_by_hand() -> None:
    assert sequential_p_value([False] * 18, 19) is None
    assert sequential_p_value([False] * 19, 19) == (0.05, 19)
    assert sequential_p_value([True] + [False] * 18, 19) == (0.1, 19)
    wells = [False] * 5 + [True] * 20
    assert sequential_p_value(wells, 99) == (STOP_AFTER / 15, 15)
    assert sequential_p_value(wells[:14], 99) is None
    assert sequential_p_value([*wells[:15], False, True], 99) == (STOP_AFTER / 15, 15)


def test_sequential_p_values_are_uniform_under_the_null() -> None:
    generator = np.random.default_rng(0)
    values = generator.random((4000, 100))
    found = [sequential_p_value((row[1:] >= row[0]).tolist(), 99) for row in values]
    p_values = np.array([p.value for p in found if p is not None])
    assert len(p_values) == len(values)
    for level in sorted(set(p_values)):
        error = 4 * math.sqrt(level * (1 - level) / len(values))
        assert abs((p_values <= level).mean() - level) <= error


@pytest.mark.extended
def test_p_values_of_random_circuits_are_uniform() -> None:
    made, draws = known(pairs=3), 19
    truth = made.truth("resample")
    p_values = []
    for seed in range(60):
        own = next(random_circuits(truth, "random", 1000 + seed))
        table = verdicts(
            made.model, made.task, own, tests=AGAINST_RANDOM[1:], draws=draws, seed=seed
        )
        p_values.append(table["p_value"][0])
    # Kolmogorov and Smirnov's distance, at the values that a p-value takes, and its 1 % point.
    gaps = [np.mean(np.array(p_values) <= p) - p for p in sorted(set(p_values))]
    assert np.abs(gaps).max() < 1.63 / math.sqrt(len(p_values))


def test_equivalence_p_values_by_enumeration() -> None:
    pairs, margin = 9, 0.1
    for count in range(pairs + 1):
        slow = 0.0
        for outcome in itertools.product((0, 1), repeat=pairs):
            if abs(sum(outcome) - pairs / 2) >= abs(count - pairs / 2):
                better = sum(outcome)
                slow += (0.5 + margin) ** better * (0.5 - margin) ** (pairs - better)
        assert equivalence_p_value(count / pairs, pairs, margin) == pytest.approx(min(1, slow))


def test_the_criterion_of_independence_by_matrices() -> None:
    a, b = np.random.default_rng(1).normal(size=(2, 7))

    def kernel(sample: np.ndarray) -> np.ndarray:
        apart = [abs(x - y) for x, y in itertools.combinations(sample, 2)]
        return np.exp(-(((sample[:, None] - sample) / np.median(apart)) ** 2) / 2)

    centre = np.eye(7) - 1 / 7
    slow = np.trace(kernel(a) @ centre @ kernel(b) @ centre) / 49
    statistic, permuted = hsic(a, b, 5, 0)
    assert statistic == pytest.approx(slow)
    assert len(set(permuted)) == 5
    assert hsic(a, np.ones(7), 5, 0)[0] == 0


# ------------------------------------------------------------------ random circuits


@pytest.mark.parametrize("positions", [0, 3])
def test_random_circuits_hold_the_same_weights(positions: int) -> None:
    keep = random_keep(GROUPED, 0, soft=True, positions=positions)
    keep = torch.where(keep < 0.4, keep, torch.zeros(()))
    circuit = Circuit(GROUPED, keep * GROUPED.exists_like(keep))
    first, second = itertools.islice(random_circuits(circuit, "random", 4), 2)
    again = next(random_circuits(circuit, "random", 4))
    assert bool((first.keep == again.keep).all())
    for drawn in (first, second):
        assert bool((drawn.keep != circuit.keep).any())
        assert not bool(drawn.keep[~drawn.exists].any())
        assert bool(
            (drawn.keep.flatten().sort().values == circuit.keep.flatten().sort().values).all()
        )


def test_connected_circuits_are_the_fewest_edges_of_a_random_order() -> None:
    circuit = Circuit(GROUPED, random_keep(GROUPED, 1) & GROUPED.exists)
    generator, cells = torch.Generator().manual_seed(0), GROUPED.exists.nonzero()
    for drawn in itertools.islice(random_circuits(circuit, "connected", 0), 4):
        order = cells[torch.randperm(len(cells), generator=generator)]
        keep = torch.zeros_like(GROUPED.exists)
        for edge in order.tolist():
            keep[tuple(edge)] = True
            if len(part := Circuit(GROUPED, keep).connected()) >= len(circuit):
                break
        assert bool((drawn.keep == part.keep).all())
        assert bool((drawn.connected().keep == drawn.keep).all())
