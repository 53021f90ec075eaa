"""Gradients of a masked run in the weights of its edges, the model's own weights held fixed."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.model.architecture import Architecture, Model, device_of
from strace_lens.model.forward import bytes_per_row, last_logits
from strace_lens.token_graph.edges import EdgeTensors
from strace_lens.token_graph.masks import mask_hooks
from strace_lens.token_graph.rows import WeightedRows

GRADIENT_BUDGET = 2**31
"""Bytes of a forward and backward pass unless said otherwise: every layer's values stay alive."""


def weighted_log_probs(
    model: Model, architecture: Architecture, rows: WeightedRows
) -> Float[Tensor, "row vocab"]:
    """Log-probabilities at the last token, in single precision, differentiable in the weights."""
    logits = last_logits(
        model,
        architecture,
        rows.tokens.expand(len(rows), -1),
        hooks=mask_hooks(model, architecture, [rows]),
        gradient=True,
    )
    return logits.float().log_softmax(-1).to(device_of(model))


def gradients(value: Float[Tensor, "*any"], rows: WeightedRows, **options: Any) -> EdgeTensors:
    """Gradients of a value in the weights of attention and MLP edges; those of residual are zero.

    Args:
        value: what to differentiate.
        rows: whose weights.
        options: of `torch.autograd.grad`.

    Returns:
        Tensors in the layout of edges, behind an axis of rows and, if `grad_outputs` are batched,
        one of these before it.
    """
    leaves = [*rows.attention, rows.mlp]
    found = torch.autograd.grad(value, leaves, materialize_grads=True, **options)
    attention = torch.stack(found[:-1], dim=-4)
    batch = attention.shape[:-4]
    # An attention-only model reads no MLP weight: its zeros come without the axis of a batch.
    mlp = found[-1].expand(*batch, *rows.mlp.shape[1:])
    residual = attention.new_zeros(*batch, *rows.residual.shape[1:])
    return EdgeTensors(attention, residual, mlp)


def bytes_per_gradient_row(architecture: Architecture, tokens: int) -> int:
    """Bytes that one row of a forward and backward pass needs, an upper estimate."""
    return architecture.layers * bytes_per_row(architecture, tokens)
