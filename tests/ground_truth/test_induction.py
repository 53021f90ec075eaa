from __future__ import annotations

import functools

import pytest
import torch

from strace_lens.circuits.circuit import Circuit, circuit_of_edges
from strace_lens.circuits.run_circuits import run_circuits
from strace_lens.ground_truth import induction
from strace_lens.ground_truth.induction import (
    copy_loss,
    induction_task,
    induction_weights,
    repeated_blocks,
)
from strace_lens.ground_truth.models import GroundTruth, ground_truth
from strace_lens.ground_truth.weights import model_of
from tests.ground_truth import oracle


@functools.cache
def made() -> GroundTruth:
    return ground_truth("induction-trained", pairs=48)


def live_heads() -> list[int]:
    """The head of each layer that writes most."""
    weights = induction_weights()
    return (weights.W_V @ weights.W_O).flatten(2).norm(dim=2).argmax(1).tolist()


@pytest.mark.extended
def test_one_head_of_each_layer_is_left() -> None:
    weights = induction_weights()
    norms = (weights.W_V @ weights.W_O).flatten(2).norm(dim=2)
    assert bool((norms.amax(1) > 0.5).all())
    assert bool((norms.sort(1).values[:, :-1] < 1e-3).all())


@pytest.mark.extended
def test_it_copies() -> None:
    tokens, period = repeated_blocks(128, torch.Generator().manual_seed(99))
    assert float(copy_loss(induction_weights(), tokens, period)) < 0.02
    logits = made().model(made().task.clean, return_type="logits")[:, -1]
    assert torch.equal(logits.argmax(-1), made().task.answers[:, 0])


@pytest.mark.extended
def test_the_forward_pass_of_the_training_is_the_models() -> None:
    weights, tokens = induction_weights(), made().task.clean
    ours = induction._logits(weights, tokens)
    theirs = made().model(tokens, return_type="logits")
    by_hand = oracle.run(weights, tokens).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.double(), by_hand, rtol=0, atol=1e-4)


@pytest.mark.extended
def test_the_truth_is_the_textbook_circuit() -> None:
    """Previous-token head into the keys of the induction head, whose values go to the logits."""
    first, second = live_heads()
    graph = made().truth("zero").graph
    values = {
        f"embed->a0.h{first}<v>",
        f"a0.h{first}->a1.h{second}<k>",
        f"embed->a1.h{second}<q>",
        f"embed->a1.h{second}<v>",
        f"a1.h{second}->logits",
    }
    # Which token is the previous one depends on positions alone: the other prompt's do as well.
    positions = {f"embed->a0.h{first}<q>", f"embed->a0.h{first}<k>"}
    for ablation in ("resample", "mean"):
        assert set(made().truth(ablation).edge_names()) == values
    assert set(made().truth("zero").edge_names()) == values | positions
    assert torch.equal(made().truth("resample").keep, circuit_of_edges(graph, values).keep)


@pytest.mark.extended
@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
def test_true_edges_stand_clear_of_the_others(ablation: str) -> None:
    truth = made().truth(ablation)
    full = truth.graph.exists
    edges = full.nonzero().tolist()
    circuits = [Circuit(truth.graph, full)]
    for destination, source in edges:
        keep = full.clone()
        keep[destination, source] = False
        circuits.append(Circuit(truth.graph, keep))
    found = run_circuits(made().model, made().task, circuits, ablation=ablation).mean(1)
    cost = (found[0] - found[1:]) / found[0]
    true = torch.tensor([bool(truth.keep[d, s]) for d, s in edges])
    assert float(cost[true].min()) > 0.5
    assert float(cost[~true].max()) < 0.1


@pytest.mark.extended
@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
def test_the_truth_alone_does_the_task(ablation: str) -> None:
    truth = made().truth(ablation)
    full = Circuit(truth.graph, truth.graph.exists)
    found = run_circuits(made().model, made().task, [full, truth, ~truth], ablation=ablation)
    full_mean, alone, rest = found.mean(1).tolist()
    assert alone > 0.8 * full_mean
    assert rest < 0.1 * full_mean


@pytest.mark.extended
def test_a_seed_gives_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(induction, "STEPS", 3)
    train = induction._train.__wrapped__
    once, again, other = train(5), train(5), train(6)
    assert torch.equal(once.W_O, again.W_O)
    assert torch.equal(once.W_E, again.W_E)
    assert not torch.equal(once.W_O, other.W_O)
    model_of(once, "short")  # trained weights are no longer on a graph


def test_blocks_repeat_without_repeats_inside() -> None:
    tokens, periods = repeated_blocks(50, torch.Generator().manual_seed(0))
    for row, period in zip(tokens.tolist(), periods.tolist(), strict=True):
        assert row[period:] == row[:-period]
        assert len(set(row[:period])) == period
    assert len(set(periods.tolist())) == 9


def test_corrupted_prompts_repeat_other_tokens_at_the_same_distance() -> None:
    task = induction_task(100, seed=4)
    assert bool((task.answers != task.incorrect).all())
    for pair, period in enumerate(task.metadata["periods"]):
        corrupted = task.corrupted[pair].tolist()
        assert corrupted[period:] == corrupted[:-period]
        assert len(set(corrupted[:period])) == period
        assert int(task.answers[pair, 0]) == int(task.clean[pair, -period])
        assert int(task.incorrect[pair, 0]) == corrupted[-period]
    assert torch.equal(induction_task(100, seed=4).clean, task.clean)
    assert not torch.equal(induction_task(100, seed=5).clean, task.clean)
