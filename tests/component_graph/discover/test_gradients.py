"""Gradients at destinations: which there are, what they leave behind, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from strace_lens.component_graph.discover import attribution
from strace_lens.component_graph.discover.gradients import (
    ReadGradients,
    destination_gradients,
    read_gradients,
)
from strace_lens.component_graph.experiment import make_experiment
from strace_lens.component_graph.wiring import wiring_of
from strace_lens.model.architecture import UnsupportedModelError
from tests import cases
from tests.component_graph.made import NAMES, double_model, tiny_task

TASK = tiny_task(2, 6)
METHODS = (
    attribution.eap,
    attribution.eap_ig,
    attribution.eap_ig_activations,
    attribution.clean_corrupted,
)


def some_token(logits: Tensor) -> Tensor:
    return logits[:, 0, 7]


def read(model: Any, score: Any = some_token, **options: Any) -> ReadGradients:
    return read_gradients(model, wiring_of(model), TASK.clean, TASK.lengths, score, **options)


@pytest.mark.parametrize("name", NAMES)
def test_every_destination_has_one_gradient_in_the_graphs_order(name: str) -> None:
    model = cases.model_of(name)
    wiring = wiring_of(model)
    numbers: list[int] = []
    for destinations, gradient in destination_gradients(model, wiring, read(model)):
        assert gradient.shape == (destinations.stop - destinations.start, *TASK.clean.shape, 32)
        numbers += range(destinations.start, destinations.stop)
        assert bool(gradient.abs().amax((1, 2, 3)).gt(0).all())
    assert numbers == list(range(wiring.graph.destinations))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "phi", "shortformer", "grouped_query"])
def test_gradients_against_finite_differences_of_the_stream(name: str) -> None:
    """A step of the whole stream is a step of what all of a layer's destinations read."""
    model = double_model(name)
    wiring = wiring_of(model)
    graph, size = wiring.graph, 5e-4  # models norm in float32 whatever they are in
    gradients = torch.cat(
        [gradient.clone() for _, gradient in destination_gradients(model, wiring, read(model))]
    )
    step = torch.randn(gradients.shape[1:], generator=torch.Generator().manual_seed(0)).double()
    for layer in range(graph.layers):

        def value(sign: int, layer: int = layer) -> Tensor:
            point = f"blocks.{layer}.hook_resid_pre"
            hooks = [(point, lambda x, hook: x + sign * size * step)]
            return read(model, hooks=hooks).logits[:, 0, 7]

        moved = (value(1) - value(-1)) / (2 * size)
        # The step reaches this layer's destinations and all that come later.
        whole = gradients[layer * graph.destinations_per_layer :].sum(0)
        ours = torch.einsum("rpm,rpm->r", whole, step)
        assert cases.relative_error(ours, moved) < 3e-3


def test_the_logits_of_the_pass_are_the_models_own() -> None:
    model = cases.model_of("llama")
    with torch.no_grad():
        whole = model(TASK.clean)
    torch.testing.assert_close(read(model).logits[:, 0], whole[:, -1], rtol=0, atol=1e-5)
    everywhere = read(model, lambda logits: logits.sum((1, 2)), every_position=True).logits
    torch.testing.assert_close(everywhere, whole, rtol=0, atol=1e-5)


# ------------------------------------------------------------------ what is left behind


def state(model: Any) -> dict[str, Any]:
    """Hooks, flags, and what is asked of the weights."""
    return {
        "forward": {n: list(p.fwd_hooks) for n, p in model.hook_dict.items()},
        "backward": {n: list(p.bwd_hooks) for n, p in model.hook_dict.items()},
        "flags": {n: v for n, v in vars(model.cfg).items() if n.startswith("use_")},
        "asked": {n: p.requires_grad for n, p in model.named_parameters()},
        "grad": {n: p.grad for n, p in model.named_parameters()},
        "mode": model.training,
        "enabled": torch.is_grad_enabled(),
    }


@pytest.fixture(params=["gpt2", "layernorm"])
def model(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A model whose first MLP's weights ask for gradients, as a trained one's do."""
    made = cases.model_of(request.param)
    asked = list(made.blocks[0].mlp.parameters())
    for parameter in asked:
        parameter.requires_grad_(True)
    yield made
    for parameter in asked:
        parameter.requires_grad_(False)


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_left_as_it_was(model: Any, method: Any) -> None:
    experiment = make_experiment(model, TASK)
    before = state(model)
    values = method(experiment)
    assert state(model) == before
    assert any(before["asked"].values())
    assert not values.requires_grad


def test_the_model_is_left_as_it_was_after_an_error(model: Any) -> None:
    before = state(model)

    def fails(logits: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read(model, fails)
    assert state(model) == before


def test_a_callers_own_no_grad_does_not_stop_gradients() -> None:
    model = cases.model_of("llama")
    with torch.no_grad():
        inside = attribution.eap(make_experiment(model, TASK))
    assert float(inside.abs().max()) > 0
    assert torch.equal(inside, attribution.eap(make_experiment(model, TASK)))


# ------------------------------------------------------------------ what is refused


def test_a_gradient_of_nan_is_refused_by_name() -> None:
    with pytest.raises(FloatingPointError, match=r"NaN or infinite gradient at blocks\.0"):
        read(cases.model_of("llama"), lambda logits: (some_token(logits) * 0).sqrt())


def test_logits_of_nan_are_refused() -> None:
    broken = cases.fresh_bridge("gpt2")
    experiment = make_experiment(broken, TASK)
    weight: Any = broken.blocks[1].mlp.out.original_component.weight
    weight.data[:] = torch.nan
    with pytest.raises(FloatingPointError, match="NaN or infinite logits"):
        attribution.eap(experiment)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per")
@pytest.mark.parametrize("method", METHODS)
def test_quantised_weights_are_refused_in_one_line(method: Any) -> None:
    quantised: Any = torch.ao.quantization.quantize_dynamic(
        cases.fresh_bridge("gpt2"), {torch.nn.Linear}, dtype=torch.qint8
    )
    experiment = make_experiment(quantised, TASK)
    with pytest.raises(UnsupportedModelError, match=r"unembed is quantised \(torch.qint8\)") as e:
        method(experiment)
    assert "\n" not in str(e.value)
