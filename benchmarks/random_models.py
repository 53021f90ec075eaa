"""Models of real shapes and random weights, for costs that do not depend on what a model knows."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf

from strace_lens.model.architecture import Model
from strace_lens.model.skeleton import textless

SPREAD = 0.05
"""Standard deviation of the matrices: heads that look at some tokens more than at others."""

LLAMA_1B: dict[str, Any] = {
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
"""About 1.1 billion parameters."""

LLAMA_SMALL: dict[str, Any] = {
    **LLAMA_1B,
    "vocab_size": 8000,
    "hidden_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 2048,
}
"""About 32 million parameters: what the tests can afford."""

QWEN_7B: dict[str, Any] = {
    "vocab_size": 152_064,
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18_944,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": False,
}
"""The shape of Qwen2.5-7B: 7.6 billion parameters, biases at queries, keys and values."""

TINY: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}


def llama(shape: dict[str, Any]) -> tf.PreTrainedConfig:
    return tf.LlamaConfig(**shape)


def qwen2(shape: dict[str, Any]) -> tf.PreTrainedConfig:
    return tf.Qwen2Config(**shape)


def random_model(
    config: tf.PreTrainedConfig, dtype: torch.dtype, device: str | torch.device = "cpu"
) -> Model:
    """A bridge around a model of a configuration; the same weights each time on one device.

    Values are drawn on the device itself and in the dtype, so that no second copy of the model is
    ever held.
    """
    with torch.device("meta"):
        made = tf.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    made = made.to_empty(device=device).eval()
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.requires_grad_(False)
            if "norm" in name:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, SPREAD, generator=generator)
    for module in made.modules():  # frequencies of rotary embeddings lie in no state dict
        if hasattr(module, "inv_freq"):
            fresh = type(module)(config).to(device)
            module.inv_freq, module.original_inv_freq = fresh.inv_freq, fresh.inv_freq
    return textless(str(config.model_type), made)


def random_ids(vocabulary: int, tokens: int, seed: int = 0) -> list[int]:
    """Token ids of a prompt."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (tokens,), generator=generator).tolist()
