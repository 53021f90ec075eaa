"""Tiny models of the families beyond those of `tiny`, made as those are."""

from __future__ import annotations

import functools
from typing import Any

import transformers as tf
from transformer_lens.model_bridge import TransformerBridge

from tests import tiny
from tests.cases import bridge_of
from tests.tiny import _BASE, _BIAS, _GROUPED, _LAYER_TYPES, BRIDGES, SLIDING_WINDOW, Build, _maker

_WINDOW = {"sliding_window": SLIDING_WINDOW}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_HEADS = {"head_dim": 8}


def _family(name: str, **options: Any) -> Build:
    """The causal language model that transformers calls so, with key-value heads in two groups."""
    config = getattr(tf, name + ("TextConfig" if name == "Llama4" else "Config"))
    return _maker(getattr(tf, name + "ForCausalLM"), config, **{**_GROUPED, **options})


def _falcon(**options: Any) -> Build:
    """Falcon, whose grouping has names of its own."""
    return _maker(tf.FalconForCausalLM, tf.FalconConfig, **_BASE, ffn_hidden_size=48, **options)


def _rope(kind: str, **options: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **options}}


def _long_rope() -> Build:
    """Phi-3 with factors that change when a prompt is longer than eight tokens."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0, 3.0, 6.0, 2.0]}
    before = {"original_max_position_embeddings": 8}
    return _family("Phi3", **before, **_rope("longrope", **factors, **before))


def _latent(name: str, **options: Any) -> Build:
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    ranks = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4}
    shape = {"num_key_value_heads": 4, "first_k_dense_replace": 1}
    return _family(name, **experts, **ranks, **shape, **options)


FAMILIES: dict[str, Build] = {
    "qwen2": _family("Qwen2", **_WINDOW, use_sliding_window=True, max_window_layers=1),
    "qwen3_moe": _family("Qwen3Moe", **_BIAS, **_EXPERTS, **_HEADS, moe_intermediate_size=16),
    "phi3": _family("Phi3", **_WINDOW),
    "stablelm": _family("StableLm", use_qkv_bias=True),
    "stablelm_parallel": _family("StableLm", use_parallel_residual=True),
    "falcon": _falcon(),
    "falcon_grouped": _falcon(new_decoder_architecture=True, num_kv_heads=2),
    "falcon_alibi": _falcon(alibi=True, multi_query=False, parallel_attn=False, bias=True),
    "gpt_neo": _maker(
        tf.GPTNeoForCausalLM,
        tf.GPTNeoConfig,
        **{k: v for k, v in _BASE.items() if not k.startswith("num")},
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=SLIDING_WINDOW,
    ),
    "gpt_neox_sequential": _maker(
        tf.GPTNeoXForCausalLM, tf.GPTNeoXConfig, **_BASE, use_parallel_residual=False
    ),
    "cohere": _family("Cohere", **_BIAS, logit_scale=0.5),
    "cohere2": _family("Cohere2", **_BIAS, **_WINDOW, **_LAYER_TYPES, logit_scale=0.5),
    "gpt_oss": BRIDGES["gpt_oss"],
    "olmo": _family("Olmo", **_BIAS),
    "olmo_clipped": BRIDGES["olmo_clipped"],
    "olmo3": _family("Olmo3", **_BIAS, **_WINDOW, **_LAYER_TYPES),
    "olmoe": _family("Olmoe", **_EXPERTS),
    "nemotron": _family("Nemotron", **_BIAS, mlp_bias=True),
    "starcoder2": _family("Starcoder2", **_WINDOW),
    "smollm3": _family("SmolLM3", no_rope_layers=[1, 0]),
    "gemma": _family("Gemma", **_HEADS),
    "glm": _family("Glm", **_BIAS, **_HEADS),
    "glm4": _family("Glm4", **_BIAS, **_HEADS),
    "llama4": _family(
        "Llama4",
        **_HEADS,
        num_local_experts=2,
        intermediate_size_mlp=48,
        attention_chunk_size=SLIDING_WINDOW,
    ),
    "exaone4": _family("Exaone4", **_WINDOW, **_LAYER_TYPES),
    "hunyuan": _family("HunYuanDenseV1", **_BIAS, **_HEADS),
    "ernie4_5": _family("Ernie4_5", use_bias=True),
    "granite": BRIDGES["granite"],
    "granite_moe": _family("GraniteMoe", **_LOCAL_EXPERTS),
    "minimax_m2": _family("MiniMaxM2", **_LOCAL_EXPERTS, **_HEADS, rotary_dim=4),
    "modern_bert_decoder": _maker(
        tf.ModernBertDecoderForCausalLM,
        tf.ModernBertDecoderConfig,
        **_BASE,
        local_attention=2 * SLIDING_WINDOW,
        global_attn_every_n_layers=2,
    ),
    "phi3_longrope": _long_rope(),
    "llama_dynamic": _family("Llama", max_position_embeddings=8, **_rope("dynamic", factor=4.0)),
    "deepseek_v2": _latent("DeepseekV2", v_head_dim=4, head_dim=8),
    "deepseek_v3": _latent("DeepseekV3", v_head_dim=8, n_group=1, topk_group=1),
}


@functools.cache
def hf_family(name: str) -> tf.PreTrainedModel:
    """The Hugging Face model of that name, of `tiny` too; no bridge has touched it."""
    return tiny.hf_model(name) if name in tiny.BRIDGES else FAMILIES[name]()


@functools.cache
def family(name: str) -> TransformerBridge:
    """A TransformerBridge with the weights of `hf_family(name)`, in compatibility mode."""
    return bridge_of(FAMILIES[name](), f"tiny-{name}")
