"""Prompts corrupted before they are traced: their words shuffled, or their tokens replaced.

What is left of a trace on a text that makes no sense tells the computation that the text's meaning
needs from that which any tokens need. The released code of s-Trace (arXiv 2605.27033) offers this.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from strace_lens.model.architecture import Architecture, Model
from strace_lens.model.prompts import Prompt, PromptError, own_tokenizer, tokenize
from strace_lens.model.token_text import text_of

CORRUPTIONS = ("none", "shuffle", "random")
"""What can be done to a prompt."""


def corrupted(
    model: Model,
    architecture: Architecture,
    prompt: Prompt,
    corruption: str,
    rate: float,
    bos: bool | None,
    generator: np.random.Generator,
) -> Prompt:
    """A prompt with its words shuffled or its tokens replaced.

    Args:
        model: whose tokenizer is used.
        architecture: of the same model.
        prompt: of a text.
        corruption: one of `CORRUPTIONS`.
        rate: share of the words that change places, or of the tokens that are replaced; at least
            two words, or one token.
        bos: as in `tokenize`, for the shuffled text.
        generator: of all that is drawn.

    Returns:
        The prompt to trace. Tokens are replaced one for one; shuffled words may come to another
        number of tokens.

    Raises:
        PromptError: the text has no two different words to shuffle, or cannot be traced when they
            are.
    """
    if corruption == "none":
        return prompt
    if corruption == "shuffle":
        return tokenize(model, architecture, shuffled(prompt.text, rate, generator), bos)
    tokenizer = own_tokenizer(model)
    ids = replaced(tokenizer, architecture.d_vocab, prompt.ids, rate, generator)
    special = set(getattr(tokenizer, "all_special_ids", ()))
    first = next((place for place, i in enumerate(ids) if i not in special), len(ids))
    return Prompt(
        text_of(tokenizer, ids[first:]), tuple(ids), tokenize(model, architecture, ids).strings
    )


def shuffled(text: str, rate: float, generator: np.random.Generator) -> str:
    """A text some of whose words have changed places; the white space between them stays.

    Raises:
        PromptError: it has no two different words.
    """
    parts = re.split(r"(\S+)", text)
    words = parts[1::2]
    if len(set(words)) < 2:
        raise PromptError("the text has no two different words to shuffle; leave it out")
    count = max(2, round(rate * len(words)))
    places = np.sort(generator.choice(len(words), count, replace=False))
    while len({words[place] for place in places}) < 2:  # the drawn words are all the same
        places = np.sort(generator.choice(len(words), count, replace=False))
    drawn = [words[place] for place in places]
    moved = drawn
    while moved == drawn:
        moved = [drawn[i] for i in generator.permutation(count)]
    for place, word in zip(places, moved, strict=True):
        parts[2 * place + 1] = word
    return "".join(parts)


def replaced(
    tokenizer: Any,
    vocabulary: int,
    ids: Sequence[int],
    rate: float,
    generator: np.random.Generator,
) -> list[int]:
    """Token ids some of which are replaced by others, drawn evenly from the vocabulary.

    Special tokens are neither replaced nor drawn, nor are ids that only the model's matrices have.

    Args:
        tokenizer: of the ids; None if there is none.
        vocabulary: ids that the model has.
        ids: of the prompt.
        rate: share of the ids that are replaced; at least one is.
        generator: of what is drawn.
    """
    special = set(getattr(tokenizer, "all_special_ids", ()))
    known = vocabulary if tokenizer is None else min(vocabulary, len(tokenizer))
    ordinary = np.array([i for i in range(known) if i not in special])
    places = [place for place, i in enumerate(ids) if i not in special]
    count = min(len(places), max(1, round(rate * len(places))))
    found = list(ids)
    for place in generator.choice(places, count, replace=False):
        others = ordinary[ordinary != found[place]]
        found[place] = int(generator.choice(others))
    return found
