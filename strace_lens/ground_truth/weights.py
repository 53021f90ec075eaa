"""Transformers without norms as plain matrices, and the TransformerLens models made of them.

A model built here is a `HookedTransformer` where TransformerLens has the class (3.9), else a native
`TransformerBridge`. It has no tokenizer, and its output may have another size than its vocabulary.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.model.architecture import Model


@dataclass(frozen=True, eq=False)
class Weights:
    """A transformer with no norm, absolute positions and attention without biases.

    Attributes:
        W_E, W_pos: token and position embeddings, added.
        W_Q, W_K, W_V, W_O: of every head; scores are divided by the root of d_head.
        W_U: unembedding.
        W_in, b_in, W_out, b_out: of the MLPs, relu(x @ W_in + b_in) @ W_out + b_out; None where the
            model is attention-only.
        causal: a position reads no later one.
    """

    W_E: Float[Tensor, "vocab d_model"]
    W_pos: Float[Tensor, "context d_model"]
    W_Q: Float[Tensor, "layer head d_model d_head"]
    W_K: Float[Tensor, "layer head d_model d_head"]
    W_V: Float[Tensor, "layer head d_model d_head"]
    W_O: Float[Tensor, "layer head d_head d_model"]
    W_U: Float[Tensor, "d_model out"]
    W_in: Float[Tensor, "layer d_model d_mlp"] | None = None
    b_in: Float[Tensor, "layer d_mlp"] | None = None
    W_out: Float[Tensor, "layer d_mlp d_model"] | None = None
    b_out: Float[Tensor, "layer d_model"] | None = None
    causal: bool = True

    def of_layer(self, layer: int) -> dict[str, Tensor]:
        """The matrices of one block, by name."""
        names = ("W_Q", "W_K", "W_V", "W_O", "W_in", "b_in", "W_out", "b_out")
        stacks = {name: getattr(self, name) for name in names}
        return {name: stack[layer] for name, stack in stacks.items() if stack is not None}


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


def _options(weights: Weights, name: str) -> dict[str, Any]:
    """Options that the two configurations name alike."""
    layers, heads, d_model, d_head = weights.W_Q.shape
    mlp = {} if weights.W_in is None else {"d_mlp": weights.W_in.shape[2]}
    return {
        "n_layers": layers,
        "n_heads": heads,
        "d_model": d_model,
        "d_head": d_head,
        "n_ctx": len(weights.W_pos),
        "d_vocab": len(weights.W_E),
        "d_vocab_out": weights.W_U.shape[1],
        "act_fn": "relu",
        "attn_only": weights.W_in is None,
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
        for name, value in weights.of_layer(layer).items():
            part = "mlp" if name.endswith(("in", "out")) else "attn"
            state[f"blocks.{layer}.{part}.{name}"] = value
    return state


def _native_state(weights: Weights) -> dict[str, Tensor]:
    """The same in the layout of `nn.Linear`, output first."""
    state = {"embed.weight": weights.W_E, "pos_embed.weight": weights.W_pos}
    state["unembed.weight"] = weights.W_U.T
    for layer in range(len(weights.W_Q)):
        own = weights.of_layer(layer)
        block = f"blocks.{layer}."
        for name in "qkv":
            per_head = own[f"W_{name.upper()}"]
            state[f"{block}attn.{name}.weight"] = per_head.transpose(1, 2).flatten(0, 1)
        state[f"{block}attn.o.weight"] = own["W_O"].flatten(0, 1).T
        for name in ("in", "out"):
            if f"W_{name}" in own:
                state[f"{block}mlp.{name}.weight"] = own[f"W_{name}"].T
                state[f"{block}mlp.{name}.bias"] = own[f"b_{name}"]
    return state
