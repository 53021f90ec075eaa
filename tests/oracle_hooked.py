"""A HookedTransformer's weights as the plain float64 matrices that `oracle` computes on."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests import tiny
from tests.oracle_model import Attention, Layer, Model, Norm, Projection, Rows


def from_hooked_transformer(name: str) -> Model:
    """The tiny HookedTransformer of that shape as plain matrices."""
    hooked: Any = tiny.hooked(name)
    config = hooked.cfg
    weights = {key: value.double() for key, value in hooked.state_dict().items()}
    layers = [_layer(config, weights, index) for index in range(config.n_layers)]
    final = _norm(config, weights, "ln_final")

    def embed(ids: Tensor) -> Rows:
        words = weights["embed.W_E"][ids]
        if config.positional_embedding_type != "standard":
            return words
        return words + weights["pos_embed.W_pos"][: len(ids)]

    return Model(
        embed,
        layers,
        lambda x: final(x) @ weights["unembed.W_U"] + weights["unembed.b_U"],
        parallel=config.parallel_attn_mlp,
    )


def _layer(config: Any, weights: dict[str, Tensor], index: int) -> Layer:
    block = f"blocks.{index}"
    after = config.use_normalization_before_and_after
    layer = Layer(
        _attention(config, weights, f"{block}.attn."),
        attention_norm=_norm(config, weights, f"{block}.ln1"),
        attention_post=_norm(config, weights, f"{block}.ln1_post") if after else None,
    )
    if config.attn_only:
        return layer
    return Layer(
        layer.attention,
        layer.attention_norm,
        layer.attention_post,
        mlp=lambda x: _mlp(config, weights, f"{block}.mlp.", x),
        mlp_bias=weights[f"{block}.mlp.b_out"],
        mlp_norm=_norm(config, weights, f"{block}.ln2"),
        mlp_post=_norm(config, weights, f"{block}.ln2_post") if after else None,
    )


def _attention(config: Any, weights: dict[str, Tensor], prefix: str) -> Attention:
    grouped = "_" if config.n_key_value_heads else ""  # the parameters of the key-value heads

    def projection(letter: str, mark: str) -> Projection:
        return Projection(
            weights[f"{prefix}{mark}W_{letter}"], weights[f"{prefix}{mark}b_{letter}"]
        )

    positions, n = config.positional_embedding_type, config.rotary_dim
    heads = config.n_heads
    return Attention(
        projection("Q", ""),
        projection("K", grouped),
        projection("V", grouped),
        weights[f"{prefix}W_O"],
        weights[f"{prefix}b_O"],
        scale=1 / math.sqrt(config.d_head),
        frequencies=[10000.0 ** (-i / n) for i in range(0, n, 2)] if positions == "rotary" else [],
        adjacent=config.rotary_adjacent_pairs,
        slopes=[2.0 ** (-8 * (head + 1) / heads) for head in range(heads)]
        if positions == "alibi"
        else None,
        positions=weights["pos_embed.W_pos"] if positions == "shortformer" else None,
    )


def _mlp(config: Any, weights: dict[str, Tensor], prefix: str, x: Rows) -> Rows:
    """A gated MLP adds b_in after the gate, as TransformerLens does."""
    act = {"gelu": F.gelu, "silu": F.silu}[config.act_fn]
    W_in, b_in = weights[prefix + "W_in"], weights[prefix + "b_in"]
    if config.gated_mlp:
        inner = act(x @ weights[prefix + "W_gate"]) * (x @ W_in) + b_in
    else:
        inner = act(x @ W_in + b_in)
    return inner @ weights[prefix + "W_out"] + weights[prefix + "b_out"]


def _norm(config: Any, weights: dict[str, Tensor], name: str) -> Norm:
    weight = weights[f"{name}.w"]
    bias = weights.get(f"{name}.b")
    return Norm(
        weight,
        torch.zeros_like(weight) if bias is None else bias,
        eps=config.eps,
        centre=bias is not None,
    )
