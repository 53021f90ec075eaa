"""Small tokenizers of the kinds that large models use, saved and read back as theirs are."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import transformers as tf
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)

from tests import tiny

_BOS, _EOS = "<s>", "</s>"


def saved(folder: Path, template: str | None = None) -> tf.PreTrainedTokenizerBase:
    """The tiny word-level tokenizer with special tokens around a text, as `<s> $A </s>` says."""
    made: Any = tf.AutoTokenizer.from_pretrained(tiny.tokenizer().name_or_path)
    if template is not None:
        made.backend_tokenizer.post_processor = _template(template)
    made.save_pretrained(folder)
    return tf.AutoTokenizer.from_pretrained(folder)


@functools.cache
def sentence_piece(template: str = "<s> $A") -> tf.PreTrainedTokenizerBase:
    """As Llama 2's: a word keeps its space as U+2581, unknown characters fall back to bytes."""
    words = "the capital of France is Paris Rome Italy".split()
    pieces = [
        *("<unk>", _BOS, _EOS),
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *("\u2581", *(f"\u2581{word}" for word in words), "日", "本", "ש"),
    ]
    unigram = models.Unigram([(p, -i / 10) for i, p in enumerate(pieces)], 0, byte_fallback=True)
    made = Tokenizer(unigram)
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.post_processor = _template(template)
    return _read_back(made)


@functools.cache
def byte_level() -> tf.PreTrainedTokenizerBase:
    """As GPT-2's: any text is bytes, of which only some make up whole characters as tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=[_BOS, _EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["the capital of France is Paris"] * 9, trainer)
    made.add_special_tokens([AddedToken(_BOS), AddedToken(_EOS)])
    return _read_back(made)


def _template(single: str) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(single=single, special_tokens=[(_BOS, 1), (_EOS, 2)])


def _read_back(made: Tokenizer) -> tf.PreTrainedTokenizerBase:
    fast = tf.PreTrainedTokenizerFast(tokenizer_object=made, bos_token=_BOS, eos_token=_EOS)
    with tempfile.TemporaryDirectory() as folder:
        fast.save_pretrained(folder)
        return tf.AutoTokenizer.from_pretrained(folder)
