"""Prompts altered by draws: words shuffled, tokens replaced by others, tokens added.

What is drawn for a prompt is seeded by its own text, so that no other prompt changes it. Traces of
texts that make no sense separate the computation that the meaning of a text needs from that which
any tokens need. The released code of s-Trace (arXiv 2605.27033) offers this.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.corpus.prompts import generator_for
from strace_lens.corpus.setting import Options
from strace_lens.measures.distributions import in_nucleus
from strace_lens.model.architecture import Architecture, Model
from strace_lens.model.prompts import Prompt, PromptError, own_tokenizer, text_of, tokenize


def corrupted(model: Model, architecture: Architecture, prompt: Prompt, options: Options) -> Prompt:
    """The prompt that is traced in place of a prompt: its words shuffled or its tokens replaced.

    At least two words or one token are changed. Tokens are replaced one for one; shuffled words may
    come to another number of tokens.

    Raises:
        PromptError: the text has no two different words to shuffle, or cannot be traced when they
            are.
    """
    generator, rate = generator_for(prompt.text, options.seed), options.corrupt_rate
    if options.corrupt == "shuffle":
        return tokenize(model, architecture, shuffled(prompt.text, rate, generator), options.bos)
    tokenizer = own_tokenizer(model)
    ids = replaced(tokenizer, architecture.d_vocab, prompt.ids, rate, generator)
    special = set(getattr(tokenizer, "all_special_ids", ()))
    text_begins = next((place for place, i in enumerate(ids) if i not in special), len(ids))
    strings = tokenize(model, architecture, ids).strings
    return Prompt(text_of(tokenizer, ids[text_begins:]), tuple(ids), strings)


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
    drawn, places = [], np.zeros(0, dtype=np.int64)
    while len(set(drawn)) < 2:  # it may be one word, several times
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

    A share of the ids is replaced, one at the least. Special tokens are neither replaced nor drawn,
    nor are ids that only the model's matrices have and the tokenizer, if there is one, has not.
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


def next_token(
    logits: Float[Tensor, " vocab"],
    temperature: float,
    top_p: float,
    generator: np.random.Generator,
) -> int:
    """The token that goes on: the most probable one, or one drawn from the nucleus.

    As in transformers, logits are divided by the temperature first and the nucleus is that of the
    tempered distribution. Source: Holtzman et al., The curious case of neural text degeneration,
    2020.

    Temperature 0 takes the most probable token, of equal ones the one of the lowest id. The nucleus
    is the smallest set of most probable tokens that holds `top_p` of the probability.
    """
    if temperature == 0:
        return int(logits.argmax())
    logits = logits.detach().cpu().double()
    # The largest logit goes first, so that a low temperature overflows to certainty.
    log_probs = ((logits - logits.max()) / temperature).log_softmax(-1)
    probabilities = log_probs.exp()
    if top_p < 1:
        probabilities = probabilities.where(in_nucleus(log_probs, top_p), torch.zeros(()).double())
    cumulative = probabilities.cumsum(-1)
    drawn = torch.tensor(generator.random(), dtype=torch.float64) * cumulative[-1]
    return int(torch.searchsorted(cumulative, drawn, right=True))
