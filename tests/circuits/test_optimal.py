"""Optimal ablation against the optimum of a linear model, which is known in closed form."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from strace_lens.circuits.discover.run_method import discover
from strace_lens.circuits.evaluate import faithfulness
from strace_lens.circuits.experiment import Experiment, make_experiment
from strace_lens.circuits.interventions import ablate
from strace_lens.circuits.optimal import Learner, optimal_constants, pooled, spread
from strace_lens.circuits.run_circuits import circuit_metric
from strace_lens.circuits.task import Task
from strace_lens.ground_truth.weights import Weights, model_of
from strace_lens.model.architecture import Model
from strace_lens.utils.choices import EDGE_ABLATIONS as ABLATIONS
from tests import cases
from tests.circuits.made import random_keep, tiny_task, uneven_task

PAIRS, LENGTH, HEADS, D_MODEL, D_HEAD = 12, 4, 2, 12, 3


def one_layer() -> Weights:
    """One layer of heads that average, and an output that is a single number."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    shape = (1, HEADS, D_MODEL, D_HEAD)
    return Weights(
        W_E=normal(16, D_MODEL) + 1,
        W_pos=normal(LENGTH, D_MODEL),
        W_Q=torch.zeros(shape),
        W_K=torch.zeros(shape),
        W_V=normal(*shape) / 2,
        W_O=normal(1, HEADS, D_HEAD, D_MODEL) / 2,
        W_U=normal(D_MODEL, 1) / 3,
    )


@functools.cache
def linear() -> tuple[Weights, Model, Task]:
    weights, none = one_layer(), torch.full((PAIRS, 1), -1)
    draw = torch.randint(16, (2, PAIRS, LENGTH), generator=torch.Generator().manual_seed(1))
    lengths = torch.full((PAIRS,), LENGTH)
    task = Task("numbers", draw[0], draw[1], lengths, none, none, metric="recovered")
    return weights, model_of(weights, "numbers"), task


def ways_out(weights: Weights) -> Tensor:
    """What the logit takes of each vector: as it is, and by way of each head, `[way, d_model]`."""
    by_head = weights.W_V[0] @ weights.W_O[0] @ weights.W_U
    return torch.cat([weights.W_U[None], by_head])[..., 0]


def embeddings(weights: Weights, task: Task) -> Tensor:
    return weights.W_E[task.clean] + weights.W_pos


def steps(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr("strace_lens.circuits.optimal.STEPS", count)


@pytest.mark.extended
def test_constants_of_a_linear_model_are_the_optimum_in_closed_form(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps(monkeypatch, 600)
    # What the logit gets of a source by any way out of it is a sum of terms of mean zero exactly
    # where the constant gives that way the mean of what the clean prompts give it. So that is the
    # optimum whatever else is ablated.
    weights, model, task = linear()
    ways, embed = ways_out(weights), embeddings(weights, task)
    last, average = embed[:, -1], embed.mean(1)
    wanted = torch.stack([last @ ways[0], *(average @ way for way in ways[1:])])
    allowed = 1e-3 * wanted.std(1)
    experiment = make_experiment(model, task)
    clean, read = experiment.clean, torch.ones(PAIRS, LENGTH, dtype=torch.bool)
    learner = Learner(model, experiment.wiring, task, clean, 64)
    start = pooled(clean.outputs, read)  # one vector for all positions
    found = optimal_constants(learner, [start], spread(clean.outputs, read))
    ours = ways @ found.embed[0, 0]
    assert bool(((ours - wanted.mean(1)).abs() < allowed).all())
    heads = torch.einsum("he,hem->hm", found.z[0][0, 0], weights.W_O[0]) @ weights.W_U[:, 0]
    assert bool(((heads - wanted[1:].mean(1)).abs() < allowed[1:]).all())
    assert bool(((ways @ start.embed[0, 0] - wanted.mean(1)).abs() > 100 * allowed).any())


def test_what_is_lost_is_the_variance_alone() -> None:
    weights, model, task = linear()
    ways, embed = ways_out(weights), embeddings(weights, task)
    terms = torch.stack([embed[:, -1] @ ways[0], *(embed.mean(1) @ way for way in ways[1:])])
    experiment = make_experiment(model, task, ablation="optimal")
    full = terms.sum(0)
    torch.testing.assert_close(experiment.clean.logits[:, 0, 0], full, rtol=1e-4, atol=1e-5)
    graph = experiment.graph
    for keep, lost in (
        (torch.zeros_like(graph.exists), full),
        (graph.exists & (torch.arange(graph.sources) != 2), terms[2]),
    ):
        recovered = circuit_metric(experiment, keep[None])[0]
        corrupted = experiment.corrupted.logits[:, 0, 0]
        logits = corrupted + recovered * (full - corrupted)
        variance = float(lost.var(unbiased=False))
        loss = float((logits - full).square().mean())
        assert 0.9999 * variance < loss < 1.05 * variance  # no constant does better


def kl(experiment: Experiment, keep: Tensor) -> float:
    return -float(circuit_metric(experiment, keep, metric="kl_divergence").mean())


@pytest.mark.parametrize(
    "name", ["gpt2", *(pytest.param(n, marks=pytest.mark.extended) for n in ("llama", "gemma2"))]
)
def test_circuits_lose_less_than_by_means(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps(monkeypatch, 20)
    model, task = cases.model_of(name), tiny_task(3, 5)
    losses: dict[str, float] = {}
    for ablation in ("mean-over-positions", "mean", "optimal"):
        experiment = make_experiment(model, task, ablation=ablation)
        exists = experiment.graph.exists
        keeps = [random_keep(experiment.graph, seed) for seed in range(4)]
        losses[ablation] = kl(experiment, torch.stack([*keeps, torch.zeros_like(exists)]))
    assert losses["optimal"] < 0.9 * min(losses["mean-over-positions"], losses["mean"])


def test_a_start_that_cannot_be_bettered_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    steps(monkeypatch, 2)
    monkeypatch.setattr("strace_lens.circuits.optimal.RATE", 1e3)  # every step makes it worse
    model, task = cases.model_of("gpt2"), tiny_task(3, 5)
    experiment = make_experiment(model, task, ablation="optimal")
    found, clean = experiment.replaced.embed[0], experiment.clean.outputs.embed
    both = torch.cat([clean, experiment.corrupted.outputs.embed])
    means = [x.mean(0) for x in (clean, both)]
    means += [mean.mean(0).expand_as(mean) for mean in means]
    assert any(torch.allclose(found, mean, atol=1e-6) for mean in means)


def test_constants_of_uneven_prompts_are_alike_at_every_token_and_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps(monkeypatch, 3)
    model, task = cases.model_of("gpt2"), uneven_task()
    first, again = (make_experiment(model, task, ablation="optimal") for _ in range(2))
    found, same = first.replaced, again.replaced
    assert torch.equal(found.embed, same.embed)
    for x, y in zip(found.z + found.mlp, same.z + same.mlp, strict=True):
        assert torch.equal(x, y)
        assert torch.equal(x, x[:1, :1].expand_as(x))
    # What is learned is no method's passes: the two runs alone are counted.
    assert (first.passes.forward_rows, first.passes.backward_rows) == (6, 0)


def test_they_are_learned_anew_where_the_weights_have_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps(monkeypatch, 3)
    weights, _, task = linear()
    model: Any = model_of(weights, "numbers")
    before = make_experiment(model, task, ablation="optimal")
    old = before.replaced.embed.clone()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.shape == weights.W_E.shape:
                parameter.add_(1.0)
    with pytest.raises(ValueError, match="weights of numbers have changed"):
        circuit_metric(before, torch.zeros_like(before.graph.exists)[None])
    new = make_experiment(model, task, ablation="optimal").replaced.embed
    assert not torch.equal(old, new)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_every_verb_takes_every_ablation(ablation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps(monkeypatch, 2)
    model, task = cases.model_of("gpt2"), tiny_task(3, 4)
    scores = discover(model, task, "eap", ablation=ablation)
    assert scores.metadata["ablation"] == ablation
    table = ablate(model, task, nodes=["a0.h1", "m1"], ablation=ablation)
    assert bool(table["effect"].abs().gt(0).all())
    curve = faithfulness(model, task, scores, ablation=ablation, fractions=(0.3, 1.0))
    assert curve.values[-1] == 1.0
    hooked = scores.top(0.5).hooks(model, task, ablation=ablation)
    assert hooked


def test_ablating_one_head_with_its_constant_is_what_the_table_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps(monkeypatch, 5)
    _, model, task = linear()
    replaced = make_experiment(model, task, ablation="optimal").replaced
    points: Any = model

    def constant(value: Tensor, hook: Any) -> Tensor:
        value[:, :, 1] = replaced.z[0][:, :, 1]
        return value

    with torch.no_grad(), points.hooks(fwd_hooks=[("blocks.0.attn.hook_z", constant)]):
        logits = points(task.clean)[:, -1]
    experiment = make_experiment(model, task, ablation="optimal")
    clean, corrupted = experiment.clean.logits[:, 0], experiment.corrupted.logits[:, 0]
    wanted = float(((clean - logits) / (clean - corrupted)).mean())
    found = ablate(model, task, nodes="a0.h1", ablation="optimal")
    assert float(found["effect"].iloc[0]) == pytest.approx(wanted, rel=1e-3)
