from __future__ import annotations

from typing import Any

import pytest
import torch

from strace_lens.ground_truth.weights import Mlps, Weights, model_of, weights_of
from tests import tiny
from tests.ground_truth import oracle

NAMES = ("W_E", "W_pos", "W_Q", "W_K", "W_V", "W_O", "W_U")


def random_weights(*, mlp: bool, causal: bool) -> Weights:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.4

    layers, heads, d_model, d_head, d_mlp = 2, 3, 10, 4, 9
    inward = (layers, heads, d_model, d_head)
    mlps = Mlps(
        normal(layers, d_model, d_mlp),
        normal(layers, d_mlp),
        normal(layers, d_mlp, d_model),
        normal(layers, d_model),
    )
    return Weights(
        W_E=normal(7, d_model),
        W_pos=normal(6, d_model),
        W_Q=normal(*inward),
        W_K=normal(*inward),
        W_V=normal(*inward),
        W_O=normal(layers, heads, d_head, d_model),
        W_U=normal(d_model, 5),
        mlps=mlps if mlp else None,
        causal=causal,
    )


@pytest.mark.parametrize("mlp", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_the_model_computes_what_the_weights_say(mlp: bool, causal: bool) -> None:
    weights = random_weights(mlp=mlp, causal=causal)
    tokens = torch.tensor([[0, 1, 2, 3], [6, 6, 5, 0]])
    model: Any = model_of(weights, "random")
    ours = model(tokens, return_type="logits")
    torch.testing.assert_close(ours.double(), oracle.run(weights, tokens).logits, rtol=0, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.cfg.model_name == "random"


@pytest.mark.parametrize("mlp", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_the_weights_come_back_as_they_went_in(mlp: bool, causal: bool) -> None:
    weights = random_weights(mlp=mlp, causal=causal)
    back = weights_of(model_of(weights, "random"))
    assert back.causal == causal
    assert all(torch.equal(getattr(back, n), getattr(weights, n)) for n in NAMES)
    assert (back.mlps is None) == (weights.mlps is None)
    if back.mlps is not None and weights.mlps is not None:
        for name in vars(back.mlps):
            assert torch.equal(getattr(back.mlps, name), getattr(weights.mlps, name))


def test_the_callers_random_numbers_stay() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model_of(random_weights(mlp=True, causal=True), "random")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_with_norms_is_refused() -> None:
    with pytest.raises(ValueError, match="norms"):
        weights_of(tiny.bridge("gpt2"))
