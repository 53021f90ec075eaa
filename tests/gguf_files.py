"""Tiny random Llamas written as GGUF files: quantised, and with a tokenizer of bytes."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from transformers.convert_slow_tokenizer import bytes_to_unicode

SPECIAL = ["<unk>", "<s>", "</s>"]
_MERGES = ["t h", "th e", "Ġ the", "i n", "a n", "Ġ i"]
TOKENS = [*SPECIAL, *bytes_to_unicode().values(), *(pair.replace(" ", "") for pair in _MERGES)]

TEXT = "the cat in the café"

_LAYERS, _WIDTH, _HEADS, _KV_HEADS, _MLP = 2, 32, 4, 2, 64


def write_llama(path: Path, *, seed: int = 0, adds_bos: bool | None = False) -> Path:
    """Write a Llama of two layers with matrices in Q8_0; returns the path.

    Args:
        seed: of the weights.
        adds_bos: what the file says of its tokenizer; None if it says nothing.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(_LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(_WIDTH)
    writer.add_feed_forward_length(_MLP)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(_WIDTH // _HEADS)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    special, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([special if token in SPECIAL else normal for token in TOKENS])
    writer.add_token_merges(_MERGES)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if adds_bos is not None:
        writer.add_add_bos_token(adds_bos)
    random = np.random.default_rng(seed)

    def matrix(name: str, out: int, into: int) -> None:
        values = random.normal(0, 0.3, (out, into)).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    def norm(name: str) -> None:
        writer.add_tensor(name, random.uniform(0.5, 1.5, _WIDTH).astype(np.float32))

    matrix("token_embd.weight", len(TOKENS), _WIDTH)
    for layer in range(_LAYERS):
        block = f"blk.{layer}."
        norm(block + "attn_norm.weight")
        matrix(block + "attn_q.weight", _WIDTH, _WIDTH)
        matrix(block + "attn_k.weight", _WIDTH * _KV_HEADS // _HEADS, _WIDTH)
        matrix(block + "attn_v.weight", _WIDTH * _KV_HEADS // _HEADS, _WIDTH)
        matrix(block + "attn_output.weight", _WIDTH, _WIDTH)
        norm(block + "ffn_norm.weight")
        matrix(block + "ffn_gate.weight", _MLP, _WIDTH)
        matrix(block + "ffn_up.weight", _MLP, _WIDTH)
        matrix(block + "ffn_down.weight", _WIDTH, _MLP)
    norm("output_norm.weight")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
