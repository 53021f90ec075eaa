"""Norms read off their modules: gain, bias, centring and eps, against the modules themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from strace_lens.model.norms import Norm, hooks_aside, norm_weights, read_norm
from tests import oracle
from tests.cases import NAMES, model_of, relative_error

NORMS = ("ln1", "ln2", "ln1_post", "ln2_post")


def norms_of(name: str) -> list[tuple[str, torch.nn.Module]]:
    """Every norm of the blocks that the model has."""
    blocks = enumerate(model_of(name).blocks)
    return [
        (f"{n}.{part}", getattr(block, part))
        for n, block in blocks
        for part in NORMS
        if hasattr(block, part)
    ]


def rows(width: int, seed: int = 0, *, small: bool = False) -> Tensor:
    """Random rows with a mean; or so small that eps decides."""
    generator = torch.Generator().manual_seed(seed)
    drawn = 3 * torch.randn(1, 4, width, generator=generator) + 0.7
    return drawn * 1e-3 if small else drawn


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_norm_answers_as_its_module_does(name: str, small: bool) -> None:
    model = model_of(name)
    x = rows(model.cfg.d_model, small=small)
    found = norms_of(name)
    for where, module in found:
        norm = read_norm(module, x[0, 0], model.cfg)
        with torch.no_grad():
            truth = module(x)
        if norm is None:
            assert torch.equal(truth, x), where
        else:
            assert relative_error(norm(x), truth) < 1e-4, where


@pytest.mark.parametrize("name", NAMES)
def test_a_norm_has_the_weights_of_the_plain_model(name: str) -> None:
    model, like = model_of(name), torch.zeros(model_of(name).cfg.d_model)
    for block, layer in zip(model.blocks, oracle.plain(name).layers, strict=True):
        norm, truth = read_norm(getattr(block, "ln1", None), like, model.cfg), layer.attention_norm
        if truth is None:
            assert norm is None
            continue
        assert norm is not None
        assert norm.centred == truth.centre
        assert norm.eps == pytest.approx(truth.eps, rel=1e-3)
        assert relative_error(norm.gain, truth.weight) < 1e-5
        assert float((norm.bias - truth.bias).abs().max()) < 1e-5


class Plain(torch.nn.Module):
    """A norm by hand."""

    def __init__(self, gain: Tensor, bias: Tensor, eps: float, *, centred: bool) -> None:
        super().__init__()
        self.gain, self.bias, self.eps, self.centred = gain, bias, eps, centred

    def forward(self, x: Tensor) -> Tensor:
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        return x / (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt() * self.gain + self.bias


@pytest.mark.parametrize("centred", [True, False])
def test_the_weights_of_a_norm_by_hand_are_found(centred: bool) -> None:
    gain, bias = torch.tensor([1.5, -2.0, 0.0, 0.25]), torch.tensor([0.0, 3.0, -1.0, 0.5])
    module = Plain(gain, bias, 1e-5, centred=centred)
    norm = read_norm(module, gain)
    assert norm is not None
    torch.testing.assert_close(norm.gain, gain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(norm.bias, bias)
    assert (norm.centred, norm.eps) == (centred, 1e-5)
    again = norm_weights(module, gain)
    assert torch.equal(again[0], norm.gain)
    assert again[2] == centred
    x = rows(4)
    torch.testing.assert_close(norm(x), module(x), atol=1e-5, rtol=1e-5)
    assert torch.equal(norm.centre(x), x - x.mean(-1, keepdim=True) if centred else x)
    scale = norm.centre(x).square().mean(-1, keepdim=True).add(1e-5).sqrt()
    torch.testing.assert_close(norm.scale(norm.centre(x)), scale)


def test_no_module_and_one_that_changes_nothing_are_no_norm() -> None:
    like = torch.zeros(6)
    assert read_norm(None, like) is None
    assert read_norm(torch.nn.Identity(), like) is None
    assert isinstance(read_norm(torch.nn.LayerNorm(6), like), Norm)


def test_a_users_hooks_see_nothing_of_our_questions_and_are_back_afterwards() -> None:
    module, seen = torch.nn.LayerNorm(6), []
    module.register_forward_hook(lambda *args: seen.append(args))
    read_norm(module, torch.zeros(6))
    assert seen == []
    module(torch.zeros(1, 1, 6))
    assert len(seen) == 1

    def fail(part: Any) -> None:
        with hooks_aside(part):
            part(torch.zeros(1, 1, 6))
            raise KeyError

    with pytest.raises(KeyError):
        fail(module)
    module(torch.zeros(1, 1, 6))
    assert len(seen) == 2


@pytest.mark.parametrize("eps", [1e-12, 1e-5, 1e-2, 1.0])
@pytest.mark.parametrize("width", [2, 3, 32, 33, 65, 99, 129])
@pytest.mark.parametrize("centred", [True, False])
def test_gains_are_exact_at_any_width_and_eps(centred: bool, width: int, eps: float) -> None:
    generator = torch.Generator().manual_seed(width)
    gain, bias = torch.randn(2, width, generator=generator)
    module = Plain(gain, bias, eps, centred=centred)
    found = norm_weights(module, gain)
    torch.testing.assert_close(found[0], gain, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[1], bias, rtol=0, atol=0)
    assert found[2] == centred


@pytest.mark.parametrize("width", [32, 33, 65, 99, 129])
@pytest.mark.parametrize("module", [torch.nn.LayerNorm, torch.nn.RMSNorm])
def test_a_fresh_norm_has_gains_of_one_at_any_width(module: Any, width: int) -> None:
    gain, bias, centred = norm_weights(module(width), torch.zeros(width))
    torch.testing.assert_close(gain, torch.ones(width), rtol=1e-6, atol=0)
    assert not bias.any()
    assert centred == (module is torch.nn.LayerNorm)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("width", [32, 33])
def test_gains_are_read_in_the_precision_of_the_module(width: int, dtype: torch.dtype) -> None:
    gain = torch.linspace(0.5, 2, width).to(dtype)
    module = torch.nn.LayerNorm(width).to(dtype)
    module.weight.data.copy_(gain)
    found, _, centred = norm_weights(module, gain)
    rounding = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, gain, rtol=rounding, atol=0)
    assert centred
