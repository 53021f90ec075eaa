"""Texts cut to whole words, against trying every end."""

from __future__ import annotations

import functools
from collections import Counter

import pytest
import transformers as tf
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from strace_lens.corpus.prompts import (
    CorpusPrompt,
    cut_to_words,
    deduplicate,
    ends_of_tokens,
    sample,
)

WORD = st.text(st.characters(categories=["Ll"]), min_size=1, max_size=6)
TEXT = st.lists(WORD, min_size=1, max_size=40).map("  ".join)


def tokens(text: str) -> int:
    """A tokenizer of two letters a token."""
    return sum((len(word) + 1) // 2 for word in text.split())


def ends(text: str) -> list[int]:
    return [i + 1 for i in range(len(text)) if not text[i].isspace() and text[i + 1 :][:1] in "  "]


@given(TEXT, st.integers(1, 10), st.integers(0, 20), st.integers(0, 3))
def test_cuts_lie_in_the_range_at_the_end_of_a_word(
    text: str, low: int, more: int, seed: int
) -> None:
    high = low + more
    possible = [text[:end] for end in ends(text) if low <= tokens(text[:end]) <= high]
    cut = cut_to_words(tokens, [CorpusPrompt(text, " end")], low, high, seed)
    if not possible:
        assert cut.prompts == ()
        assert cut.too_short + cut.no_boundary == 1
        assert cut.too_short == (tokens(text) < low)
        return
    (prompt,) = cut.prompts
    assert prompt.text in possible
    rest = text[len(prompt.text) :]
    assert prompt.next == (
        rest[: len(rest) - len(rest.lstrip())] + rest.split()[0] if rest else " end"
    )


def test_every_end_is_drawn_about_as_often() -> None:
    texts = [CorpusPrompt(f"w{i} " + " ".join("abcdefgh")) for i in range(400)]
    cut = cut_to_words(lambda text: len(text.split()), texts, 3, 6)
    lengths = Counter(len(p.text.split()) for p in cut.prompts)
    assert set(lengths) == {3, 4, 5, 6}
    assert all(70 < n < 130 for n in lengths.values())


def test_a_cut_depends_on_seed_and_text_alone() -> None:
    texts = [CorpusPrompt(" ".join(f"w{i}x{j}" for j in range(30))) for i in range(20)]
    count = lambda text: len(text.split())  # noqa: E731
    forwards = cut_to_words(count, texts, 3, 20).prompts
    assert cut_to_words(count, texts[::-1], 3, 20).prompts == forwards[::-1]
    assert cut_to_words(count, texts, 3, 20, seed=1).prompts != forwards


def test_a_long_text_is_not_counted_through() -> None:
    calls = []

    def count(text: str) -> int:
        calls.append(len(text))
        return len(text.split())

    text = " ".join(["word"] * 20_000)
    (prompt,) = cut_to_words(count, [CorpusPrompt(text)], 10, 20).prompts
    assert 10 <= len(prompt.text.split()) <= 20
    assert len(calls) < 100
    assert max(calls) < 1000


def test_repeats_and_samples() -> None:
    a, b, c = CorpusPrompt("a  b"), CorpusPrompt("a b "), CorpusPrompt("a c")
    assert deduplicate([a, b, c]) == [a, c]
    many = [CorpusPrompt(str(i)) for i in range(50)]
    drawn = sample(many, 10, seed=3)
    assert drawn == sample(many, 10, seed=3) == [p for p in many if p in drawn]
    assert drawn != sample(many, 10, seed=4)
    with pytest.raises(ValueError, match="cannot sample 51 of 50 prompts"):
        sample(many, 51)
    with pytest.raises(ValueError, match="1 <= low <= high; got 5 to 4"):
        cut_to_words(len, many, 5, 4)


def by_character(vocabulary: dict[str, int]) -> tf.PreTrainedTokenizerFast:
    """A fast tokenizer of words and characters that its vocabulary lists, byte by byte."""
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tf.PreTrainedTokenizerFast(tokenizer_object=made)


@pytest.fixture(scope="module")
def bytes_tokenizer() -> tf.PreTrainedTokenizerFast:
    """One token a byte: three for each Chinese character or kana."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return by_character({letter: place for place, letter in enumerate(letters)})


@pytest.mark.parametrize(
    "text",
    [
        "\u6771\u4eac\u306f\u65e5\u672c\u306e\u9996\u90fd\u3067\u3059",
        "\u0e01\u0e23\u0e38\u0e07\u0e40\u0e17\u0e1e",
    ],
)
def test_scripts_without_spaces_are_cut_behind_tokens(
    text: str, bytes_tokenizer: tf.PreTrainedTokenizerFast
) -> None:
    count = lambda part: len(bytes_tokenizer(part).input_ids)  # noqa: E731
    prompts = [CorpusPrompt(text)]
    assert cut_to_words(count, prompts, 6, 9).no_boundary == 1
    for seed in range(8):
        (cut,) = cut_to_words(
            count, prompts, 6, 9, seed, functools.partial(ends_of_tokens, bytes_tokenizer)
        ).prompts
        assert 6 <= count(cut.text) <= 9
        assert len(cut.text) in (2, 3)
        assert text.startswith(cut.text + (cut.next or ""))
        assert len(cut.next or "") == 1


def test_tokens_part_no_word_of_a_script_with_spaces(
    bytes_tokenizer: tf.PreTrainedTokenizerFast,
) -> None:
    ends = functools.partial(ends_of_tokens, bytes_tokenizer)
    count = lambda part: len(bytes_tokenizer(part).input_ids)  # noqa: E731
    text = "ein langes Wort, dann \u65e5\u672cAB\u306e und mehr"
    found = {
        cut_to_words(count, [CorpusPrompt(text)], 1, 40, seed, ends).prompts[0].text
        for seed in range(200)
    }
    japanese = text.index("\u65e5")
    inner = {text[:end] for end in (japanese + 1, japanese + 2, japanese + 4)}
    assert found <= inner | {text[:end] for end in range(len(text) + 1) if text[end:][:1] in " "}
    assert inner <= found


def test_a_slow_tokenizer_is_cut_behind_characters() -> None:
    assert ends_of_tokens(object(), "abc") == [1, 2, 3]
