"""Text to tokens: exactly what the model's own tokenizer makes of it, with a BOS only if asked."""

from __future__ import annotations

import functools
import hashlib
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from strace_lens.architecture import Architecture, Model


class PromptError(ValueError):
    """A prompt that cannot be traced, with the reason."""


@dataclass(frozen=True)
class Prompt:
    """A tokenized prompt.

    Attributes:
        text: what was given ("" where only tokens were).
        ids: token ids, BOS included if there is one.
        strings: the tokens as text, for axes and tables.
    """

    text: str
    ids: tuple[int, ...]
    strings: tuple[str, ...]

    @property
    def tensor(self) -> Int[Tensor, " pos"]:
        """The token ids as an int64 tensor."""
        return torch.tensor(self.ids, dtype=torch.int64)

    @property
    def sha256(self) -> str:
        """Hash of the token ids, by which a saved result is tied to its prompt."""
        return hashlib.sha256(" ".join(map(str, self.ids)).encode()).hexdigest()

    def prefix(self, length: int) -> Prompt:
        """The prompt cut to its first tokens."""
        return Prompt("".join(self.strings[:length]), self.ids[:length], self.strings[:length])


def tokenize(
    model: Model,
    architecture: Architecture,
    prompt: str | Sequence[int] | Int[Tensor, " pos"] | Prompt,
    bos: bool | None = None,
) -> Prompt:
    """Tokenize a prompt, or take token ids as they are.

    TransformerLens prepends a BOS of its own accord, in `to_tokens` and by reloading a model's
    tokenizer so that it does; here the tokenizer is asked as its makers saved it.

    Args:
        model: a model with a `tokenizer`, unless token ids are given.
        architecture: of the same model; sets the longest prompt and the vocabulary.
        prompt: text, or token ids.
        bos: None leaves it to the tokenizer, True makes sure of one BOS, False of none.

    Raises:
        PromptError: an empty prompt, one of a single token (it has no computation between tokens),
            one longer than the context, an id outside the vocabulary, or a BOS the tokenizer lacks.
    """
    if isinstance(prompt, Prompt) and bos is None:
        _check(prompt.ids, architecture)
        return prompt
    tokenizer = own_tokenizer(model)
    if isinstance(prompt, Prompt):
        ids, text = list(prompt.ids), prompt.text
    elif isinstance(prompt, str):
        if not prompt.strip():
            raise PromptError("the prompt is empty; give at least two tokens of text")
        if tokenizer is None:
            raise PromptError(
                f"{architecture.name} has no tokenizer; give token ids instead of text"
            )
        ids = [int(i) for i in tokenizer(prompt).input_ids]
        text = prompt
    else:
        ids, text = _whole_numbers(prompt), ""
    if bos is not None:
        ids = _with_bos(ids, tokenizer) if bos else _without_bos(ids, tokenizer)
    _check(ids, architecture)
    strings = [tokenizer.decode([i]) if tokenizer is not None else str(i) for i in ids]
    return Prompt(text, tuple(ids), tuple(strings))


def _whole_numbers(prompt: Sequence[int] | Tensor) -> list[int]:
    try:
        return [operator.index(i) for i in prompt]
    except TypeError as error:
        raise PromptError(f"token ids must be whole numbers: {error}") from error


def own_tokenizer(model: Model) -> Any:
    """A model's tokenizer as its makers saved it, or None if the model has none.

    TransformerLens reloads a tokenizer with `add_bos_token=True`. Where that shows, it is read
    again from where it came; what cannot be found again is taken as it is.
    """
    tokenizer: Any = getattr(model, "tokenizer", None)
    if tokenizer is None:
        return None
    reloaded = getattr(tokenizer, "init_kwargs", {}).get("add_bos_token")
    # A missing BOS is set to the end of text, which for some (GPT-2) it is in truth.
    filled_in = tokenizer.bos_token_id == tokenizer.eos_token_id
    if not (reloaded or filled_in):
        return tokenizer
    return _saved_tokenizer(str(tokenizer.name_or_path)) or tokenizer


@functools.lru_cache
def _saved_tokenizer(where: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(where)
    except (OSError, ValueError):
        return None


def _with_bos(ids: list[int], tokenizer: Any) -> list[int]:
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is None:
        raise PromptError("a BOS was asked for, but the tokenizer has none; leave it out")
    return ids if ids[:1] == [bos] else [bos, *ids]


def _without_bos(ids: list[int], tokenizer: Any) -> list[int]:
    bos = getattr(tokenizer, "bos_token_id", None)
    return ids[1:] if bos is not None and ids[:1] == [bos] else ids


def _check(ids: Sequence[int], architecture: Architecture) -> None:
    if len(ids) < 2:
        raise PromptError(
            f"the prompt has {len(ids)} token{'s' * (len(ids) != 1)}; a trace needs at least two"
        )
    if len(ids) > architecture.context:
        raise PromptError(
            f"the prompt has {len(ids)} tokens, but {architecture.name} reads at most "
            f"{architecture.context}; shorten it"
        )
    bad = [i for i in ids if not 0 <= i < architecture.d_vocab]
    if bad:
        raise PromptError(
            f"token id {bad[0]} lies outside the vocabulary of {architecture.d_vocab}"
        )


def pad_right(prompts: Sequence[Int[Tensor, " _"]]) -> Int[Tensor, "row pos"]:
    """One batch of token rows of unequal length, padded on the right with token 0.

    A causal model reads nothing to the right of a token, so right padding needs no attention mask
    and leaves every real position, its number included, as it is when the prompt runs alone.
    """
    return torch.nn.utils.rnn.pad_sequence(list(prompts), batch_first=True)


def windows(
    model: Model, texts: Sequence[str], length: int, count: int, first: Sequence[int] = ()
) -> list[Int[Tensor, " pos"]]:
    """Token windows of one length cut at even spacing from reference texts, for mean ablation.

    Args:
        model: a model with a tokenizer.
        texts: joined, without their BOS, to one stream.
        length: tokens of a window, those of `first` included.
        count: how many windows; fewer where the texts are too short for so many different ones.
        first: tokens that every window starts with (a BOS).

    Raises:
        PromptError: the texts together have fewer tokens than one window.
    """
    tokenizer = own_tokenizer(model)
    if tokenizer is None:
        raise PromptError("the model has no tokenizer; mean ablation needs one for its references")
    ids = [i for text in texts for i in _without_bos(list(tokenizer(text).input_ids), tokenizer)]
    width = length - len(first)
    last = len(ids) - width
    if last < 0:
        raise PromptError(
            f"the reference texts have {len(ids)} tokens, but the prompt has {length}; "
            "give longer reference texts"
        )
    starts = sorted({round(i * last / max(1, count - 1)) for i in range(count)})
    return [torch.tensor([*first, *ids[start : start + width]]) for start in starts]
