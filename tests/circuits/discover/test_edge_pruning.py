"""Learned masks: the steps written out over the slow forward pass, and circuits that are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from strace_lens.circuits.discover.attribution import eap, eap_ig
from strace_lens.circuits.discover.edge_pruning import (
    CLOSED,
    edge_pruning,
    hap,
    hard_concrete,
    kept_share,
    node_pruning,
    warm_edge_pruning,
)
from strace_lens.circuits.experiment import Experiment, make_experiment
from strace_lens.ground_truth.linear import linear_task, linear_weights
from strace_lens.ground_truth.weights import model_of
from tests import cases
from tests.circuits.made import slow_run, tiny_task
from tests.ground_truth.exact_effects import exact_effects

TASK = tiny_task(2, 5)


def problem_of(name: str, **options) -> Experiment:
    return make_experiment(cases.model_of(name), TASK, **options)


def slow_steps(name: str, *, steps: int, sparsity: float, rate: float, seed: int) -> Tensor:
    """`log_alpha` by the paper's formulas, on the slow model, in float64."""
    exists = make_experiment(cases.model_of(name), TASK).graph.exists
    generator = torch.Generator().manual_seed(seed)
    log_alpha = torch.full(exists.shape, 2.0, dtype=torch.float64, requires_grad=True)
    first = torch.zeros((), dtype=torch.float64, requires_grad=True)
    second = torch.zeros((), dtype=torch.float64, requires_grad=True)
    down = torch.optim.Adam([log_alpha], lr=rate)
    up = torch.optim.Adam([first, second], lr=rate)
    for step in range(1, steps + 1):
        pairs = torch.randperm(2, generator=generator).tolist()
        noise = torch.rand(2, *exists.shape, generator=generator).double()
        loss = torch.zeros((), dtype=torch.float64)
        for row, pair in enumerate(pairs):
            gumbel = noise[row].log() - (1 - noise[row]).log()
            stretched = 1.2 * torch.sigmoid(1.5 * (gumbel + log_alpha)) - 0.1
            keep = torch.minimum(torch.maximum(stretched, torch.zeros(())), torch.ones(()))
            logits = slow_run(name, TASK, pair, keep).logits[-1]
            answers, wrong = TASK.answers[pair], TASK.incorrect[pair]
            loss = loss - (logits[answers].mean() - logits[wrong].mean()) / 2
        open_ = torch.sigmoid(log_alpha - math.log(0.1 / 1.1) / 1.5)
        gap = sparsity * min(1.0, step / (0.7 * steps)) - (1 - open_[exists].mean())
        whole = loss + first * gap + second * gap * gap
        for optimizer in (down, up):
            optimizer.zero_grad()
        whole.backward()
        first.grad, second.grad = -first.grad, -second.grad
        down.step()
        up.step()
    return log_alpha.detach() * exists


def test_steps_against_the_slow_model() -> None:
    options = {"steps": 4, "sparsity": 0.5, "rate": 0.2, "seed": 5}
    ours = edge_pruning(problem_of("mistral"), objective="task", **options)
    slow = slow_steps("mistral", **options).float()
    assert float((slow[slow != 0] - 2).abs().max()) > 0.4  # the masks have moved
    torch.testing.assert_close(ours, slow, atol=2e-3, rtol=2e-3)


@pytest.mark.extended
def test_a_fit_prunes_what_carries_nothing() -> None:
    weights, task = linear_weights(seed=1), linear_task(pairs=8, seed=2)
    experiment = make_experiment(model_of(weights, "linear"), task)
    exact = exact_effects(weights, task).abs().mean(0)
    scores, exists = edge_pruning(experiment, sparsity=0.5), experiment.graph.exists
    assert not scores[~exists].any()
    carries = exact > 1e-9
    assert 0 < int(carries.sum()) < experiment.graph.edges / 2
    wins = scores[exists & carries][:, None] > scores[exists & ~carries]
    assert float(wins.double().mean()) > 0.9  # AUROC; 0.5 by chance
    kept = kept_share(scores)
    assert float(kept[exists & ~carries].mean()) < 0.1
    assert float(kept[exists & carries].mean()) > 0.5


def test_nodes_have_one_mask() -> None:
    experiment = make_experiment(model_of(linear_weights(), "linear"), linear_task(pairs=4))
    scores, exists = node_pruning(experiment, steps=5), experiment.graph.exists
    for source in range(experiment.graph.sources):
        of_source = scores[exists[:, source], source]
        assert torch.equal(of_source, of_source[:1].expand(of_source.shape))
    assert not scores[~exists].any()
    assert scores[-1].unique().numel() > 1


def test_same_seed_same_scores_and_no_trace_left() -> None:
    experiment = problem_of("mistral")
    weights = list(experiment.model.parameters())
    asked = [p.requires_grad for p in weights]
    weights[0].requires_grad_(True)
    try:
        first, again, other = (edge_pruning(experiment, steps=3, seed=s) for s in (0, 0, 1))
        assert weights[0].requires_grad
        assert all(p.grad is None for p in weights)
    finally:
        weights[0].requires_grad_(asked[0])
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_small_budget_changes_nothing() -> None:
    small, large = (problem_of("llama", memory_budget=budget) for budget in (1, 2**27))
    options = {"steps": 2, "rate": 0.1}
    few, many = edge_pruning(small, **options), edge_pruning(large, **options)
    # Adam divides by the gradient's size, so what rounds a small gradient shows.
    torch.testing.assert_close(few, many, atol=1e-4, rtol=1e-4)


def test_passes_are_the_rows_of_the_steps() -> None:
    experiment = make_experiment(model_of(linear_weights(), "linear"), linear_task(pairs=5))
    edge_pruning(experiment, steps=3, batch=2)
    assert experiment.passes.forward_rows == 2 * 5 + 3 * 2
    assert experiment.passes.backward_rows == 3 * 2
    node_pruning(experiment, steps=3, batch=50)  # no more pairs than there are
    assert experiment.passes.backward_rows == 3 * 2 + 3 * 5


def test_hard_concrete_masks_are_above_zero_as_often_as_said() -> None:
    log_alpha = torch.tensor([-4.0, -1.6, 0.0, 3.0])
    noise = torch.rand(20_000, 4, generator=torch.Generator().manual_seed(0))
    masks = hard_concrete(log_alpha, noise)
    assert float(masks.min()) == 0
    assert float(masks.max()) == 1
    often = (masks > 0).float().mean(0)
    torch.testing.assert_close(often, kept_share(log_alpha), atol=0.015, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity must lie in \(0, 1\); got 1.0"),
        ({"steps": 0}, "at least 1; got 0"),
        ({"batch": 0}, "at least 1; got"),
        ({"rate": 0.0}, "rate must be positive; got 0.0"),
        ({"objective": "answer_rank"}, "no gradients"),
    ],
)
@pytest.mark.parametrize("method", [edge_pruning, node_pruning, warm_edge_pruning, hap])
def test_bad_options(method, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method(problem_of("mistral"), **options)


# ------------------------------------------------------------------ with attribution before it


def test_a_warm_start_that_takes_no_step_is_the_order_of_eap_ig() -> None:
    experiment = problem_of("llama")
    exists = experiment.graph.exists
    learned = warm_edge_pruning(experiment, steps=1, rate=1e-9)[exists]
    by_size = eap_ig(experiment)[exists].abs()
    assert torch.equal(learned.argsort(), by_size.argsort())
    assert 0 <= float(learned.min()) < float(learned.max()) <= 4
    moved = warm_edge_pruning(experiment, steps=6)[exists]
    assert not torch.equal(moved.argsort(), by_size.argsort())


def test_hap_prunes_among_what_eap_lets_through() -> None:
    experiment = problem_of("llama")
    exists, by_size = experiment.graph.exists, eap(experiment).abs()
    scores = hap(experiment, steps=6, screen=0.25)
    assert not scores[~exists].any()
    size = int(exists.sum()) - int(0.75 * int(exists.sum()))
    cells = exists.nonzero()[by_size[exists].argsort(descending=True)]
    through, out = cells[:size], cells[size:]
    inside, outside = scores[tuple(through.T)], scores[tuple(out.T)]
    assert float(inside.min()) > float(outside.max())
    assert bool((outside.diff() <= 0).all())  # in EAP's order
    assert not bool((inside.diff() <= 0).all())
    assert float(outside.min()) > float(inside.min()) - 3


def test_hap_prunes_edges_without_effect_among_those_that_eap_lets_through() -> None:
    experiment = make_experiment(model_of(linear_weights(), "linear"), linear_task(pairs=8))
    exists = experiment.graph.exists
    size = round(0.5 * int(exists.sum()))
    inside = hap(experiment, screen=0.5)[exists].sort(descending=True).values[:size]
    assert float(inside[0]) > 2.0  # where all of them start
    assert float(inside[-1]) < 0.0
    assert float(kept_share(inside).mean()) < 0.8


def test_an_edge_that_is_closed_is_never_kept_and_stays_closed() -> None:
    log_alpha = torch.full((3,), CLOSED, requires_grad=True)
    masks = hard_concrete(log_alpha, torch.tensor([[1e-6, 0.5, 1 - 1e-7]]))
    (masks.sum() + kept_share(log_alpha).sum()).backward()
    assert not masks.any()
    assert log_alpha.grad is not None
    assert not log_alpha.grad.any()


@pytest.mark.parametrize("screen", [0.0, 0.04, 1.5])
def test_a_screen_out_of_range_is_refused(screen: float) -> None:
    with pytest.raises(ValueError, match=rf"screen must lie in \(0.05, 1\].*; got {screen}"):
        hap(problem_of("mistral"), screen=screen)


def test_passes_of_both_steps() -> None:
    for method, forward, backward in ((warm_edge_pruning, 2 + 5, 5), (hap, 3, 1)):
        experiment = make_experiment(model_of(linear_weights(), "linear"), linear_task(pairs=5))
        method(experiment, steps=3, batch=2)
        assert experiment.passes.forward_rows == forward * 5 + 3 * 2
        assert experiment.passes.backward_rows == backward * 5 + 3 * 2
