"""Token ids as text: wholes against the texts they came from, labels against what is stored."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strace_lens.model.prompts import bare_ids, own_tokenizer
from strace_lens.model.token_text import added_text, label, text_of
from tests import made_tokenizers, real, tiny

MADE = {"sentence_piece": made_tokenizers.sentence_piece, "byte_level": made_tokenizers.byte_level}
TEXTS = [
    "the capital of France is Paris",
    "日本の首都は東京です",
    "שלום עולם",
    "a 👩‍👩‍👧 and é",
    "two  spaces, a , comma\nand a line",
]

# Without the sign that SentencePiece reads as a space.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\u2581"), min_size=1, max_size=12)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("made", MADE)
def test_the_whole_is_the_text_that_it_came_from(made: str, text: str) -> None:
    tokenizer = MADE[made]()
    assert text_of(tokenizer, bare_ids(tokenizer, text)) == text


@pytest.mark.parametrize("made", MADE)
@given(text=TEXT, data=st.data())
@settings(max_examples=60)
def test_parts_add_up_to_the_whole(made: str, text: str, data: st.DataObject) -> None:
    tokenizer = MADE[made]()
    ids = bare_ids(tokenizer, f"the {text}")
    at = data.draw(st.integers(1, len(ids)))
    first, rest = text_of(tokenizer, ids[:at]), added_text(tokenizer, ids[:at], ids[at:])
    whole = text_of(tokenizer, ids)
    assert whole == f"the {text}"
    # Cut within a character, each part shows its bytes.
    assert first + rest == whole or ("<0x" in first and "<0x" in rest)
    # The labels in a row are the text too, but for the characters of several tokens.
    labels = "".join(label(tokenizer, i) for i in ids)
    assert labels.lstrip(" ") == whole or "<0x" in labels
    if "\ufffd" not in text:
        assert "\ufffd" not in first + rest + labels


def test_labels_of_sentence_piece_keep_the_space_of_a_word() -> None:
    tokenizer = made_tokenizers.sentence_piece()
    ids = tokenizer("the capital 日京").input_ids
    labels = [label(tokenizer, i) for i in ids]
    assert labels == ["<s>", " the", " capital", " ", "日", "<0xE4>", "<0xBA>", "<0xAC>"]
    assert [label(tokenizer, i) for i in bare_ids(tokenizer, "\n")] == [" ", "\n"]


def test_labels_of_bytes_show_what_is_no_whole_character() -> None:
    tokenizer = made_tokenizers.byte_level()
    ids = bare_ids(tokenizer, " Paris é\ufffd")
    labels = [label(tokenizer, i) for i in ids]
    assert "".join(labels) == " Paris <0xC3><0xA9><0xEF><0xBF><0xBD>"
    assert text_of(tokenizer, ids) == " Paris é\ufffd"
    assert text_of(tokenizer, ids[:-4]) == " Paris <0xC3>"
    assert added_text(tokenizer, ids[:-4], ids[-4:]) == "<0xA9>\ufffd"
    assert label(tokenizer, tokenizer.bos_token_id) == "<s>"


def test_bytes_in_the_middle_that_make_no_character_are_shown() -> None:
    tokenizer = made_tokenizers.byte_level()
    first, second = (bare_ids(tokenizer, text) for text in ("é", "the"))
    assert text_of(tokenizer, [*second, first[0], *second]) == "the<0xC3>the"
    pieces = made_tokenizers.sentence_piece()
    the, lead = pieces("the").input_ids[1], pieces.convert_tokens_to_ids("<0xE4>")
    assert text_of(pieces, [the, lead, the]) == "the<0xE4> the"


def test_words_stay_as_they_are_stored() -> None:
    words = tiny.tokenizer()
    ids = words(tiny.PROMPT).input_ids
    assert [label(words, i) for i in ids] == tiny.PROMPT.split()
    assert text_of(words, ids) == tiny.PROMPT  # the space before the comma too
    assert added_text(words, ids[:3], ids[3:4]) == " France"


def test_ids_without_a_text() -> None:
    assert label(tiny.tokenizer(), 5000) == "<5000>"  # beyond what the tokenizer knows
    assert label(None, 7) == "7"
    assert text_of(None, [7, 8]) == "7 8"
    assert added_text(None, [7], [8]) == " 8"


@pytest.mark.parametrize("text", TEXTS)
def test_smollm2_reads_other_scripts(text: str) -> None:
    tokenizer = own_tokenizer(real.smollm2())
    ids = bare_ids(tokenizer, text)
    assert text_of(tokenizer, ids) == text
    labels = "".join(label(tokenizer, i) for i in ids)
    assert "\ufffd" not in labels
    assert labels == text or "<0x" in labels
    for at in range(1, len(ids)):
        first, rest = text_of(tokenizer, ids[:at]), added_text(tokenizer, ids[:at], ids[at:])
        assert "\ufffd" not in first + rest
        assert first + rest == text or ("<0x" in first and "<0x" in rest)
