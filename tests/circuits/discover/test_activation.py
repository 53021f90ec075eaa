"""Activation patching against one slow run an edge, and against effects in closed form."""

from __future__ import annotations

import pytest
import torch

from strace_lens.circuits.discover.activation import (
    TooManyRowsError,
    edge_patching,
    node_patching,
)
from strace_lens.circuits.experiment import Experiment, make_experiment
from strace_lens.ground_truth.linear import linear_task, linear_weights
from strace_lens.ground_truth.weights import model_of
from tests import cases, tiny
from tests.circuits.made import slow_metric, slow_run, tiny_task, uneven_task
from tests.ground_truth.exact_effects import exact_effects

TASK = tiny_task(2, 6)


def linear(ablation: str = "resample") -> tuple[Experiment, torch.Tensor]:
    """The linear model's task, and the exact effect of each of its edges."""
    weights, task = linear_weights(seed=3), linear_task(pairs=5, seed=4)
    experiment = make_experiment(model_of(weights, "linear"), task, ablation=ablation)
    return experiment, exact_effects(weights, task, ablation).mean(0).float()


def slow_effect(name: str, cut: tuple[int | slice, int]) -> float:
    """What the metric loses when these edges are ablated, one slow run a pair."""
    full = torch.ones(make_experiment(cases.model_of(name), TASK).graph.exists.shape)
    without = full.clone()
    without[cut] = 0
    values = [
        [
            slow_metric(slow_run(name, TASK, pair, keep).logits, TASK, pair)
            for keep in (full, without)
        ]
        for pair in range(len(TASK))
    ]
    return sum(a - b for a, b in values) / len(TASK)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_edges_against_slow_runs(name: str) -> None:
    experiment = make_experiment(cases.model_of(name), TASK)
    values, graph = edge_patching(experiment), experiment.graph
    assert not values[~graph.exists].any()
    edges = graph.exists.nonzero()
    some = torch.randperm(len(edges), generator=torch.Generator().manual_seed(0))[:8]
    for edge in map(tuple, edges[some].tolist()):
        ours = float(values[edge])
        assert ours == pytest.approx(slow_effect(name, edge), abs=2e-5), graph.edge_name(*edge)


@pytest.mark.parametrize("width", [65, 99, 129])
def test_an_edge_of_a_model_of_odd_width_is_what_hugging_face_says(width: int) -> None:
    heads = 5 if width % 5 == 0 else 3
    hf = tiny.gpt2_of_width(width, heads)
    model = tiny.bridge_of(hf, "odd")
    task = tiny_task(1, 6)
    scores = edge_patching(make_experiment(model, task))
    clean, corrupted = task.clean, task.corrupted

    def metric(change: torch.Tensor | None) -> float:
        """The metric of the clean prompt, what the first MLP reads changed."""
        norm, hooks = hf.transformer.h[0].ln_2, []
        if change is not None:
            hooks = [norm.register_forward_pre_hook(lambda module, given: (given[0] + change,))]
        with torch.no_grad():
            logits = hf(clean).logits
        for hook in hooks:
            hook.remove()
        return slow_metric(logits[0], task, 0)

    embed = hf.transformer.wte(corrupted) - hf.transformer.wte(clean)
    graph = make_experiment(model, task).graph
    found = float(scores[graph.destination_index("m0"), 0])
    assert found == pytest.approx(metric(None) - metric(embed), rel=1e-3, abs=1e-5)


def test_nodes_against_slow_runs() -> None:
    experiment = make_experiment(cases.model_of("llama"), TASK)
    values, graph = node_patching(experiment), experiment.graph
    assert not values[~graph.exists].any()
    for node in ("embed", "a1.h2", "m0"):
        source = graph.source_index(node)
        of_source = values[graph.exists[:, source], source]
        assert torch.equal(of_source, of_source[:1].expand(of_source.shape))
        effect = slow_effect("llama", (slice(None), source))
        assert float(of_source[0]) == pytest.approx(effect, abs=2e-5)


@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
def test_linear_effects_are_exact(ablation: str) -> None:
    experiment, exact = linear(ablation)
    values = edge_patching(experiment)
    torch.testing.assert_close(values, exact, atol=1e-5, rtol=1e-4)
    # Edges out of one node share no path, so in a linear model their effects add up to the node's.
    nodes = exact.sum(0) * experiment.graph.exists
    torch.testing.assert_close(node_patching(experiment), nodes, atol=1e-5, rtol=1e-4)


def test_both_directions_agree_where_all_is_linear() -> None:
    experiment, exact = linear()
    values = edge_patching(experiment, direction="denoise")
    torch.testing.assert_close(values, exact, atol=1e-5, rtol=1e-4)
    noise, denoise = (node_patching(experiment, direction=d) for d in ("noise", "denoise"))
    torch.testing.assert_close(noise, denoise, atol=1e-5, rtol=1e-4)


def test_positions_add_up_where_all_is_linear() -> None:
    experiment, exact = linear()
    by_position = edge_patching(experiment, positions=True)
    assert by_position.shape == (*exact.shape, 6)
    torch.testing.assert_close(by_position.sum(-1), exact, atol=1e-5, rtol=1e-4)
    nodes = node_patching(experiment, positions=True)
    torch.testing.assert_close(nodes.sum(-1), node_patching(experiment), atol=1e-5, rtol=1e-4)


def test_one_position_against_a_slow_run() -> None:
    experiment = make_experiment(cases.model_of("gpt2"), TASK.take([0]))
    graph = experiment.graph
    destination, source = graph.parse_edge("a0.h1->a2.h0<k>")
    values = edge_patching(experiment, positions=True)
    keep = torch.ones(*graph.exists.shape, 6)
    keep[destination, source, 3] = 0
    full = slow_metric(slow_run("gpt2", TASK, 0, torch.ones_like(keep)).logits, TASK, 0)
    cut = slow_metric(slow_run("gpt2", TASK, 0, keep).logits, TASK, 0)
    assert float(values[destination, source, 3]) == pytest.approx(full - cut, abs=2e-5)


def test_passes_are_one_an_edge() -> None:
    experiment, _ = linear()
    edge_patching(experiment)
    # beside them one over the clean and one over the corrupted prompts
    assert experiment.passes.forward_rows == 5 * (experiment.graph.edges + 2)
    assert experiment.passes.backward_rows == 0


@pytest.mark.extended
def test_a_small_budget_changes_nothing() -> None:
    experiment, _ = linear()
    task = experiment.task.take([0, 1])
    small, large = (make_experiment(experiment.model, task, memory_budget=b) for b in (1, 2**27))
    torch.testing.assert_close(node_patching(small), node_patching(large), atol=1e-6, rtol=1e-5)


def test_too_many_rows_are_refused() -> None:
    experiment, _ = linear()
    edges = experiment.graph.edges
    with pytest.raises(TooManyRowsError, match=rf"{5 * edges} rows \({edges} edges x 5 pairs\)"):
        edge_patching(experiment, max_rows=5 * edges - 1)
    with pytest.raises(ValueError, match=r"node-patching .* more than max_rows=10; .* eap"):
        node_patching(experiment, max_rows=10)
    assert experiment.passes.forward_rows == 0
    assert edge_patching(experiment, max_rows=5 * edges).any()


def test_positions_need_one_length() -> None:
    experiment = make_experiment(cases.model_of("llama"), uneven_task())
    for method in (edge_patching, node_patching):
        with pytest.raises(ValueError, match="one length"):
            method(experiment, positions=True)
