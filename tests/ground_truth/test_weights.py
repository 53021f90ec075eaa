from __future__ import annotations

from typing import Any

import pytest
import torch

from strace_lens.ground_truth.weights import Weights, model_of
from tests.ground_truth import oracle


def random_weights(*, mlp: bool, causal: bool) -> Weights:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.4

    layers, heads, d_model, d_head, d_mlp = 2, 3, 10, 4, 9
    inward = (layers, heads, d_model, d_head)
    mlps = {
        "W_in": normal(layers, d_model, d_mlp),
        "b_in": normal(layers, d_mlp),
        "W_out": normal(layers, d_mlp, d_model),
        "b_out": normal(layers, d_model),
    }
    return Weights(
        W_E=normal(7, d_model),
        W_pos=normal(6, d_model),
        W_Q=normal(*inward),
        W_K=normal(*inward),
        W_V=normal(*inward),
        W_O=normal(layers, heads, d_head, d_model),
        W_U=normal(d_model, 5),
        causal=causal,
        **(mlps if mlp else {}),
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


def test_the_callers_random_numbers_stay() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model_of(random_weights(mlp=True, causal=True), "random")
    assert torch.equal(torch.get_rng_state(), before)
