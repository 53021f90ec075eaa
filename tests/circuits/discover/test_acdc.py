"""ACDC against the plain algorithm: one edge and one run at a time."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.discover.acdc import acdc
from strace_lens.circuits.discover.attribution import eap
from strace_lens.circuits.discover.run_method import discover
from strace_lens.circuits.experiment import make_experiment
from strace_lens.circuits.run_circuits import run_circuits
from strace_lens.circuits.task import Task
from strace_lens.ground_truth.weights import Weights, model_of
from tests import cases
from tests.circuits.made import uneven_task


@functools.cache
def small_model() -> Any:
    """Two layers of two heads, no MLP, all weights random: 29 edges."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.6

    heads = [normal(2, 2, 8, 4) for _ in range(3)]
    weights = Weights(
        normal(12, 8), normal(6, 8), *heads, normal(2, 2, 4, 8), normal(8, 12), None, causal=True
    )
    return model_of(weights, "small")


def small_task() -> Task:
    tokens = torch.randint(12, (2, 3, 5), generator=torch.Generator().manual_seed(1))
    answers = torch.tensor([[0], [1], [2]])
    lengths = torch.full((3,), 5)
    return Task("small", *tokens, lengths, answers, answers + 5, "logit_difference")


def plain_acdc(
    model: Any, task: Task, tau: float, metric: str, tested: Tensor
) -> tuple[Tensor, Tensor]:
    """The circuit, and what each edge cost when it was tested."""
    graph = make_experiment(model, task).graph

    def value(keep: Tensor) -> float:
        return float(run_circuits(model, task, [Circuit(graph, keep)], metric=metric).mean())

    keep, now = graph.exists.clone(), value(graph.exists)
    losses = torch.zeros(keep.shape)
    for destination in reversed(range(graph.destinations)):
        for source in reversed(tested[destination].nonzero()[:, 0].tolist()):
            trial = keep.clone()
            trial[destination, source] = False
            then = value(trial)
            losses[destination, source] = now - then
            if now - then < tau:
                keep, now = trial, then
    return keep, losses


@pytest.mark.extended
@pytest.mark.parametrize(
    ("tau", "budget", "objective"),
    [
        (0.003, 2**27, "kl_divergence"),
        (0.03, 2**15, "task"),
        (0.03, 2**27, "task"),
        (0.2, 1, "kl_divergence"),
    ],
)
def test_batches_give_what_one_at_a_time_gives(tau: float, budget: int, objective: str) -> None:
    model, task = small_model(), small_task()
    experiment = make_experiment(model, task, memory_budget=budget)
    ours = acdc(experiment, tau=tau, objective=objective)
    exists = experiment.graph.exists
    metric = "logit_difference" if objective == "task" else objective
    keep, losses = plain_acdc(model, task, tau, metric, exists)
    assert 0 < int(keep.sum()) < experiment.graph.edges
    assert torch.equal(exists & (ours >= tau), keep)
    torch.testing.assert_close(ours, losses, atol=1e-5, rtol=1e-4)


@pytest.mark.extended
def test_grouped_queries_mlps_and_unequal_lengths() -> None:
    model, task = cases.model_of("mistral"), uneven_task().take([0, 2])
    experiment = make_experiment(model, task)
    keep, losses = plain_acdc(model, task, 0.02, "kl_divergence", experiment.graph.exists)
    ours = acdc(experiment, tau=0.02)
    assert torch.equal(experiment.graph.exists & (ours >= 0.02), keep)
    torch.testing.assert_close(ours, losses, atol=1e-5, rtol=1e-4)


@pytest.mark.extended
def test_only_the_edges_on_the_screen_are_tested() -> None:
    model, task, tau, screen = small_model(), small_task(), 0.02, 12
    experiment = make_experiment(model, task)
    exists = experiment.graph.exists
    estimate = eap(experiment)
    best = estimate.abs().flatten().argsort(descending=True)[:screen]
    candidates = torch.zeros_like(exists).flatten().index_fill(0, best, True).view(exists.shape)

    ours = acdc(make_experiment(model, task), tau=tau, screen=screen)
    keep, losses = plain_acdc(model, task, tau, "kl_divergence", candidates)
    kept = keep & candidates
    assert 0 < int(kept.sum()) < screen
    assert torch.equal(exists & (ours >= tau), kept)
    torch.testing.assert_close(ours[kept], losses[kept], atol=1e-5, rtol=1e-4)
    # All others rank behind, by the magnitude of the estimate.
    ratio = (ours / estimate.abs())[exists & ~kept & (estimate != 0)]
    torch.testing.assert_close(ratio, ratio[:1].expand(ratio.shape))
    assert float(ratio[0]) > 0


@pytest.mark.extended
def test_scores_say_how_many_edges_were_tested_and_whose_order_the_others_have() -> None:
    model, task = small_model(), small_task()
    screened = discover(model, task, "acdc", screen=12, tau=0.02)
    assert screened.metadata["edges tested"] == 12
    assert screened.metadata["order of the edges not kept"] == "eap"
    kept = int((screened.values >= 0.02).sum())
    theirs = [i for i in eap_order(model, task) if i in set(screened.order()[kept:].tolist())]
    assert screened.order()[kept:].tolist() == theirs
    whole = discover(model, task, "acdc", tau=0.02)
    assert whole.metadata["edges tested"] == whole.graph.edges
    assert "order of the edges not kept" not in whole.metadata


def eap_order(model: Any, task: Task) -> list[int]:
    return discover(model, task, "eap").order().tolist()


@pytest.mark.extended
def test_a_screen_as_large_as_the_graph_tests_all() -> None:
    experiment = make_experiment(small_model(), small_task())
    all_edges = acdc(experiment, screen=None)
    assert experiment.passes.backward_rows == 0
    assert torch.equal(acdc(experiment, screen=experiment.graph.edges), all_edges)


@pytest.mark.extended
def test_passes_of_one_row_at_a_time() -> None:
    experiment = make_experiment(small_model(), small_task(), memory_budget=1)
    ours = acdc(experiment, tau=0.003)
    # Clean, corrupted, the full circuit, and one for each edge tested.
    tested = int((ours != 0).sum())
    assert experiment.passes.forward_rows == 3 * (3 + tested)


@pytest.mark.extended
def test_tau_bounds_the_circuit() -> None:
    experiment = make_experiment(small_model(), small_task())
    assert not bool((acdc(experiment, tau=1e6) >= 1e6).any())
    small, large = (int((acdc(experiment, tau=tau) >= tau).sum()) for tau in (0.1, 0.001))
    assert 0 < small < large


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 0.0}, "tau must be a positive number; got 0.0"),
        ({"tau": float("nan")}, "tau must be a positive number; got nan"),
        ({"screen": 0}, "at least 1 edge"),
        ({"objective": "accuracy"}, "unknown objective 'accuracy'; choose from task, logit"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        acdc(make_experiment(small_model(), small_task()), **options)
