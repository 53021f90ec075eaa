"""What stands between the last residual stream and the logits, proved on a run's own logits.

That is the final norm, the unembedding, and in some models a factor (Cohere, Granite) and a soft
cap (Gemma 2). Everything but the norm's scale and the cap is linear, so logits can be divided among
the parts of a stream.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.model.architecture import (
    Architecture,
    Model,
    UnsupportedModelError,
)
from strace_lens.model.checks import at_least_single, tolerance
from strace_lens.model.hold import fixed_weights, hold
from strace_lens.model.norms import Norm, hooks_aside, read_norm


class Unembedding(NamedTuple):
    """How logits are read off a residual stream behind the last block.

    Attributes:
        model: whose unembedding is asked.
        norm: the final norm; None where there is none.
        factor: what the model multiplies the product by.
        cap: logits behind it are `cap * tanh(logits / cap)`; None where there is none.
    """

    model: Model
    norm: Norm | None
    factor: float = 1.0
    cap: float | None = None

    def logits(self, stream: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any vocab"]:
        """The logits of residual streams, each normed at its own scale."""
        logits = self.factor * self._unembed(self.norm(stream) if self.norm else stream)
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def direction(
        self, weights: Float[Tensor, " vocab"], stream: Float[Tensor, " d_model"]
    ) -> tuple[Float[Tensor, " d_model"], float]:
        """A weighted sum of logits before the cap, as a product with a stream and a constant.

        The norm's scale is held at that of the stream that is given; for that stream, the product
        and the constant add up to the weighted sum itself.

        Args:
            weights: of the logits.
            stream: whose norm's scale is held.

        Returns:
            What to multiply any part of the stream by, and the share of biases.
        """
        read = torch.zeros_like(stream).requires_grad_()
        with fixed_weights(self.model):
            constant = self._unembed(read) @ weights
            (linear,) = torch.autograd.grad(constant, read)
        linear, constant = self.factor * linear, self.factor * constant.detach()
        if self.norm is None:
            return linear, float(constant)
        constant = constant + self.norm.bias @ linear
        centred = self.norm.centre(stream)
        # Centring is a projection, which may stand before the vector or before the direction.
        linear = self.norm.centre(self.norm.gain * linear) / self.norm.scale(centred)
        return linear, float(constant)

    def added(
        self, writes: Float[Tensor, "write d_model"], stream: Float[Tensor, " d_model"]
    ) -> Float[Tensor, "write vocab"]:
        """Logits before the cap that each part of a stream adds, less their mean.

        The norm's scale is held at that of the stream that is given.
        """
        if self.norm is not None:
            scale = self.norm.scale(self.norm.centre(stream))
            writes = self.norm.gain * self.norm.centre(writes) / scale
        logits = self.factor * (self._unembed(writes) - self._unembed(torch.zeros_like(stream)))
        return logits - logits.mean(-1, keepdim=True)

    def _unembed(self, normed: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any vocab"]:
        module = _unembed_module(self.model)
        like = next(module.parameters())
        rows = normed.reshape(1, -1, normed.shape[-1]).to(like)
        with hooks_aside(module):
            logits = module(rows)[0].to(normed)
        return logits.reshape(*normed.shape[:-1], -1)


def unembedding(
    model: Model,
    architecture: Architecture,
    stream: Float[Tensor, " d_model"],
    logits: Float[Tensor, " vocab"],
) -> Unembedding:
    """How a model reads logits off its last residual stream, proved on the logits of one run.

    Args:
        model: the model.
        architecture: of the same model.
        stream: behind the last block, at one position.
        logits: of the model at that position.

    Raises:
        UnsupportedModelError: the norm and the unembedding do not give these logits.
    """
    stream, logits = at_least_single(stream), at_least_single(logits)
    with hold(model), torch.no_grad():
        norm = read_norm(getattr(model, "ln_final", None), stream, model.cfg)
        if norm is not None:
            norm = Norm(
                at_least_single(norm.gain), at_least_single(norm.bias), norm.centred, norm.eps
            )
        cap = _soft_cap(model)
        plain = Unembedding(model, norm).logits(stream)
        before = logits if cap is None else cap * torch.atanh((logits / cap).clamp(-1, 1))
        # A few logits far out may be rounded to the cap itself.
        counted = before.isfinite()
        factor = float(before[counted] @ plain[counted] / (plain[counted] @ plain[counted]))
        exact = tolerance(next(_unembed_module(model).parameters()).dtype)
        factor = 1.0 if abs(factor - 1) < exact else factor
        found = Unembedding(model, norm, factor, cap)
        gap = float((found.logits(stream) - logits).norm() / logits.norm())
    if not (factor > 0 and math.isfinite(factor) and gap < exact):
        raise UnsupportedModelError(
            f"the logits of {architecture.name} cannot be divided among its parts: its final norm "
            f"and unembedding do not give them (relative gap {gap:.1e}, allowed {exact:.0e})"
        )
    return found


def _unembed_module(model: Any) -> Any:
    return model.unembed


def _soft_cap(model: Model) -> float | None:
    """Where the logits are capped, which Gemma 2 and its like name in their configuration."""
    config = getattr(getattr(model, "original_model", None), "config", None)
    text = config.get_text_config() if config is not None else None
    for holder, key in (
        (text, "final_logit_softcapping"),
        (model.cfg, "output_logits_soft_cap"),
    ):
        cap = getattr(holder, key, None)
        if isinstance(cap, int | float) and cap > 0:
            return float(cap)
    return None
