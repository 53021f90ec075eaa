"""A model of GPT-2 small's shape with random weights, and tasks of random tokens.

Nothing is downloaded. Speed and memory do not depend on what the weights are.
"""

from __future__ import annotations

import functools
import tempfile
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from benchmarks.common import device
from strace_lens.circuits.task import Task
from strace_lens.model.architecture import Model

PAIRS, TOKENS = 8, 16


def random_gpt2(
    layers: int = 12, heads: int = 12, d_head: int = 64, vocabulary: int = 50257
) -> TransformerBridge:
    """A random GPT-2, by default of the small one's shape: 124 million weights."""
    width = heads * d_head
    config = GPT2Config(
        vocab_size=vocabulary,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        n_positions=1024,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
    )
    config.architectures = ["GPT2LMHeadModel"]
    torch.manual_seed(0)
    # 0.02, as GPT-2 starts, leaves logits so flat that scores drown in rounding.
    config.initializer_range = 0.05
    model: Any = GPT2LMHeadModel._from_config(config, attn_implementation="eager").float().eval()
    model.requires_grad_(False).to(device())
    made = TransformerBridge.boot_transformers(
        f"random-gpt2-{layers}x{heads}", hf_model=model, tokenizer=_numbers(vocabulary)
    )
    made.enable_compatibility_mode(no_processing=True)
    return made


gpt2_shape = functools.cache(random_gpt2)


def _numbers(vocabulary: int) -> Any:
    """A tokenizer whose words are numbers; TransformerLens reads a second copy from disk."""
    words = {str(i): i for i in range(vocabulary)}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="0")),
        **dict.fromkeys(("unk_token", "pad_token", "bos_token", "eos_token"), "0"),
    )
    _kept.append(tempfile.TemporaryDirectory())
    fast.save_pretrained(_kept[-1].name)
    return AutoTokenizer.from_pretrained(_kept[-1].name)


_kept: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends


def random_task(model: Model, pairs: int = PAIRS, tokens: int = TOKENS) -> Task:
    """Pairs of prompts of random tokens with one right and one wrong answer each."""
    vocabulary = int(model.cfg.d_vocab)
    generator = torch.Generator().manual_seed(0)
    # The lowest ids of real vocabularies are never trained: a difference of two of them is zero.
    clean, corrupted = torch.randint(
        vocabulary // 4, vocabulary, (2, pairs, tokens), generator=generator
    )
    answers = torch.randperm(vocabulary // 2, generator=generator)[: 2 * pairs] + vocabulary // 4
    return Task(
        name="random tokens",
        clean=clean,
        corrupted=corrupted,
        lengths=torch.full((pairs,), tokens),
        answers=answers[:pairs, None],
        incorrect=answers[pairs:, None],
        metric="logit_difference",
    )
