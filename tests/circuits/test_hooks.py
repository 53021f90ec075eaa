"""A circuit as hooks in runs of one's own: logits by the slow route, gradients, refusals."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from strace_lens.circuits.circuit import Circuit, full_circuit
from strace_lens.circuits.graph import ComponentGraph
from strace_lens.circuits.wiring import component_graph
from tests import cases, tiny
from tests.cases import model_of, relative_error
from tests.circuits.made import (
    MASKS,
    NAMES,
    double_model,
    random_keep,
    slow_run,
    tiny_task,
    uneven_task,
)

TASK = tiny_task(3)
OTHERS = ("mean", "mean-over-positions", "zero")
CASES = [
    *((kind, "resample") for kind in MASKS),
    *(("soft by position", ablation) for ablation in OTHERS),
    *(
        pytest.param(kind, ablation, marks=pytest.mark.extended)
        for kind in MASKS
        if kind != "soft by position"
        for ablation in OTHERS
    ),
]
"""A mask says which edges go and an ablation what they carry: those that meet in no case of the
first tier meet in the second."""
SOME = ["llama", "gpt2", "gptj", "gemma2", *cases.HOOKED[:1]]


@contextlib.contextmanager
def mlp_inputs(model: Any) -> Iterator[None]:
    """What a user of a HookedTransformer has to do."""
    if isinstance(model, tiny.TransformerBridge):
        yield
        return
    model.set_use_hook_mlp_in(True)
    try:
        yield
    finally:
        model.set_use_hook_mlp_in(False)


def run(model: Any, tokens: Tensor, hooks: list) -> Tensor:
    with torch.no_grad(), mlp_inputs(model):
        return model.run_with_hooks(tokens, fwd_hooks=hooks)


def slow(name: str, circuit: Circuit, ablation: str, task=TASK) -> Tensor:
    runs = [slow_run(name, task, pair, circuit.keep, ablation) for pair in range(len(task))]
    return torch.stack([one.logits.float() for one in runs])


@pytest.mark.parametrize(("kind", "ablation"), CASES)
@pytest.mark.parametrize("name", SOME)
def test_a_run_with_hooks_is_the_patched_run(name: str, kind: str, ablation: str) -> None:
    model = model_of(name)
    circuit = Circuit(component_graph(model), random_keep(component_graph(model), 3, **MASKS[kind]))
    hooks = circuit.hooks(model, TASK, ablation=ablation)
    truth = slow(name, circuit, ablation)
    for _ in range(2):  # the same list again
        assert relative_error(run(model, TASK.clean, hooks), truth) < 1e-4
    assert relative_error(run(model, TASK.clean, []), truth) > 1e-2
    assert all(not point.fwd_hooks for point in model.hook_dict.values())


@pytest.mark.extended
@pytest.mark.parametrize("name", NAMES)
def test_hooks_patch_every_architecture(name: str) -> None:
    model = model_of(name)
    circuit = Circuit(component_graph(model), random_keep(component_graph(model), 4))
    ours = run(model, TASK.clean, circuit.hooks(model, TASK))
    assert relative_error(ours, slow(name, circuit, "resample")) < 1e-4


def test_without_a_task_edges_carry_zero_whatever_is_run() -> None:
    model = model_of("llama")
    circuit = Circuit(component_graph(model), random_keep(component_graph(model), 5))
    hooks = circuit.hooks(model)
    for task in (TASK, tiny_task(2, 4, seed=3)):
        ours = run(model, task.clean, hooks)
        assert relative_error(ours, slow("llama", circuit, "zero", task)) < 1e-4


def test_the_mean_stands_in_for_any_batch() -> None:
    model = model_of("gpt2")
    circuit = Circuit(component_graph(model), random_keep(component_graph(model), 6))
    hooks = circuit.hooks(model, TASK, ablation="mean")
    truth = slow("gpt2", circuit, "mean")
    assert relative_error(run(model, TASK.clean[1:2], hooks), truth[1:2]) < 1e-4


def test_gradients_pass_through_a_run_with_hooks() -> None:
    """Of a step along a random direction in the embeddings, by the difference of two runs."""
    model = double_model("gpt2")  # others compute some parts in single precision
    circuit = Circuit(component_graph(model), random_keep(component_graph(model), 7, soft=True))
    hooks = circuit.hooks(model, TASK)
    generator = torch.Generator().manual_seed(0)
    step = torch.randn(3, 6, model.cfg.d_model, generator=generator, dtype=torch.float64)
    size = torch.zeros((), requires_grad=True, dtype=torch.float64)

    def logit(size: Tensor) -> Tensor:
        first = ("blocks.0.hook_resid_pre", lambda value, hook: value + size * step)
        return model.run_with_hooks(TASK.clean, fwd_hooks=[first, *hooks])[:, -1, 7].sum()

    (ours,) = torch.autograd.grad(logit(size), size)
    with torch.no_grad():
        truth = (logit(torch.tensor(1e-5)) - logit(torch.tensor(-1e-5))) / 2e-5
    assert float(ours) == pytest.approx(float(truth), rel=1e-5)
    assert abs(float(truth)) > 1e-2


def test_a_full_circuit_leaves_the_model_as_it_is() -> None:
    model = model_of("llama")
    assert full_circuit(component_graph(model)).hooks(model) == []


def test_what_does_not_fit_is_refused() -> None:
    model = model_of("llama")
    graph = component_graph(model)
    circuit = Circuit(graph, random_keep(graph, 0))
    with pytest.raises(ValueError, match="unknown ablation 'noise'; choose from resample"):
        circuit.hooks(model, TASK, ablation="noise")
    with pytest.raises(ValueError, match="mean ablation takes its values from the prompts"):
        circuit.hooks(model, ablation="mean")
    with pytest.raises(ValueError, match="task 'words' has 3 to 7 tokens"):
        circuit.hooks(model, uneven_task())
    with pytest.raises(ValueError, match="belongs to tiny-llama"):
        circuit.hooks(model_of("gptj"))
    other = Circuit(
        ComponentGraph("other", graph.layers, graph.heads, graph.kv_heads), circuit.keep
    )
    with pytest.raises(ValueError, match="belongs to other"):
        other.hooks(model)
    assert other.hooks(model, allow_other_model=True)
    hooks = circuit.hooks(model, TASK)
    with pytest.raises(ValueError, match="prompts of 6 tokens, but the run has 5"):
        run(model, TASK.clean[:, :5], hooks)
    with pytest.raises(ValueError, match="3 pairs, row by row, but the run has 2 rows"):
        run(model, TASK.clean[:2], hooks)
    by_position = Circuit(graph, random_keep(graph, 1, positions=6))
    with pytest.raises(ValueError, match="prompts of 6 tokens, but the run has 4"):
        run(model, TASK.clean[:, :4], by_position.hooks(model))
    with pytest.raises(ValueError, match="the circuit has 6 token positions"):
        by_position.hooks(model, tiny_task(2, 4))
    with pytest.raises(RuntimeError, match=r"ran before blocks\.0\.hook_resid_pre"):
        run(model, TASK.clean, hooks[1:])


@tiny.needs_hooked_transformer
def test_a_model_that_skips_the_inputs_of_its_mlps_is_refused() -> None:
    model = model_of("layernorm")
    circuit = Circuit(component_graph(model), random_keep(component_graph(model), 0))
    with pytest.raises(RuntimeError, match=r"call model\.set_use_hook_mlp_in\(True\)"):
        model.run_with_hooks(TASK.clean, fwd_hooks=circuit.hooks(model, TASK))
