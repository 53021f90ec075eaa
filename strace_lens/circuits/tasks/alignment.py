"""Clean and corrupted prompts as the model's own tokenizer reads them, aligned token by token."""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from strace_lens.circuits.task import Task
from strace_lens.model.architecture import Architecture, Model
from strace_lens.model.checks import architecture_of
from strace_lens.model.prompts import (
    PromptError,
    bare_ids,
    continuation_ids,
    leading_ids,
    own_tokenizer,
    pad_right,
    text_of,
    tokenize,
)
from strace_lens.model.skeleton import Skeleton

Text = str | tuple[int, ...]
"""A prompt as text or as token ids."""


class Example(NamedTuple):
    """One pair of prompts, not yet tokenized; as text, answers begin with their space."""

    clean: Text
    corrupted: Text
    answers: tuple[str | int, ...]  # right continuations of the clean prompt
    incorrect: tuple[str | int, ...]


class Pair(NamedTuple):
    """An `Example` whose prompts have the same number of tokens and whose answers are tokens."""

    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    answers: tuple[int, ...]
    incorrect: tuple[int, ...]
    texts: tuple[str, str]


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What the tokenizer of a model makes of words.

    Attributes:
        model: with a `tokenizer`, unless prompts are token ids; or a `Skeleton`, which has one too.
        architecture: of the same model.
        bos: True makes sure of exactly one BOS before a prompt; None leaves it to the tokenizer.
    """

    model: Model
    architecture: Architecture
    bos: bool | None = None

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer as its makers saved it, or None."""
        return own_tokenizer(self.model)

    def ids(self, prompt: Text) -> tuple[int, ...]:
        """Token ids of a prompt, by default with a BOS only where the tokenizer itself adds one.

        Raises:
            PromptError: as `prompts.tokenize`.
        """
        return tokenize(self.model, self.architecture, prompt, self.bos).ids

    def text(self, prompt: Text) -> str:
        """A prompt as text."""
        return prompt if isinstance(prompt, str) else text_of(self.tokenizer, prompt)

    def answer(self, prompt: Text, continuation: str | int) -> int | None:
        """The one token with which a prompt goes on, or None if it takes several or is unknown."""
        if isinstance(continuation, int):
            return continuation if 0 <= continuation < self.architecture.d_vocab else None
        if self.tokenizer is None:
            return None
        before = tokenize(self.model, self.architecture, prompt)
        added = continuation_ids(self.tokenizer, before, continuation)
        if len(added) != 1 or added[0] == self.unknown or added[0] >= self.architecture.d_vocab:
            return None
        return added[0]

    def ordinary(self, generator: random.Random, count: int) -> tuple[int, ...]:
        """Different random tokens, each a word in lower case; any ids if there is no tokenizer.

        Raises:
            PromptError: the vocabulary has too few such tokens.
        """
        found: dict[int, None] = {}
        for _ in range(200 * count):
            i = generator.randrange(self.architecture.d_vocab)
            if self.tokenizer is None or self._is_word(i):
                found[i] = None
            if len(found) == count:
                return tuple(found)
        raise PromptError(
            f"{self.architecture.name} has too few tokens that are words: {len(found)} found, "
            f"{count} needed"
        )

    @property
    def start(self) -> tuple[int, ...]:
        """The BOS where the tokenizer itself adds one, for prompts made of token ids."""
        bos = getattr(self.tokenizer, "bos_token_id", None)
        added = [] if bos is None else leading_ids(self.tokenizer)
        return (bos,) if bos in added else ()

    @property
    def unknown(self) -> int | None:
        """Id of the token that stands for words the tokenizer does not know."""
        return getattr(self.tokenizer, "unk_token_id", None)

    def _is_word(self, token: int) -> bool:
        """Whether a token is a whole word in lower case: twice it makes two, not one longer one."""
        words = self.tokenizer.decode([token, token]).split()
        if len(words) != 2 or not words[0].isalpha() or words[0] != words[0].lower():
            return False
        text = self.tokenizer.decode([token])
        return bare_ids(self.tokenizer, text) == [token]


def vocabulary_of(model: Model | Skeleton, bos: bool | None = None) -> Vocabulary:
    """The vocabulary of a model, or of one that is known by its configuration alone."""
    known = isinstance(model, Skeleton)
    architecture = model.architecture if known else architecture_of(model)
    return Vocabulary(cast(Model, model), architecture, bos)


def align(vocabulary: Vocabulary, example: Example) -> Pair | None:
    """Tokenize a generated pair; None where this tokenizer does not align it.

    Dropped are prompts of unequal length, prompts that read alike or hold words unknown to the
    tokenizer, and answers that take several tokens or the same one.
    """
    clean, corrupted = vocabulary.ids(example.clean), vocabulary.ids(example.corrupted)
    if len(clean) != len(corrupted) or clean == corrupted:
        return None
    if vocabulary.unknown in clean or vocabulary.unknown in corrupted:
        return None
    right = [vocabulary.answer(example.clean, a) for a in example.answers]
    wrong = [vocabulary.answer(example.clean, a) for a in example.incorrect]
    answers = tuple(i for i in right if i is not None)
    others = tuple(i for i in wrong if i is not None)
    if len({*answers, *others}) < len(right) + len(wrong):
        return None
    texts = (vocabulary.text(example.clean), vocabulary.text(example.corrupted))
    return Pair(clean, corrupted, answers, others, texts)


def task_of(
    name: str, pairs: Sequence[Pair], metric: str, dropped: int, made: Mapping[str, Any]
) -> Task:
    """Pairs as the tensors of a task."""
    return Task(
        name=name,
        clean=pad_right([torch.tensor(pair.clean) for pair in pairs]),
        corrupted=pad_right([torch.tensor(pair.corrupted) for pair in pairs]),
        lengths=torch.tensor([len(pair.clean) for pair in pairs]),
        answers=_padded([pair.answers for pair in pairs]),
        incorrect=_padded([pair.incorrect for pair in pairs]),
        metric=metric,
        dropped=dropped,
        texts=tuple(pair.texts for pair in pairs),
        metadata=dict(made),
    )


def _padded(rows: Sequence[tuple[int, ...]]) -> Int[Tensor, "pair answer"]:
    ids = [torch.tensor(row, dtype=torch.int64) for row in rows]
    return pad_sequence(ids, batch_first=True, padding_value=-1)
