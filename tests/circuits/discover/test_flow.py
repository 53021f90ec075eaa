"""Rankings from the clean run against their definitions, source by source, on the slow model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from strace_lens.circuits.discover.attribution import eap_ig
from strace_lens.circuits.discover.flow import (
    best_first,
    ifr,
    importance,
    norms,
    proximities,
    strace,
    strace_contrast,
)
from strace_lens.circuits.experiment import make_experiment
from strace_lens.circuits.graph import ComponentGraph
from tests import cases, oracle
from tests.circuits.made import plain_graph, single_pairs, tiny_task, uneven_task
from tests.circuits.oracle_patching import full_run

NAMES = ["llama", "gpt2", "phi"]
MEASURES = {"l1": norms, "proximity": proximities}


def slow_importance(name: str, tokens: list[int], kind: str) -> Tensor:
    """Shares of every source at every token, written out: the mean over tokens."""
    graph = plain_graph(name)
    outputs = full_run(oracle.plain(name), tokens).outputs
    shares = torch.zeros(graph.destinations, graph.sources, dtype=torch.float64)
    for destination in range(graph.destinations):
        sources = graph.exists[destination].nonzero()[:, 0].tolist()
        vectors = [outputs[graph.source_names[s]] for s in sources]
        for token in range(len(tokens)):
            read = sum(v[token] for v in vectors)
            if kind == "l1":
                sizes = [v[token].abs().sum() for v in vectors]
            else:
                left = [(read - v[token]).abs().sum() for v in vectors]
                sizes = [max(read.abs().sum() - x, torch.tensor(0.0)) for x in left]
            for source, size in zip(sources, sizes, strict=True):
                shares[destination, source] += size / sum(sizes) / len(tokens)
    return shares.float()


def slow_best_first(graph: ComponentGraph, importance: Tensor) -> list[tuple[int, int]]:
    """The order of edges, the frontier searched anew at every step."""
    frontier = [(graph.destinations - 1, s) for s in range(graph.sources)]
    reached, order = {graph.destinations - 1}, []
    while frontier:
        best = max(frontier, key=lambda edge: float(importance[edge]))  # the first of equals
        frontier.remove(best)
        order.append(best)
        for destination in graph.feeds[:, best[1]].nonzero()[:, 0].tolist():
            if destination not in reached:
                reached.add(destination)
                count = int(graph.exists[destination].sum())
                frontier += [(destination, s) for s in range(count)]
    return order


@pytest.mark.parametrize("kind", MEASURES)
@pytest.mark.parametrize("name", NAMES)
def test_importance_against_the_slow_model(name: str, kind: str) -> None:
    task = tiny_task(2, 5)
    experiment = make_experiment(cases.model_of(name), task)
    ours = importance(experiment, MEASURES[kind])
    slow = torch.stack([slow_importance(name, row.tolist(), kind) for row in task.clean]).mean(0)
    torch.testing.assert_close(ours, slow, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.sum(1), torch.ones(len(ours)))


@pytest.mark.parametrize("kind", MEASURES)
def test_padding_counts_for_nothing(kind: str) -> None:
    task, model = uneven_task(), cases.model_of("llama")
    whole = importance(make_experiment(model, task), MEASURES[kind])
    by_pair = [
        importance(make_experiment(model, one), MEASURES[kind]) for one in single_pairs(task)
    ]
    weight = task.lengths / task.lengths.sum()
    expected = (torch.stack(by_pair) * weight[:, None, None]).sum(0)
    torch.testing.assert_close(whole, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("method", "measure"), [(strace, norms), (ifr, proximities)])
@pytest.mark.parametrize("name", NAMES)
def test_order_is_that_of_the_plain_search(name: str, method, measure) -> None:
    experiment = make_experiment(cases.model_of(name), tiny_task(2, 5))
    scores, graph = method(experiment), experiment.graph
    order = slow_best_first(graph, importance(experiment, measure))
    assert len(order) == len(set(order)) == graph.edges
    ranked = sorted(order, key=lambda edge: -float(scores[edge]))
    assert ranked == order
    assert float(scores.max()) == 1
    assert float(scores[graph.exists].min()) == pytest.approx(1 / graph.edges, abs=1e-6)
    assert not scores[~graph.exists].any()


def test_ties_go_to_the_edge_pushed_first() -> None:
    graph = ComponentGraph("ties", layers=2, heads=2, kv_heads=1, parallel=True)
    flat = torch.ones(graph.exists.shape)
    scores = best_first(graph, flat)
    order = slow_best_first(graph, flat)
    assert sorted(order, key=lambda edge: -float(scores[edge])) == order


@pytest.mark.parametrize("name", NAMES)
def test_towards_the_contrast_the_search_goes_by_the_effects(name: str) -> None:
    experiment = make_experiment(cases.model_of(name), tiny_task(2, 5))
    scores, graph = strace_contrast(experiment, steps=3), experiment.graph
    order = slow_best_first(graph, eap_ig(experiment, steps=3).abs())
    assert sorted(order, key=lambda edge: -float(scores[edge])) == order
    assert order != slow_best_first(graph, importance(experiment, norms))


@pytest.mark.parametrize("method", [strace, strace_contrast])
def test_every_size_hangs_from_the_logits(method) -> None:
    experiment = make_experiment(cases.model_of("gpt2"), tiny_task(2, 5))
    scores, graph = method(experiment), experiment.graph
    reached = torch.zeros(graph.destinations, dtype=torch.bool)
    reached[-1] = True
    for cell in scores.flatten().argsort(descending=True)[: graph.edges].tolist():
        destination, source = divmod(cell, graph.sources)
        assert reached[destination]
        reached |= graph.feeds[:, source]


def test_only_the_clean_prompts_are_run() -> None:
    experiment = make_experiment(cases.model_of("llama"), tiny_task(3, 5))
    strace(experiment)
    assert experiment.passes.forward_rows == 3
    ifr(experiment)  # the clean run is kept
    assert experiment.passes.forward_rows == 3
    assert experiment.passes.backward_rows == 0


def test_a_small_budget_changes_nothing() -> None:
    task, model = tiny_task(3, 5), cases.model_of("llama")
    whole = importance(make_experiment(model, task), proximities)
    small = importance(make_experiment(model, task, memory_budget=1), proximities)
    torch.testing.assert_close(small, whole, atol=1e-6, rtol=1e-5)
