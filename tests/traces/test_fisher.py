"""Fisher scores against the explicit diagonal: every token's gradient in the slow forward pass."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

import strace_lens as sl
from strace_lens.traces.ablation import ZERO
from strace_lens.traces.edges import EdgeTensors, is_complete
from strace_lens.traces.fisher import fisher_scores
from strace_lens.traces.fit import Fit, bytes_per_gradient_row, fit_to
from strace_lens.traces.schedule import schedule, schedule_ablatable
from strace_lens.utils.choices import GRADIENT_BUDGET
from tests import cases, tiny
from tests.cases import architecture, model_of, relative_error
from tests.oracle_weighted import weighted_logits
from tests.weighted import FEW, REFERENCES, TOKENS, graph_of, replacement_of, shape_of


def fit(name: str, kind: str = "zero", target: Tensor | None = None) -> Fit:
    return fit_to(
        model_of(name), graph_of(name), target, replacement_of(name, kind), GRADIENT_BUDGET
    )


def ranks_of(name: str) -> tuple[EdgeTensors, int]:
    """A trace of two edges in three that the model still says something on."""
    trace = sl.extract(graph_of(name), "l2", order="scheduled")
    return trace.ranks, trace.edge_count(0.67)


def squares(name: str, kind: str, probes: int, target: Tensor | None = None, seed: int = 0):
    """Squared scores of a trace as one vector: estimates of the diagonal."""
    generator = torch.Generator().manual_seed(seed)
    scores = fisher_scores(
        fit(name, kind, target), *ranks_of(name), probes=probes, generator=generator
    )
    assert all(x.dtype == torch.float32 for x in scores)
    assert not scores.residual.any()
    return scores.flat().double().square()


@functools.cache
def jacobian(name: str, kind: str = "zero") -> Float[Tensor, "vocab edge_id"]:
    """Gradient of every token's log-probability in the weights of a trace; residual edges: 0."""
    ranks, count = ranks_of(name)
    weights = EdgeTensors(*((r < count).double() for r in ranks))
    for kept in (weights.attention, weights.mlp):
        kept.requires_grad_()
    log_probs = weighted_logits(name, TOKENS, weights, REFERENCES[kind]).log_softmax(-1)
    attention, mlp = torch.autograd.grad(
        log_probs,
        [weights.attention, weights.mlp],
        torch.eye(tiny.VOCABULARY, dtype=torch.float64),
        is_grads_batched=True,
        materialize_grads=True,
    )
    residual = torch.zeros(tiny.VOCABULARY, weights.residual.numel())
    mlp = mlp.expand(tiny.VOCABULARY, *weights.mlp.shape)  # no batch of zeros comes of no MLP
    return torch.cat([attention.flatten(1), residual, mlp.flatten(1)], 1)


def diagonal(name: str, kind: str, target: Tensor) -> Float[Tensor, " edge_id"]:
    return target.double() @ jacobian(name, kind).square()


def standard_error(name: str, kind: str, target: Tensor, probes: int) -> Tensor:
    """Of an estimate of the diagonal.

    A probe's gradient is g = sum_v a_v s_v, with a_v^2 = p_v j_v^2 and s_v a random sign; the
    variance of g^2 is 2 ((sum a^2)^2 - sum a^4).
    """
    terms = target.double()[:, None] * jacobian(name, kind).square()
    variance = 2 * (terms.sum(0).square() - terms.square().sum(0))
    return (variance / probes).sqrt()


@pytest.mark.parametrize("kind", ["zero", "resample"])
@pytest.mark.parametrize("name", FEW)
def test_many_probes_come_to_the_explicit_diagonal(name: str, kind: str) -> None:
    target = fit(name, kind).target
    truth = diagonal(name, kind, target)
    counted = truth > 1e-9 * truth.max()
    assert counted.double().mean() > 0.3
    errors = {}
    for probes in (16, 1024):
        estimate = squares(name, kind, probes)
        assert relative_error(estimate[~counted], truth[~counted]) < 1e-6
        away = (estimate - truth)[counted] / standard_error(name, kind, target, probes)[counted]
        # Probes are shared, so errors go together: nine edges in ten may lie on one side.
        assert away.abs().max() < 5
        assert 0.3 < away.square().mean().sqrt() < 2
        errors[probes] = float((estimate - truth)[counted].norm() / truth[counted].norm())
    assert errors[1024] < 0.1
    assert 2 < errors[16] / errors[1024] < 30  # eight times, give or take


@pytest.mark.parametrize("name", FEW)
def test_one_probe_is_exact_for_a_distribution_of_one_token(name: str) -> None:
    for token in (0, 17):
        target = torch.zeros(tiny.VOCABULARY)
        target[token] = 1
        estimate = squares(name, "zero", 1, target, seed=token)
        assert relative_error(estimate, jacobian(name)[token].square()) < 1e-4


@pytest.mark.parametrize("kind", ["zero", "resample"])
@pytest.mark.parametrize("name", FEW)
def test_towards_tokens_a_score_is_the_exact_gradient(name: str, kind: str) -> None:
    both = ((3, 17), (8,))
    token, pair = jacobian(name, kind)[17], jacobian(name, kind)[list(both[0])].mean(0)
    for target, truth in ((17, token), (both, pair - jacobian(name, kind)[8])):
        there = fit_to(
            model_of(name), graph_of(name), target, replacement_of(name, kind), GRADIENT_BUDGET
        )
        generator = torch.Generator().manual_seed(0)
        scores = fisher_scores(there, *ranks_of(name), probes=8, generator=generator)
        assert relative_error(scores.flat(), truth.abs()) < 1e-4


def test_a_trace_says_which_tokens_it_was_ranked_towards(tmp_path: Path) -> None:
    model, graph = model_of("llama"), graph_of("llama")
    trace = sl.fisher(model, graph, target=("Rome", ["Paris", "Tokyo"]))
    assert str(trace.target) == "'Rome' against 'Paris', 'Tokyo'"
    assert "towards 'Rome' against 'Paris', 'Tokyo'" in repr(trace)
    assert trace.metadata["passes"] == {"forward": 1, "backward": 1}
    sl.save(trace, tmp_path / "trace")
    assert sl.load(tmp_path / "trace").target == trace.target
    assert_same(sl.estimate(model, graph, "fisher", target=trace.target), trace.ranks)
    other = sl.fisher(model, graph, target="Rome")
    assert not torch.equal(other.ranks.attention, trace.ranks.attention)
    assert sl.fisher(model, graph).target is None
    with pytest.raises(ValueError, match="'Atlantis' is not in the vocabulary"):
        sl.fisher(model, graph, target="Atlantis")


def test_the_memory_budget_sets_the_probes_of_a_pass_and_changes_nothing() -> None:
    whole, one = fit("llama"), bytes_per_gradient_row(architecture("llama"), len(TOKENS))
    found = []
    for budget in (1, 3 * one, GRADIENT_BUDGET):
        generator = torch.Generator().manual_seed(0)
        few = dataclasses.replace(whole, memory_budget=budget)
        scores = fisher_scores(few, *ranks_of("llama"), probes=7, generator=generator)
        found.append(scores.flat())
    assert relative_error(found[0], found[2]) < 1e-5
    assert relative_error(found[1], found[2]) < 1e-5


def test_a_seed_gives_the_same_scores_and_a_generator_goes_on() -> None:
    generator = torch.Generator().manual_seed(4)
    first, second = (
        fisher_scores(fit("llama"), *ranks_of("llama"), probes=3, generator=generator).flat()
        for _ in range(2)
    )
    assert torch.equal(first.double().square(), squares("llama", "zero", 3, seed=4))
    assert not torch.equal(first, second)
    assert not torch.equal(first.double().square(), squares("llama", "zero", 3, seed=5))


@pytest.mark.parametrize("name", FEW)
def test_edges_outside_the_trace_are_scored_too(name: str) -> None:
    ranks, count = ranks_of(name)
    scores = squares(name, "resample", 3)
    outside = (ranks.flat() >= count) & shape_of(name).reachable().flat()
    assert scores[outside].any()
    assert not scores[~shape_of(name).reachable().flat()].any()


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_fisher_schedules_the_scores_of_the_full_graph(kind: str) -> None:
    model, graph, shape = model_of("llama"), graph_of("llama"), shape_of("llama")
    instead = replacement_of("llama", kind)
    trace = sl.fisher(model, graph, probes=5, replacement=instead, seed=3)
    scores = fisher_scores(
        fit("llama", kind),
        sl.extract(graph).ranks,
        shape.edges,
        probes=5,
        generator=torch.Generator().manual_seed(3),
    )
    assert_same(trace, schedule(scores, shape))
    assert is_complete(trace.ranks, shape)
    made = {"importance": "fisher", "order": "scheduled", "seed": 3, "probes": 5}
    assert made.items() <= trace.metadata.items()
    assert trace.metadata["passes"] == {"forward": 1, "backward": 5}
    assert (trace.metadata["target"], trace.metadata["ablation"]) == ("own", kind)


@pytest.mark.parametrize("keep", [("attention",), ("residual",)])
def test_fisher_schedules_what_can_be_ablated_by_all_scores(keep: tuple[str, ...]) -> None:
    trace = sl.fisher(model_of("llama"), graph_of("llama"), keep=keep, seed=3)
    plain = sl.fisher(model_of("llama"), graph_of("llama"), seed=3)
    assert trace.importance is not None
    assert plain.importance is not None
    # Nothing is ablated where scores are taken, whatever is kept.
    assert relative_error(trace.importance.flat(), plain.importance.flat()) < 1e-6
    assert_same(trace, schedule_ablatable(trace.importance, trace.shape, keep))
    assert trace.metadata["keep"] == list(keep)


def assert_same(trace: sl.Trace, ranks: EdgeTensors) -> None:
    assert all(torch.equal(a, b) for a, b in zip(trace.ranks, ranks, strict=True))


def test_seeds_and_targets_make_a_difference() -> None:
    model, graph = model_of("llama"), graph_of("llama")
    trace = sl.fisher(model, graph)
    assert_same(sl.fisher(model, graph, seed=0), trace.ranks)
    assert_same(sl.fisher(model, graph, target=fit("llama").target), trace.ranks)
    uniform = torch.full((tiny.VOCABULARY,), 1 / tiny.VOCABULARY)
    for options in ({"seed": 1}, {"probes": 7}, {"target": uniform}):
        other = sl.fisher(model, graph, **options)
        assert not torch.equal(other.ranks.attention, trace.ranks.attention)
        assert other.metadata["target"] == ("given" if "target" in options else "own")


@pytest.mark.extended
def test_half_precision_gives_scores_near_those_of_single() -> None:
    half = cases.fresh_bridge("llama", torch.bfloat16)
    graph = sl.token_graph(half, TOKENS)
    there = fit_to(half, graph, fit("llama").target, ZERO, GRADIENT_BUDGET)
    generator = torch.Generator().manual_seed(0)
    scores = fisher_scores(there, *ranks_of("llama"), probes=8, generator=generator)
    assert all(x.dtype == torch.float32 for x in scores)
    single = squares("llama", "zero", 8).sqrt()
    assert torch.cosine_similarity(scores.flat().double(), single, dim=0) > 0.98
    assert is_complete(sl.fisher(half, graph).ranks, graph.shape)


@pytest.mark.parametrize("probes", [0, -1])
def test_no_probes_are_refused(probes: int) -> None:
    with pytest.raises(ValueError, match=f"probes must be at least 1; got {probes}"):
        sl.fisher(model_of("llama"), graph_of("llama"), probes=probes)
