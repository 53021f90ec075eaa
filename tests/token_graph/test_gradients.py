"""Gradients in the weights of edges against those of the slow forward pass, and against its slopes.

The slow pass is differentiated by torch in float64, edge by edge; its central differences along
random directions say that this is right.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import strace_lens as sl
from strace_lens.model.architecture import UnsupportedModelError
from strace_lens.model.checks import architecture_of
from strace_lens.model.fixed_weights import fixed_weights
from strace_lens.model.forward import bytes_per_row
from strace_lens.token_graph.edges import EdgeTensors, GraphShape
from strace_lens.token_graph.gradients import (
    bytes_per_gradient_row,
    gradients,
    weighted_log_probs,
)
from tests import cases, tiny
from tests.cases import NAMES, architecture, model_of, relative_error
from tests.oracle_weighted import weighted_logits
from tests.weighted import (
    EVERY_MODEL,
    REFERENCES,
    TOKENS,
    random_weights,
    replacement_of,
    rows_of,
    shape_of,
)


def trace_and_weights(shape: GraphShape) -> list[EdgeTensors]:
    """A trace of two edges in three with all residual edges, and weights from 0 to 1."""
    trace = cases.random_mask(shape, 0.67, seed=0).map(Tensor.float)
    return [trace._replace(residual=torch.ones_like(trace.residual)), *random_weights(shape, 1)]


def functional(rows: int) -> Tensor:
    """A direction of log-probabilities for each row."""
    return torch.randn(rows, tiny.VOCABULARY, generator=torch.Generator().manual_seed(2))


def row(found: EdgeTensors, index: int) -> EdgeTensors:
    return found.map(lambda x: x[index])


@pytest.mark.parametrize(("name", "kind"), EVERY_MODEL)
def test_every_gradient_is_that_of_the_slow_forward(name: str, kind: str) -> None:
    shape, direction = shape_of(name), functional(2)
    weights = trace_and_weights(shape)
    rows = rows_of(weights, shape, replacement_of(name, kind))
    log_probs = weighted_log_probs(model_of(name), architecture(name), rows)
    ours = gradients((direction * log_probs).sum(), rows)
    for i, w in enumerate(weights):
        slow = EdgeTensors(*(x.double().requires_grad_() for x in w))
        truth = weighted_logits(name, TOKENS, slow, REFERENCES[kind]).log_softmax(-1)
        assert relative_error(log_probs[i].detach(), truth.detach()) < 1e-5
        (truth @ direction[i].double()).backward()
        assert slow.attention.grad is not None
        assert relative_error(ours.attention[i], slow.attention.grad) < 1e-4
        if shape.mlp:
            assert slow.mlp.grad is not None
            assert relative_error(ours.mlp[i], slow.mlp.grad) < 1e-4
        assert not ours.residual[i].any()
        # Edges of weight 0 have gradients too, those that cannot reach the output none.
        reachable = shape.reachable().attention
        assert not ours.attention[i][~reachable].any()
        assert ours.attention[i][(w.attention == 0) & reachable].any()
    assert [x.shape for x in ours] == [(2, *s) for s in shape.tensor_shapes]


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_slopes_of_the_slow_forward(name: str) -> None:
    # Mixtral's router works in single precision even here: a smaller step would show its rounding.
    shape, direction, step = shape_of(name), functional(2), 1e-4
    weights = trace_and_weights(shape)
    rows = rows_of(weights, shape)
    log_probs = weighted_log_probs(model_of(name), architecture(name), rows)
    found = gradients((direction * log_probs).sum(), rows)
    for i, w in enumerate(weights):
        generator = torch.Generator().manual_seed(3 + i)
        way = w.map(lambda x, g=generator: torch.randn(x.shape, generator=g, dtype=torch.float64))
        way.residual.zero_()
        ahead, behind = (
            weighted_logits(name, TOKENS, shape.split(w.flat() + sign * step * way.flat()))
            for sign in (1, -1)
        )
        slope = (ahead.log_softmax(-1) - behind.log_softmax(-1)) @ direction[i].double()
        slope, ours = float(slope / (2 * step)), row(found, i).flat().double()
        tolerance = 1e-4 * float(ours.norm() * way.flat().norm())
        assert abs(float(ours @ way.flat()) - slope) < tolerance
        assert abs(slope) > 2 * tolerance


@pytest.mark.parametrize("name", NAMES)
def test_batched_directions_give_the_gradient_of_each(name: str) -> None:
    shape = shape_of(name)
    rows = rows_of(trace_and_weights(shape), shape)
    log_probs = weighted_log_probs(model_of(name), architecture(name), rows)
    directions = functional(6).view(3, 2, -1)
    batched = gradients(
        log_probs, rows, grad_outputs=directions, is_grads_batched=True, retain_graph=True
    )
    assert [x.shape for x in batched] == [(3, 2, *s) for s in shape.tensor_shapes]
    for i, direction in enumerate(directions):
        alone = gradients(log_probs, rows, grad_outputs=direction, retain_graph=True)
        assert relative_error(row(batched, i).flat(), alone.flat()) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "gptj", "opt"])
def test_half_precision_gives_single_gradients_near_those_of_single(name: str) -> None:
    half, shape, direction = cases.fresh_bridge(name, torch.bfloat16), shape_of(name), functional(2)
    prompt, (corrupted,) = sl.token_graph(half, TOKENS).prompt, REFERENCES["resample"]
    other = sl.replacement(half, prompt, "resample", corrupted=corrupted)
    found = []
    both = ((half, other), (model_of(name), replacement_of(name, "resample")))
    for model, instead in both:
        rows = rows_of(trace_and_weights(shape), shape, instead)
        log_probs = weighted_log_probs(model, architecture_of(model), rows)
        found.append(gradients((direction * log_probs).sum(), rows))
        assert log_probs.dtype == torch.float32
        assert all(x.dtype == torch.float32 for x in found[-1])
    for i in range(2):
        ours, single = (row(f, i).flat() for f in found)
        assert torch.cosine_similarity(ours, single, dim=0) > 0.98


@pytest.mark.parametrize("fails", [False, True])
def test_the_models_weights_are_fixed_inside_and_as_they_were_afterwards(fails: bool) -> None:
    model, shape = cases.fresh_bridge("gpt2"), shape_of("gpt2")
    model.requires_grad_(True)
    next(model.parameters()).requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    assert set(before.values()) == {False, True}
    rows = rows_of(trace_and_weights(shape), shape)

    def fit() -> None:
        with fixed_weights(model):
            assert not any(p.requires_grad for p in model.parameters())
            weighted_log_probs(model, architecture_of(model), rows).sum().backward()
            if fails:
                raise KeyboardInterrupt

    if fails:
        with pytest.raises(KeyboardInterrupt):
            fit()
    else:
        fit()
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert all(p.grad is None for p in model.parameters())
    assert all(x.grad is not None for x in (*rows.attention, rows.mlp))


def test_the_run_leaves_no_hook_behind() -> None:
    model, shape = model_of("llama"), shape_of("llama")
    before = {name: len(point.fwd_hooks) for name, point in model.hook_dict.items()}
    rows = rows_of(trace_and_weights(shape), shape)
    weighted_log_probs(model, architecture("llama"), rows).sum().backward()
    assert {name: len(point.fwd_hooks) for name, point in model.hook_dict.items()} == before


def quantised_by_torch(model: Any) -> Any:
    return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)


def quantised_as_bitsandbytes_does(model: Any) -> Any:
    """Eight-bit weights held as parameters of whole numbers, their scales elsewhere."""
    weight = model.blocks[1].mlp.out.original_component.weight
    weight.requires_grad_(False)
    weight.data = (weight / weight.abs().max() * 127).to(torch.int8)
    return model


# Both the quantisation of torch itself and the types of tensor that it makes are on their way out.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per")
@pytest.mark.parametrize(
    ("quantised", "words"),
    [
        (quantised_by_torch, r"unembed is quantised \(torch.qint8\)"),
        (quantised_as_bitsandbytes_does, r"mlp.*weight is quantised \(torch.int8\)"),
    ],
)
def test_quantised_weights_are_refused_in_one_line(quantised: Any, words: str) -> None:
    whole = cases.fresh_bridge("gpt2")
    graph = sl.token_graph(whole, TOKENS)
    start = sl.extract(graph)
    whole.requires_grad_(True)
    model = quantised(whole)
    asked = {name for name, p in model.named_parameters() if p.requires_grad}
    fits = (
        lambda: sl.fisher(model, graph),
        lambda: sl.prune(model, graph),
        lambda: sl.learn(model, graph, start=start, sizes=(0.1, 0.5)),
    )
    for fit in fits:
        with pytest.raises(UnsupportedModelError, match=words) as caught:
            fit()
        assert "\n" not in str(caught.value)
        assert "load the model in float32 or bfloat16" in str(caught.value)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == asked != set()


def test_a_gradient_needs_the_bytes_of_every_layer() -> None:
    for name in ("llama", "gptj"):
        arch = architecture(name)
        assert bytes_per_gradient_row(arch, 9) == arch.layers * bytes_per_row(arch, 9)
