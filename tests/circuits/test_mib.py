"""CPR and CMD as MIB's circuit track has them, against a slow evaluation that shares no code."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch

from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.evaluate import faithfulness_curve
from strace_lens.circuits.experiment import Experiment, make_experiment
from strace_lens.circuits.graph import ComponentGraph
from strace_lens.circuits.scores import Scores
from strace_lens.circuits.select_edges import Selection, greedy_order
from strace_lens.circuits.task import Task
from tests import cases
from tests.circuits import oracle_mib
from tests.circuits.test_evaluate import words_task


@functools.cache
def experiment_of(ablation: str) -> Experiment:
    return make_experiment(cases.model_of("gpt2"), task(), ablation=ablation)


@functools.cache
def task() -> Task:
    return words_task()


def named_scores(graph: ComponentGraph, level: str, seed: int = 5) -> tuple[Scores, dict]:
    """Random scores, and the same by the names of edges or nodes."""
    generator = torch.Generator().manual_seed(seed)
    cells = graph.exists.nonzero().tolist()
    sources, destinations = graph.source_names, graph.destination_names
    if level == "node":
        drawn = torch.randn(graph.sources, generator=generator)
        values = graph.exists * drawn
        named = dict(zip(sources, drawn.tolist(), strict=True))
    else:
        values = torch.randn(graph.exists.shape, generator=generator) * graph.exists
        named = {(sources[s], destinations[d]): float(values[d, s]) for d, s in cells}
    return Scores(graph, values, "drawn"), named


# ------------------------------------------------------------------ which edges are kept

PLAIN = ComponentGraph("plain", layers=2, heads=2, kv_heads=2)


def names_of(circuit: Circuit) -> set[tuple[str, str]]:
    """The edges kept, as pairs of names."""
    return {(name.split("->")[0], name.split("->")[1]) for name in circuit.edge_names()}


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_circuits_of_every_size_are_those_of_named_sets(seed: int, absolute: bool) -> None:
    scores, named = named_scores(PLAIN, "edge", seed)
    assert set(named) == set(oracle_mib.edges_of(PLAIN.layers, PLAIN.heads))
    lost = 0
    for size in range(1, PLAIN.edges + 1):
        for how, by_hand in (("top", oracle_mib.top_edges), ("greedy", oracle_mib.greedy_edges)):
            wanted = by_hand(named, size, absolute=absolute)
            circuits = [Selection(scores, "edge", how, connected) for connected in (False, True)]
            loose, tight = (one.circuit(size, absolute=absolute) for one in circuits)
            assert names_of(loose) == wanted
            assert names_of(tight) == oracle_mib.pruned(wanted)
            lost += len(loose) - len(tight)
    assert lost > 0


@pytest.mark.parametrize("absolute", [True, False])
def test_nodes_are_kept_with_all_edges_that_reach_a_kept_node(absolute: bool) -> None:
    scores, named = named_scores(PLAIN, "node")
    edges = oracle_mib.edges_of(PLAIN.layers, PLAIN.heads)
    selection = Selection(scores, "node")
    assert selection.items == len(named) == PLAIN.sources
    for size in range(1, PLAIN.sources + 1):
        kept = names_of(selection.circuit(size, absolute=absolute))
        wanted = oracle_mib.top_nodes(named, edges, size, absolute=absolute)
        assert wanted <= kept
        live = {source for source, _ in kept}
        assert len(live) == size
        assert not [e for e in kept - wanted if oracle_mib.owner(e[1]) in {*live, "logits"}]


def test_a_greedy_order_of_grouped_queries_takes_every_edge_once() -> None:
    graph = ComponentGraph("grouped", layers=2, heads=4, kv_heads=2, parallel=True)
    scores, _ = named_scores(graph, "edge")
    order = greedy_order(scores).tolist()
    assert sorted(order) == graph.exists.flatten().nonzero()[:, 0].tolist()
    reached = {graph.destinations - 1}
    for cell in order:  # every edge enters what an edge before it has reached
        to, source = divmod(cell, graph.sources)
        assert to in reached
        reached |= set(graph.feeds[:, source].nonzero()[:, 0].tolist())


def test_scores_that_are_not_effects_have_one_order() -> None:
    scores, _ = named_scores(PLAIN, "edge")
    ranked = dataclasses.replace(scores, signed=False)
    for how in ("top", "greedy"):
        both = [Selection(ranked, "edge", how).order(absolute=a).tolist() for a in (True, False)]
        assert both[0] == both[1]
        assert both[0] == Selection(scores, "edge", how).order(absolute=False).tolist()


def test_what_does_not_fit_the_scores_is_refused() -> None:
    scores, _ = named_scores(PLAIN, "edge")
    wide = dataclasses.replace(scores, values=scores.values[..., None].expand(-1, -1, 2))
    refused: list[tuple[Scores, dict[str, Any], str]] = [
        (scores, {"level": "neuron"}, "unknown level 'neuron'; choose from edge, node"),
        (scores, {"how": "best"}, "unknown selection 'best'; choose from top, greedy"),
        (scores, {"level": "node"}, "drawn scores edges, and those out of embed differ"),
        (scores, {"level": "node", "how": "greedy"}, "nodes are kept with all of their edges"),
        (scores, {"level": "node", "connected": True}, "nodes are kept with all of their edges"),
        (wide, {"how": "greedy"}, "alike at every position"),
        (wide, {"level": "node"}, "alike at every position"),
    ]
    for made, options, said in refused:
        with pytest.raises(ValueError, match=said):
            Selection(made, **options)


# ------------------------------------------------------------------ both areas

CASES = [
    pytest.param("edge", "top", "resample", False, id="edges"),
    pytest.param("node", "top", "resample", False, id="nodes"),
    pytest.param("node", "top", "zero", False, id="nodes, zero"),
    pytest.param("edge", "greedy", "resample", False, id="greedy"),
    pytest.param("edge", "top", "zero", True, id="edges, zero"),
    pytest.param("edge", "greedy", "zero", True, id="greedy, zero"),
    pytest.param("edge", "top", "mean", True, id="edges, mean"),
]


@pytest.mark.extended
@pytest.mark.parametrize(("level", "selection", "ablation", "connected"), CASES)
def test_both_areas_are_those_of_a_slow_evaluation(level, selection, ablation, connected) -> None:
    experiment = experiment_of(ablation)
    scores, named = named_scores(experiment.graph, level)
    curve = faithfulness_curve(
        experiment, scores, level=level, selection=selection, connected=connected
    )
    by_sign, by_magnitude = (
        oracle_mib.areas(
            "gpt2",
            task(),
            named,
            absolute=absolute,
            level=level,
            greedy=selection == "greedy",
            ablation=ablation,
        )
        for absolute in (False, True)
    )
    assert curve.fractions == oracle_mib.PERCENTAGES
    assert list(curve.edges) == by_magnitude.sizes
    assert curve.cpr_values == pytest.approx(by_sign.faithfulnesses, abs=1e-4)
    assert curve.values == pytest.approx(by_magnitude.faithfulnesses, abs=1e-4)
    assert curve.cpr == pytest.approx(by_sign.area_under, abs=1e-4)
    assert curve.cmd == pytest.approx(by_magnitude.area_from_1, abs=1e-4)
    assert (curve.level, curve.selection, curve.connected) == (level, selection, connected)
    assert f"{level}s" in curve.to_pandas()


@pytest.mark.extended
def test_what_is_on_no_path_matters_under_zero_ablation_alone() -> None:
    curves = {}
    for ablation in ("resample", "zero"):
        experiment = experiment_of(ablation)
        scores, _ = named_scores(experiment.graph, "edge")
        fractions = (0.05, 0.1, 0.2, 1.0)
        curves[ablation] = [
            faithfulness_curve(experiment, scores, connected=connected, fractions=fractions)
            for connected in (False, True)
        ]
    loose, tight = curves["resample"]
    assert loose.values == pytest.approx(tight.values, abs=1e-5)
    loose, tight = curves["zero"]
    assert max(abs(a - b) for a, b in zip(loose.values, tight.values, strict=True)) > 1e-3
