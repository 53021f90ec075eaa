from __future__ import annotations

import functools

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.circuits.circuit import Circuit, empty_circuit, full_circuit
from strace_lens.circuits.graph import node_of
from strace_lens.circuits.run_circuits import run_circuits
from strace_lens.ground_truth.linear import linear_task, linear_weights
from strace_lens.ground_truth.models import GroundTruth, ground_truth
from tests.ground_truth import oracle
from tests.ground_truth.exact_effects import exact_effects

ABLATIONS = ("zero", "mean", "resample")


@functools.cache
def made() -> GroundTruth:
    return ground_truth("linear", seed=1, pairs=5)


def effects(circuits: list[Circuit], ablation: str) -> Float[Tensor, "circuit pair"]:
    """Metric of the full model less that of each circuit."""
    full = full_circuit(made().truth("zero").graph)
    found = run_circuits(made().model, made().task, [full, *circuits], ablation=ablation)
    return (found[:1] - found[1:]).double()


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_the_closed_form_is_what_ablating_each_edge_does(ablation: str) -> None:
    graph = made().truth(ablation).graph
    edges = graph.exists.nonzero().tolist()
    without = []
    for destination, source in edges:
        keep = graph.exists.clone()
        keep[destination, source] = False
        without.append(Circuit(graph, keep))
    exact = exact_effects(linear_weights(1), made().task, ablation)
    ours = torch.stack([exact[:, d, s] for d, s in edges])
    torch.testing.assert_close(effects(without, ablation), ours, rtol=0, atol=2e-5)
    assert not bool(exact[:, ~graph.exists].any())


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_the_true_edges_are_those_with_an_effect(ablation: str) -> None:
    truth = made().truth(ablation)
    exact = exact_effects(linear_weights(1), made().task, ablation).abs().amax(0)
    assert torch.equal(exact > 1e-9, truth.keep)
    assert 0 < len(truth) < truth.graph.edges / 2


def test_effects_of_edges_that_share_no_path_add_up() -> None:
    truth = made().truth("resample")
    exact = exact_effects(linear_weights(1), made().task)
    names = truth.graph.destination_names
    # All edges into one place, and all out of the embedding, each set at once.
    sets = [torch.tensor([name == one for name in names])[:, None] for one in names]
    sets = [truth.graph.exists & into for into in sets]
    together = [Circuit(truth.graph, truth.graph.exists & ~edges) for edges in sets]
    summed = torch.stack([(exact * edges).sum((1, 2)) for edges in sets])
    torch.testing.assert_close(effects(together, "resample"), summed, rtol=0, atol=2e-5)
    torch.testing.assert_close(exact[:, -1].sum(-1), torch.ones(5).double(), rtol=0, atol=1e-6)


def test_the_truth_alone_gives_the_model_and_the_rest_alone_the_corrupted_run() -> None:
    truth = made().truth("resample")
    both = run_circuits(made().model, made().task, [truth, ~truth, empty_circuit(truth.graph)])
    torch.testing.assert_close(both[0], torch.ones(5), rtol=0, atol=1e-5)
    torch.testing.assert_close(both[1:], torch.zeros(2, 5), rtol=0, atol=1e-5)
    assert {node_of(name.split("->")[1]) for name in truth.edge_names()} > {"logits"}


def test_the_model_is_the_weights() -> None:
    tokens = made().task.clean
    logits = made().model(tokens, return_type="logits")
    expected = oracle.run(linear_weights(1), tokens).logits
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=1e-5)


def test_a_seed_is_a_model_and_a_task() -> None:
    assert torch.equal(linear_weights(1).W_V, linear_weights(1).W_V)
    assert not torch.equal(linear_weights(1).W_V, linear_weights(2).W_V)
    assert torch.equal(linear_task(4, 1).clean, linear_task(4, 1).clean)
    assert not torch.equal(linear_task(4, 1).clean, linear_task(4, 2).clean)
    assert bool((linear_task(4, 1).clean != linear_task(4, 1).corrupted).all())


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="'noise'"):
        exact_effects(linear_weights(), linear_task(2), "noise")
