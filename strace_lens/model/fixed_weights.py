"""A model whose weights ask for no gradient, while gradients of something else are taken."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from strace_lens.model.architecture import Model, UnsupportedModelError


def expect_gradients(model: Model) -> None:
    """Refuse a model through whose weights no gradient passes.

    Raises:
        UnsupportedModelError: the weights are quantised, or were made under
            `torch.inference_mode`.
    """
    for name, held in _held_tensors(cast(torch.nn.Module, model)):
        if held.is_inference():
            raise UnsupportedModelError(
                f"gradients need weights made outside torch.inference_mode; {name} was made inside "
                "it: load the model outside, or rank with an estimator without gradients"
            )
        if held.is_quantized or held.dtype in (torch.int8, torch.uint8):
            raise UnsupportedModelError(
                f"gradients need weights in floating point; {name} is quantised ({held.dtype}): "
                "load the model in float32 or bfloat16, or rank with an estimator without gradients"
            )


@contextlib.contextmanager
def fixed_weights(model: Model) -> Iterator[None]:
    """Ask no gradient of the model's weights inside; afterwards all is as it was.

    Raises:
        UnsupportedModelError: the weights are quantised, or were made under
            `torch.inference_mode`: no gradient passes through them.
    """
    expect_gradients(model)
    module = cast(torch.nn.Module, model)
    asked = [p for p in module.parameters() if p.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


def _held_tensors(module: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers, and the packed weights of torch's own quantised layers."""
    yield from module.named_parameters()
    yield from module.named_buffers()
    for name, part in module.named_modules():
        if hasattr(part, "_packed_params"):
            yield name, cast(Any, part).weight()
