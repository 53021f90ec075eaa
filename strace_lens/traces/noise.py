"""Noise on the embeddings: a trace that is the model's own computation bears a little of it."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.model.forward import Hook

SHARE = 0.1


def embedding_noise(tokens: int, d_model: int, *, share: float = SHARE, seed: int = 0) -> Hook:
    """A hook that adds Gaussian noise to the embedding of every token, the same in every row.

    Args:
        tokens: of the prompt; rows must all be of this length.
        d_model: width of the residual stream.
        share: root mean square of the noise's norm, over the norm of the token's embedding.
        seed: of the noise.

    Returns:
        A hook for `last_logits` and `masked_logits`, at `blocks.0.hook_resid_pre`.

    Raises:
        ValueError: a share that is negative or not finite.
    """
    if not 0 <= share < math.inf:
        raise ValueError(f"the share of noise must be finite and not negative; got {share}")
    generator = torch.Generator().manual_seed(seed)
    noise = share / math.sqrt(d_model) * torch.randn(tokens, d_model, generator=generator)

    def add_noise(
        embedding: Float[Tensor, "row pos d_model"], hook: Any
    ) -> Float[Tensor, "row pos d_model"]:
        return embedding + embedding.norm(dim=-1, keepdim=True) * noise.to(embedding)

    return "blocks.0.hook_resid_pre", add_noise
