"""A tiny model's sweep of a few prompts, for the tests of what sweeps leave."""

from __future__ import annotations

import functools
from typing import Any

from strace_lens.corpus.prompts import CorpusPrompt
from strace_lens.corpus.setting import Options
from tests import tiny

SIZES = (0.001, 0.01, 0.05, 0.2, 0.5, 1.0)


def model() -> Any:
    return tiny.bridge("llama")


@functools.cache
def vocabulary() -> list[str]:
    """Words that the tiny tokenizer has whole."""
    tokenizer = tiny.tokenizer()
    words = sorted(w for w in tokenizer.get_vocab() if w.isalpha() and len(w) > 1)
    return [w for w in words if len(tokenizer(w).input_ids) == len(tokenizer("").input_ids) + 1]


def words(count: int, start: int = 0) -> str:
    have = vocabulary()
    return " ".join(have[(start + 3 * i) % len(have)] for i in range(count))


def prompts(count: int = 6) -> list[CorpusPrompt]:
    """Prompts of 4 to 7 words, of two kinds."""
    return [
        CorpusPrompt(words(4 + i % 4, start=i), " " + words(1, i), {"kind": "ab"[i % 2]})
        for i in range(count)
    ]


def options(**changed: Any) -> Options:
    return Options(**{"sizes": SIZES, "threads": 1, **changed})
