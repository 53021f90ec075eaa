"""A transformer as plain float64 matrices: what the oracle computes on.

`oracle_hugging_face` fills these classes from a Hugging Face model, `oracle_hooked` from a
HookedTransformer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

Rows = Float[Tensor, "pos d_model"]


@dataclass(frozen=True)
class Norm:
    """RMSNorm, or LayerNorm where `centre`."""

    weight: Float[Tensor, " width"]
    bias: Float[Tensor, " width"]
    eps: float
    centre: bool

    def __call__(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        return self.linearised(x, x) + self.bias

    def linearised(
        self, vectors: Float[Tensor, "... width"], at: Float[Tensor, "... width"]
    ) -> Float[Tensor, "... width"]:
        """The norm of the vectors, without its bias, at the scale it has on `at`."""
        scale = (self._centred(at).pow(2).mean(-1, keepdim=True) + self.eps).sqrt()
        return self._centred(vectors) / scale * self.weight

    def _centred(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        return x - x.mean(-1, keepdim=True) if self.centre else x


@dataclass(frozen=True)
class Projection:
    """From the stream to the queries, keys or values of each head."""

    weight: Float[Tensor, "head d_model d_head"]
    bias: Float[Tensor, "head d_head"]

    def __call__(self, x: Rows) -> Float[Tensor, "pos head d_head"]:
        return torch.einsum("pd,hde->phe", x, self.weight) + self.bias


@dataclass(frozen=True)
class Attention:
    """An attention layer; scores are `cap * tanh(scale * q k / cap) + slope * (key - query)`."""

    query: Projection
    key: Projection  # fewer heads than `query` where grouped
    value: Projection
    W_O: Float[Tensor, "head d_head d_model"]
    b_O: Float[Tensor, " d_model"]
    scale: float
    query_norm: Norm | None = None  # over one head, or over all of them where it is that wide
    key_norm: Norm | None = None
    frequencies: list[float] = field(default_factory=list)  # rotary; empty where none
    adjacent: bool = False  # rotary pairs are (0, 1), (2, 3) .. and not (0, n), (1, n + 1) ..
    slopes: list[float] | None = None  # ALiBi
    cap: float | None = None
    window: int | None = None  # a query sees this many keys, itself included
    positions: Float[Tensor, "context d_model"] | None = None  # shortformer: added for q and k only
    sinks: Float[Tensor, " head"] | None = None  # a score that takes part in the softmax alone
    clip: float | None = None  # of queries, keys and values

    def clipped(self, x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        return x if self.clip is None else x.clamp(-self.clip, self.clip)

    @property
    def value_bias(self) -> Float[Tensor, "head d_head"]:
        """The part of a value that is the bias's: none where values are clipped."""
        return self.value.bias if self.clip is None else torch.zeros_like(self.value.bias)


@dataclass(frozen=True)
class Layer:
    """One block. A norm that is absent is None; `mlp` includes `mlp_bias`."""

    attention: Attention
    attention_norm: Norm | None
    attention_post: Norm | None = None
    mlp: Callable[[Rows], Rows] | None = None
    mlp_bias: Float[Tensor, " d_model"] | None = None
    mlp_norm: Norm | None = None
    mlp_post: Norm | None = None


@dataclass(frozen=True)
class Model:
    """A language model from token ids to the logits of a final residual stream."""

    embed: Callable[[Int[Tensor, " pos"]], Rows]
    layers: list[Layer]
    unembed: Callable[[Float[Tensor, " d_model"]], Float[Tensor, " vocab"]]
    parallel: bool = False
