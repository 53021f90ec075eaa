"""Transformers without norms as plain matrices, into a TransformerLens model and out of it again.

A model built here is a `HookedTransformer` where TransformerLens has the class (3.9), else a native
`TransformerBridge`. It has no tokenizer, and its output may have another size than its vocabulary.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.model.architecture import Model, block_of


@dataclass(frozen=True, eq=False)
class Mlps:
    """The MLPs of all blocks: relu(x @ W_in + b_in) @ W_out + b_out."""

    W_in: Float[Tensor, "layer d_model d_mlp"]
    b_in: Float[Tensor, "layer d_mlp"]
    W_out: Float[Tensor, "layer d_mlp d_model"]
    b_out: Float[Tensor, "layer d_model"]


@dataclass(frozen=True, eq=False)
class Weights:
    """A transformer with no norm, absolute positions and attention without biases.

    Attributes:
        W_E, W_pos: token and position embeddings, added.
        W_Q, W_K, W_V, W_O: of every head; scores are divided by the root of d_head.
        W_U: unembedding.
        mlps: None where the model is attention-only.
        causal: a position reads no later one.
    """

    W_E: Float[Tensor, "vocab d_model"]
    W_pos: Float[Tensor, "context d_model"]
    W_Q: Float[Tensor, "layer head d_model d_head"]
    W_K: Float[Tensor, "layer head d_model d_head"]
    W_V: Float[Tensor, "layer head d_model d_head"]
    W_O: Float[Tensor, "layer head d_head d_model"]
    W_U: Float[Tensor, "d_model out"]
    mlps: Mlps | None
    causal: bool


def model_of(weights: Weights, name: str) -> Model:
    """A TransformerLens model with these weights, in float32 on the CPU, without gradients."""
    try:
        from transformer_lens import HookedTransformer
    except ImportError:
        model, state = _native_bridge(weights, name), _native_state(weights)
    else:
        model, state = _hooked(HookedTransformer, weights, name), _hooked_state(weights)
    own = model.state_dict()
    # Biases of attention and unembedding are zero; a causal mask is no weight and stays.
    rest = {k: v if not v.is_floating_point() else torch.zeros_like(v) for k, v in own.items()}
    rest |= {k: v for k, v in own.items() if k.endswith(("mask", "IGNORE"))}
    model.load_state_dict({**rest, **state}, strict=True)
    return model.eval().requires_grad_(False)


def weights_of(model: Model) -> Weights:
    """The weights of a model that has no norm, absolute positions and no grouped heads.

    Raises:
        ValueError: the model has a norm, other positions, grouped heads or a gated MLP.
    """
    cfg: Any = model.cfg
    kv_heads = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
    positions = getattr(cfg, "positional_embedding_type", "standard")
    for wrong, what in (
        (cfg.normalization_type is not None, f"norms ({cfg.normalization_type})"),
        (positions != "standard", f"{positions} positions"),
        (kv_heads != cfg.n_heads, "grouped-query attention"),
        (bool(getattr(cfg, "gated_mlp", False)), "gated MLPs"),
    ):
        if wrong:
            raise ValueError(f"{cfg.model_name} has {what}; its edges cannot be read off matrices")
    blocks = [block_of(model, layer) for layer in range(cfg.n_layers)]

    def stacked(part: str, name: str) -> Tensor:
        return torch.stack([getattr(getattr(b, part), name).detach() for b in blocks])

    mlps = None
    if not cfg.attn_only:
        mlps = Mlps(*(stacked("mlp", name) for name in ("W_in", "b_in", "W_out", "b_out")))
    whole = cast(Any, model)
    return Weights(
        W_E=whole.W_E.detach(),
        W_pos=whole.W_pos.detach(),
        W_Q=stacked("attn", "W_Q"),
        W_K=stacked("attn", "W_K"),
        W_V=stacked("attn", "W_V"),
        W_O=stacked("attn", "W_O"),
        W_U=whole.W_U.detach(),
        mlps=mlps,
        causal=cfg.attention_dir == "causal",
    )


def _options(weights: Weights, name: str) -> dict[str, Any]:
    """Options that the two configurations name alike."""
    layers, heads, d_model, d_head = weights.W_Q.shape
    mlp = {} if weights.mlps is None else {"d_mlp": weights.mlps.W_in.shape[2]}
    return {
        "n_layers": layers,
        "n_heads": heads,
        "d_model": d_model,
        "d_head": d_head,
        "n_ctx": len(weights.W_pos),
        "d_vocab": len(weights.W_E),
        "d_vocab_out": weights.W_U.shape[1],
        "act_fn": "relu",
        "attn_only": weights.mlps is None,
        "normalization_type": None,
        "attention_dir": "causal" if weights.causal else "bidirectional",
        "model_name": name,
        "seed": 0,  # of weights that are about to be replaced
        **mlp,
    }


def _hooked(hooked_transformer: Any, weights: Weights, name: str) -> Any:
    from transformer_lens import HookedTransformerConfig

    options: dict[str, Any] = {**_options(weights, name), "device": "cpu"}
    # It seeds torch's own generator from its configuration; the caller's must not move. And it says
    # that it will be gone, which is why the bridge is taken where it is.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return hooked_transformer(HookedTransformerConfig(**options))


def _native_bridge(weights: Weights, name: str) -> Any:
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge.sources.native import boot

    cfg = TransformerBridgeConfig(**_options(weights, name), architecture="TransformerLensNative")
    bridge = boot(cfg, model_name=name)
    bridge.enable_compatibility_mode(no_processing=True)
    return bridge


def _hooked_state(weights: Weights) -> dict[str, Tensor]:
    state = {"embed.W_E": weights.W_E, "pos_embed.W_pos": weights.W_pos}
    state["unembed.W_U"] = weights.W_U
    for layer in range(len(weights.W_Q)):
        block = f"blocks.{layer}."
        for name in ("W_Q", "W_K", "W_V", "W_O"):
            state[f"{block}attn.{name}"] = getattr(weights, name)[layer]
        if weights.mlps is not None:
            for name in ("W_in", "b_in", "W_out", "b_out"):
                state[f"{block}mlp.{name}"] = getattr(weights.mlps, name)[layer]
    return state


def _native_state(weights: Weights) -> dict[str, Tensor]:
    """The same in the layout of `nn.Linear`, output first."""
    state = {"embed.weight": weights.W_E, "pos_embed.weight": weights.W_pos}
    state["unembed.weight"] = weights.W_U.T
    for layer in range(len(weights.W_Q)):
        block = f"blocks.{layer}."
        for name in ("q", "k", "v"):
            per_head = getattr(weights, f"W_{name.upper()}")[layer]
            state[f"{block}attn.{name}.weight"] = per_head.transpose(1, 2).flatten(0, 1)
        state[f"{block}attn.o.weight"] = weights.W_O[layer].flatten(0, 1).T
        if weights.mlps is not None:
            for name in ("in", "out"):
                state[f"{block}mlp.{name}.weight"] = getattr(weights.mlps, f"W_{name}")[layer].T
                state[f"{block}mlp.{name}.bias"] = getattr(weights.mlps, f"b_{name}")[layer]
    return state
