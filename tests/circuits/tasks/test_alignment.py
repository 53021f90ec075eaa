"""What a tokenizer makes of prompts and answers: one that splits words, one that knows few."""

from __future__ import annotations

import dataclasses
import random
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import transformers as tf
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from strace_lens.circuits.tasks.alignment import Example, Vocabulary, align, task_of
from strace_lens.circuits.tasks.generate import greater_than
from strace_lens.circuits.tasks.words import EVENTS
from strace_lens.model.prompts import PromptError
from tests import made_tokenizers, tiny
from tests.cases import architecture

PROMPT = "the capital of France is"


def vocabulary(tokenizer: Any = None) -> Vocabulary:
    tokenizer = tiny.tokenizer() if tokenizer is None else tokenizer
    arch = dataclasses.replace(architecture("llama"), d_vocab=len(tokenizer))
    return Vocabulary(types.SimpleNamespace(tokenizer=tokenizer), arch)


def split_by(pattern: str, words: Sequence[str], *, bos: bool = False) -> Any:
    """A tokenizer whose tokens are the matches of a pattern, spaces included."""
    ids = {word: i for i, word in enumerate([*tiny.SPECIAL, *words])}
    made = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    made.decoder = decoders.Fuse()
    if bos:
        made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    pad, start, end, unknown = tiny.SPECIAL
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=pad, bos_token=start, eos_token=end, unk_token=unknown
    )


def years(pattern: str, digits: Sequence[str]) -> Vocabulary:
    """A tokenizer that knows the words of greater-than and splits its years by a pattern."""
    words = "The lasted from the year to".split()
    spaced = [f" {word}" for word in (*words, *EVENTS)]
    return vocabulary(split_by(pattern + r"| ?[^\s\d]+| ", ["The", " ", *spaced, *digits]))


def test_an_answer_is_the_token_that_follows_the_prompt() -> None:
    some = vocabulary()
    for word in ("Paris", "London", "?"):
        assert some.answer(PROMPT, f" {word}") == tiny.tokenizer().convert_tokens_to_ids(word)
    assert some.answer(PROMPT, 7) == 7
    for wrong in (" Paris , London", " Madrid", len(tiny.tokenizer()), -1):
        assert some.answer(PROMPT, wrong) is None
    no_tokenizer = Vocabulary(types.SimpleNamespace(tokenizer=None), architecture("llama"))
    assert no_tokenizer.answer((5, 6), " Paris") is None
    assert no_tokenizer.answer((5, 6), 7) == 7


@pytest.mark.parametrize("bos", [False, True])
def test_an_answer_reads_its_space_and_only_the_tokenizers_own_bos(bos: bool) -> None:
    words = ["a", "b", " a", " b", "ab", " "]
    some = vocabulary(split_by(r" ?\w+| ", words, bos=bos))
    first = len(tiny.SPECIAL)
    assert some.ids("a b") == (*[1] * bos, first, first + 3)
    assert some.start == (1,) * bos
    assert some.answer("a b", " a") == first + 2
    # "ab" is one token, so the prompt "a" would change: the answer is read on its own.
    assert some.answer("b a", "b") == first + 1


@pytest.mark.parametrize("template", ["$A </s>", "<s> $A </s>"])
def test_a_tokenizer_that_appends_an_eos_is_read_without_it(tmp_path: Path, template: str) -> None:
    some = vocabulary(made_tokenizers.saved(tmp_path, template))
    start = (1,) if template.startswith("<s>") else ()
    assert some.start == start
    assert some.ids(PROMPT) == (*start, *vocabulary().ids(PROMPT))
    (paris,) = tiny.tokenizer()("Paris").input_ids
    assert some.answer(PROMPT, " Paris") == paris
    assert some.answer(some.ids(PROMPT), " Paris") == paris  # a BOS that is part of the text


def test_words_are_whole_and_known() -> None:
    fragments = ["un", "able", " one", " two", " Three", " four", "5", " !"]
    some = vocabulary(split_by(r" ?\w+?(?=able)| ?\w+| ", fragments))
    drawn = some.ordinary(random.Random(0), 3)
    assert sorted(some.text((i,)) for i in drawn) == [" four", " one", " two"]
    with pytest.raises(PromptError, match="too few tokens that are words: 3 found, 4 needed"):
        some.ordinary(random.Random(0), 4)
    bare = Vocabulary(types.SimpleNamespace(tokenizer=None), architecture("llama"))
    assert len(set(bare.ordinary(random.Random(0), 100))) == 100
    assert bare.start == ()
    assert bare.text((3, 4)) == "3 4"


def test_only_pairs_that_align_are_kept() -> None:
    some = vocabulary()
    good = Example(PROMPT, "the capital of Italy is", (" Paris",), (" Rome", " London"))
    pair = align(some, good)
    assert pair is not None
    assert pair.clean == some.ids(PROMPT)
    assert pair.corrupted == some.ids("the capital of Italy is")
    named = tiny.tokenizer().convert_tokens_to_ids(["Paris", "Rome", "London"])
    assert [*pair.answers, *pair.incorrect] == named
    assert pair.texts == (PROMPT, "the capital of Italy is")
    for change in (
        {"corrupted": "the capital city of Italy is"},  # longer
        {"corrupted": PROMPT},  # alike
        {"corrupted": "the capital of Spain is"},  # unknown
        {"clean": "the capital of Spain is"},
        {"answers": (" Paris", " Paris")},
        {"answers": (" Paris", " Rome")},  # right and wrong
        {"answers": (" Paris , London",)},
        {"incorrect": (" Rome", " Madrid")},
    ):
        assert align(some, good._replace(**change)) is None


def test_pairs_become_tensors_padded_on_the_right() -> None:
    some = vocabulary()
    short = align(some, Example("the king", "the queen", (" is",), (" are", " were")))
    long = align(some, Example((5, 6, 7), (5, 6, 8), (9, 10), (11,)))
    assert short is not None
    assert long is not None
    task = task_of("mine", [short, long], "logit_difference", 3, {"seed": 1})
    assert task.lengths.tolist() == [2, 3]
    assert task.clean.tolist() == [[*some.ids("the king"), 0], [5, 6, 7]]
    assert task.corrupted.tolist() == [[*some.ids("the queen"), 0], [5, 6, 8]]
    assert task.answers.tolist() == [[*short.answers, -1], [9, 10]]
    assert task.incorrect.tolist() == [list(short.incorrect), [11, -1]]
    assert (task.dropped, task.metadata["seed"], task.texts[0]) == (3, 1, ("the king", "the queen"))


TWO_DIGITS = [f"{i:02}" for i in range(100)]


@pytest.mark.parametrize("seed", range(20))
def test_years_of_two_tokens_ask_for_two_digits(seed: int) -> None:
    # Some years are one token, as " 1750" is for GPT-2: none of them may come up.
    whole = [f" {year}" for year in range(1100, 1800, 7)]
    pattern = "|".join([*whole, r" ?\d\d"])
    some = years(pattern, [*whole, *TWO_DIGITS, *(f" {i}" for i in TWO_DIGITS)])
    example = greater_than(random.Random(seed), some)
    century, year = example.clean.split(" to ")[0][-4:-2], example.clean.split(" to ")[0][-2:]
    assert f" {century}{year}" not in whole
    assert example.clean.endswith(f"{century}{year} to the year {century}")
    assert example.corrupted == example.clean.replace(f"{century}{year}", f"{century}01")
    assert example.answers == tuple(i for i in TWO_DIGITS if i > year)
    assert example.incorrect == tuple(i for i in TWO_DIGITS if i <= year)
    pair = align(some, example)
    if f" {century}01" not in whole:
        assert pair is not None
        tokens = some.tokenizer.convert_ids_to_tokens([*pair.answers, *pair.incorrect])
        assert sorted(tokens) == TWO_DIGITS


@pytest.mark.parametrize("seed", range(20))
def test_years_of_single_digits_ask_for_the_tens(seed: int) -> None:
    some = years(r"\d", "0123456789")
    example = greater_than(random.Random(seed), some)
    start = example.clean.split(" to ")[0]
    tens = int(start[-2])
    assert start[-1] == "9"
    assert 1 <= tens <= 8
    assert example.corrupted == example.clean.replace(start, f"{start[:-2]}09")
    assert example.answers == tuple("0123456789"[tens + 1 :])
    assert example.incorrect == tuple("0123456789"[: tens + 1])
    assert align(some, example) is not None


def test_years_split_otherwise_are_refused() -> None:
    threes = [f"{i}" for i in range(1000)] + [f" {i}" for i in range(1000)]
    with pytest.raises(PromptError, match="splits years like 1739 neither into two and two"):
        greater_than(random.Random(0), years(r" ?\d{1,3}", threes))
