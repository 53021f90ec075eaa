"""Norms of TransformerLens models, read off their modules' answers rather than their names."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Norm:
    """A norm before attention or an MLP, `x / scale(x) * gain + bias`, x less its mean if centred.

    Attributes:
        gain, bias: its weights; Gemma's offset of one is in the gain.
        centred: LayerNorm, not RMSNorm.
        eps: added to the mean square under the root.
    """

    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    centred: bool
    eps: float

    def centre(self, x: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
        """x less its mean, where the norm subtracts it."""
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def scale(self, centred: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any 1"]:
        """What the norm divides by, for x already centred."""
        square = torch.linalg.vector_norm(centred, dim=-1, keepdim=True) ** 2
        return (square / centred.shape[-1] + self.eps).sqrt()

    def __call__(self, x: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
        """The norm of x."""
        centred = self.centre(x)
        return centred / self.scale(centred) * self.gain + self.bias


def read_norm(module: torch.nn.Module | None, like: Tensor, cfg: Any = None) -> Norm | None:
    """A norm from its module; None where there is no module, or one that changes nothing.

    Args:
        module: a norm of either model class.
        like: a vector of the width, dtype and device of the stream.
        cfg: the model's, asked for its `eps` where the module does not hold it.
    """
    if module is None:
        return None
    ramp = torch.linspace(-1, 2, len(like), device=like.device, dtype=like.dtype).view(1, 1, -1)
    with torch.no_grad(), hooks_aside(module):
        once, twice = module(ramp), module(2 * ramp)
    if torch.equal(once, ramp) and torch.equal(twice, 2 * ramp):
        return None
    gain, bias, centred = norm_weights(module, like)
    holders = [module, getattr(module, "original_component", None), cfg]
    eps = next(
        float(value)
        for holder in holders
        for key in ("eps", "variance_epsilon")
        if isinstance(value := getattr(holder, key, None), float)
    )
    return Norm(gain, bias, centred, eps)


def norm_weights(norm: Any, like: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Gain, bias and centring of a norm module, from its answers.

    Modules disagree on where they keep a weight and whether it is stored minus one (Gemma), but
    they all answer x with gain * x / scale(x) + bias. For x of large entries of alternating sign
    the mean is exactly zero, eps does not count, and the scale is known. An odd width needs one
    entry of zero, whose gain is read from a second such x.
    """
    width, odd = len(like), len(like) % 2
    signs = torch.ones_like(like)
    signs[1::2] = -1
    first, second = signs.clone(), signs.clone()
    if odd:
        first[-1] = second[0] = 0
    # A square of the larger would overflow in float16, where eps counts less than rounding.
    size = 2.0**7 if like.dtype == torch.float16 else 2.0**24
    shift = size / 2
    probes = torch.stack([0 * first, size * first, size * second, size * first + shift])
    with torch.no_grad(), hooks_aside(norm):
        bias, answer, again, shifted = norm(probes.unsqueeze(0))[0]
    scale = math.sqrt((width - odd) / width)  # over the size of the entries
    gain = (answer - bias) * first * scale
    if odd:
        gain[-1] = (again - bias)[-1] * signs[-1] * scale
    centred = torch.allclose(shifted, answer, rtol=1e-2, atol=1e-3)
    return gain, bias, centred


@contextlib.contextmanager
def hooks_aside(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Our own questions to a module are none of the hooks' business that a user has put there."""
    kept = [(part, part._forward_hooks) for part in module.modules()]
    for part, hooks in kept:
        part._forward_hooks = type(hooks)()
    try:
        yield module
    finally:
        for part, hooks in kept:
            part._forward_hooks = hooks
