"""Tiny randomly initialised language models of every architecture the package supports.

Nothing is downloaded: models are made from their configurations, the tokenizer from a word list.
Every bias, norm weight and matrix is random and away from its trivial value, so that a forgotten
bias or norm shows; attention is sharp enough that a dropped edge moves the logits. The same name
gives the same weights in every process.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers
from transformer_lens.model_bridge import TransformerBridge

try:  # the class is gone in TransformerLens 4.0
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    HAS_HOOKED_TRANSFORMER = True
except ImportError:
    HookedTransformer = HookedTransformerConfig = Any
    HAS_HOOKED_TRANSFORMER = False

needs_hooked_transformer = pytest.mark.skipif(
    not HAS_HOOKED_TRANSFORMER, reason="this TransformerLens has no HookedTransformer"
)

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
WORDS = """
the of and to in is a that it was for on as with by he at from his an were are which this be or had
not have one but her they all their has been she who more its when there two also first time into
other after new some than would no only most over such can up about out these between many years
Paris London Rome Tokyo France Italy Japan England capital city river war king queen world music
song game team book film , . : ; ? ! 0 1 2 3 4 5 6 7 8 9
""".split()
VOCABULARY = len(SPECIAL) + len(WORDS)

PROMPT = "the capital of France is Paris , the capital of Japan is"  # 12 tokens
SLIDING_WINDOW = 4  # shorter than any prompt worth testing

_WIDTH, _HEADS, _CONTEXT = 32, 4, 64


@functools.cache
def tokenizer() -> tf.PreTrainedTokenizerBase:
    """A word-level tokenizer that adds no special token by itself; unknown words become <unk>.

    It is read back from disk because TransformerLens loads a second copy of it by its path.
    """
    ids = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    pad, bos, eos, unk = SPECIAL
    fast = tf.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
        model_max_length=_CONTEXT,
    )
    folder = _temporary_folder()
    fast.save_pretrained(folder)
    return tf.AutoTokenizer.from_pretrained(folder)


def token_ids(length: int, seed: int = 0) -> list[int]:
    """Random ordinary words, no special token, as ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(len(SPECIAL), VOCABULARY, (length,), generator=generator).tolist()


@functools.cache
def _temporary_folder() -> Path:
    _keep.append(tempfile.TemporaryDirectory(prefix="tiny-tokenizer-"))
    return Path(_keep[-1].name)


_keep: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends


# The sixteen architectures, and a Llama without positions

_BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": _WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": _HEADS,
    "intermediate_size": 48,
    "max_position_embeddings": _CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {**_BASE, "num_key_value_heads": 2}
_GEMMA = {**_GROUPED, "head_dim": 8, "sliding_window": SLIDING_WINDOW, "query_pre_attn_scalar": 6}
_GPT = {
    "vocab_size": VOCABULARY,
    "n_embd": _WIDTH,
    "n_layer": 2,
    "n_head": _HEADS,
    "n_positions": _CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LAYER_TYPES = {"layer_types": ["sliding_attention", "full_attention"]}
_BIAS = {"attention_bias": True}

Build = Callable[[], tf.PreTrainedModel]


def _maker(model: Any, config: Any, **options: Any) -> Build:
    """A function that makes the model, with random weights, from the options of its config."""

    def build() -> tf.PreTrainedModel:
        made = config(**options, attn_implementation="eager")
        made.architectures = [model.__name__]
        torch.manual_seed(0)  # buffers and defaults too are the same each time
        return _randomised(model._from_config(made, attn_implementation="eager").float().eval())

    return build


def _without_positions() -> tf.PreTrainedModel:
    """A Llama whose rotary frequencies are all zero: it rotates by nothing at any position."""
    model = _maker(tf.LlamaForCausalLM, tf.LlamaConfig, **_GROUPED)()
    model.model.rotary_emb.inv_freq.zero_()
    model.model.rotary_emb.original_inv_freq.zero_()
    return model


BRIDGES: dict[str, Build] = {
    "llama": _maker(
        tf.LlamaForCausalLM,
        tf.LlamaConfig,
        **{**_GROUPED, **_BIAS, "mlp_bias": True, "num_hidden_layers": 3},
    ),
    "mistral": _maker(
        tf.MistralForCausalLM, tf.MistralConfig, **_GROUPED, sliding_window=SLIDING_WINDOW
    ),
    "mixtral": _maker(
        tf.MixtralForCausalLM,
        tf.MixtralConfig,
        **{**_GROUPED, "num_local_experts": 4, "sliding_window": None},
    ),
    "qwen3": _maker(tf.Qwen3ForCausalLM, tf.Qwen3Config, **_GROUPED, **_BIAS, head_dim=8),
    "olmo2": _maker(tf.Olmo2ForCausalLM, tf.Olmo2Config, **_GROUPED, **_BIAS),
    "gemma2": _maker(
        tf.Gemma2ForCausalLM,
        tf.Gemma2Config,
        **{**_GEMMA, **_BIAS, **_LAYER_TYPES},
        attn_logit_softcapping=5.0,
        final_logit_softcapping=8.0,
    ),
    "gemma3": _maker(
        tf.Gemma3ForCausalLM, tf.Gemma3TextConfig, **{**_GEMMA, **_BIAS, **_LAYER_TYPES}
    ),
    "gpt2": _maker(tf.GPT2LMHeadModel, tf.GPT2Config, **{**_GPT, "n_layer": 3}),
    "gptj": _maker(tf.GPTJForCausalLM, tf.GPTJConfig, **_GPT, rotary_dim=4),
    "gpt_neox": _maker(tf.GPTNeoXForCausalLM, tf.GPTNeoXConfig, **{**_BASE, "rotary_pct": 0.5}),
    "phi": _maker(tf.PhiForCausalLM, tf.PhiConfig, **_BASE),
    "opt": _maker(
        tf.OPTForCausalLM,
        tf.OPTConfig,
        **{k: v for k, v in _BASE.items() if k != "intermediate_size"},
        ffn_dim=48,
        word_embed_proj_dim=_WIDTH,
    ),
    "bloom": _maker(
        tf.BloomForCausalLM,
        tf.BloomConfig,
        vocab_size=VOCABULARY,
        hidden_size=_WIDTH,
        n_layer=2,
        n_head=_HEADS,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    ),
    "no_positions": _without_positions,
    "gpt_oss": _maker(
        tf.GptOssForCausalLM,
        tf.GptOssConfig,
        **{**_GROUPED, **_LAYER_TYPES, "head_dim": 8, "sliding_window": SLIDING_WINDOW},
        num_local_experts=4,
        num_experts_per_tok=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    ),
    "olmo_clipped": _maker(tf.OlmoForCausalLM, tf.OlmoConfig, **_GROUPED, **_BIAS, clip_qkv=0.7),
    "granite": _maker(
        tf.GraniteForCausalLM,
        tf.GraniteConfig,
        **{**_GROUPED, **_BIAS, "mlp_bias": True},
        residual_multiplier=0.4,
        embedding_multiplier=2.0,
        attention_multiplier=0.5,
        logits_scaling=1.5,
    ),
}


@functools.cache
def hf_model(name: str) -> tf.PreTrainedModel:
    """The Hugging Face model of that name in float32; no bridge has touched it."""
    return BRIDGES[name]()


@functools.cache
def bridge(name: str) -> TransformerBridge:
    """A TransformerBridge with the weights of `hf_model(name)`, in compatibility mode."""
    return bridge_of(BRIDGES[name](), name)


def bridge_of(model: tf.PreTrainedModel, name: str) -> TransformerBridge:
    """A bridge around a Hugging Face model that is not one of the list, in compatibility mode."""
    made = TransformerBridge.boot_transformers(
        f"tiny-{name}", hf_model=model, tokenizer=tokenizer()
    )
    made.enable_compatibility_mode(no_processing=True)
    return made


def gpt2_of_width(width: int, heads: int) -> Any:
    """A GPT-2 of another width, in which the heads share alike."""
    return _maker(tf.GPT2LMHeadModel, tf.GPT2Config, **{**_GPT, "n_embd": width, "n_head": heads})()


def olmo_with_clip(clip: float) -> Any:
    """An OLMo that clips queries, keys and values to another magnitude."""
    return _maker(tf.OlmoForCausalLM, tf.OlmoConfig, **_GROUPED, clip_qkv=clip)()


# Eight shapes of HookedTransformer (TransformerLens 3.9)

_HOOKED_BASE = {
    "n_layers": 2,
    "d_model": _WIDTH,
    "n_heads": _HEADS,
    "d_head": _WIDTH // _HEADS,
    "d_mlp": 48,
    "d_vocab": VOCABULARY,
    "n_ctx": _CONTEXT,
    "act_fn": "gelu",
    "normalization_type": "LN",
    "device": "cpu",
    "seed": 0,
}
_ROTARY = {
    "normalization_type": "RMS",
    "positional_embedding_type": "rotary",
    "rotary_dim": 4,
    "gated_mlp": True,
    "act_fn": "silu",
}

HOOKED: dict[str, dict[str, Any]] = {
    "layernorm": {**_HOOKED_BASE, "n_layers": 3},
    "rmsnorm_rotary_gated": {**_HOOKED_BASE, **_ROTARY},
    "grouped_query": {**_HOOKED_BASE, **_ROTARY, "n_key_value_heads": 2},
    "parallel": {**_HOOKED_BASE, "parallel_attn_mlp": True},
    "attention_only": {**_HOOKED_BASE, "attn_only": True},
    "norms_before_and_after": {
        **_HOOKED_BASE,
        **_ROTARY,
        "use_normalization_before_and_after": True,
    },
    "shortformer": {**_HOOKED_BASE, "positional_embedding_type": "shortformer"},
    "alibi": {**_HOOKED_BASE, "positional_embedding_type": "alibi"},
}


@functools.cache
def hooked(name: str) -> HookedTransformer:
    """The HookedTransformer of that shape; skips the calling test where the class is absent."""
    if not HAS_HOOKED_TRANSFORMER:
        pytest.skip("this TransformerLens has no HookedTransformer")
    config = HookedTransformerConfig(**HOOKED[name])
    return _randomised(HookedTransformer(config, tokenizer=tokenizer()).eval())


def _randomised(model: Any) -> Any:
    """Draw every parameter anew: matrices at 0.25, embeddings, biases and norms at 0.3."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        noise = torch.randn(parameter.shape, generator=generator)
        leaf = name.rsplit(".", 1)[-1].lstrip("_")
        if leaf.startswith("b"):  # bias, b_Q, b_out, b
            parameter.copy_(0.3 * noise)
        elif parameter.ndim == 1:  # a norm's weight; Gemma's is an offset from one
            sharper = 1.0 if "q_norm" in name or "k_norm" in name else 0.0
            parameter.add_(0.3 * noise + sharper)
        else:
            embedding = any(s in name for s in ("embed", "wte", "wpe")) and "unembed" not in name
            parameter.copy_((0.3 if embedding else 0.25) * noise)
    return model
