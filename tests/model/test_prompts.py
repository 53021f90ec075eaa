"""Token ids as text: wholes against the texts they came from, labels against what is stored."""

from __future__ import annotations

import dataclasses
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from strace_lens.model.architecture import Architecture
from strace_lens.model.prompts import (
    Prompt,
    PromptError,
    added_text,
    bare_ids,
    cut,
    extended,
    label,
    leading_ids,
    own_tokenizer,
    pad_right,
    text_ids,
    text_of,
    tokenize,
    windows,
)
from tests import cases, made_tokenizers, real, tiny
from tests.cases import architecture

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


BOS = tiny.tokenizer().bos_token_id
PLAIN = types.SimpleNamespace(tokenizer=tiny.tokenizer())  # adds no BOS of its own accord
BARE = types.SimpleNamespace(tokenizer=None)


@pytest.fixture(scope="module")
def adds(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model whose makers saved a tokenizer that prepends a BOS."""
    folder = tmp_path_factory.mktemp("adds-bos")
    reloaded_to_add_bos().save_pretrained(folder)
    return types.SimpleNamespace(tokenizer=tf.AutoTokenizer.from_pretrained(folder))


def reloaded_to_add_bos() -> tf.PreTrainedTokenizerBase:
    """What TransformerLens makes of the tiny tokenizer."""
    return tf.AutoTokenizer.from_pretrained(tiny.tokenizer().name_or_path, add_bos_token=True)


def arch() -> Architecture:
    return architecture("llama")


@pytest.mark.parametrize(
    ("made_with_bos", "bos", "starts"),
    [
        (False, None, False),
        (False, True, True),
        (False, False, False),
        (True, None, True),
        (True, True, True),
        (True, False, False),
    ],
)
def test_a_bos_is_left_to_the_tokenizer_unless_asked(
    adds: Any, made_with_bos: bool, bos: bool | None, starts: bool
) -> None:
    prompt = tokenize(adds if made_with_bos else PLAIN, arch(), tiny.PROMPT, bos)
    words = tiny.tokenizer()(tiny.PROMPT).input_ids
    assert list(prompt.ids) == [BOS] * starts + words  # never two
    assert prompt.text == tiny.PROMPT
    assert prompt.strings[starts:] == tuple(tiny.PROMPT.split())
    assert prompt.tensor.dtype == torch.int64


def test_a_tokenizer_that_transformer_lens_reloaded_is_read_as_it_was_saved() -> None:
    reloaded = types.SimpleNamespace(tokenizer=reloaded_to_add_bos())
    assert reloaded.tokenizer(tiny.PROMPT).input_ids[0] == BOS
    assert tokenize(reloaded, arch(), tiny.PROMPT) == tokenize(PLAIN, arch(), tiny.PROMPT)
    bridge = cases.model_of("llama")
    assert bridge.tokenizer(tiny.PROMPT).input_ids[0] == BOS
    assert len(tokenize(bridge, arch(), tiny.PROMPT).ids) == 12


def test_a_tokenizer_that_cannot_be_read_again_is_taken_as_it_is(tmp_path: Path) -> None:
    lost = reloaded_to_add_bos()
    lost.name_or_path = str(tmp_path / "gone")
    assert own_tokenizer(types.SimpleNamespace(tokenizer=lost)) is lost
    assert own_tokenizer(BARE) is None
    assert own_tokenizer(PLAIN) is tiny.tokenizer()


@pytest.mark.parametrize("ids", [[7, 8, 9], (7, 8, 9), torch.tensor([7, 8, 9])])
def test_token_ids_are_taken_as_they_are(adds: Any, ids: Any) -> None:
    assert tokenize(PLAIN, arch(), ids).ids == (7, 8, 9)
    assert tokenize(PLAIN, arch(), ids, bos=True).ids == (BOS, 7, 8, 9)
    assert tokenize(adds, arch(), ids).ids == (7, 8, 9)
    assert tokenize(BARE, arch(), ids).strings == ("7", "8", "9")
    assert tokenize(PLAIN, arch(), ids).text == tiny.tokenizer().decode([7, 8, 9])
    assert tokenize(BARE, arch(), ids).text == "7 8 9"


def test_a_prompt_passes_through_unless_a_bos_is_asked_for() -> None:
    prompt = tokenize(PLAIN, arch(), tiny.PROMPT)
    assert tokenize(BARE, arch(), prompt) == prompt
    assert tokenize(PLAIN, arch(), prompt, bos=True).ids == (BOS, *prompt.ids)
    assert tokenize(PLAIN, arch(), prompt, bos=False) == prompt


@pytest.mark.parametrize(
    ("model", "prompt", "bos", "message"),
    [
        (PLAIN, "", None, "is empty"),
        (PLAIN, " \n ", None, "is empty"),
        (PLAIN, "Paris", None, "has 1 token; a trace needs at least two"),
        (PLAIN, [], None, "has 0 tokens"),
        (PLAIN, "the " * 65, None, "has 65 tokens, but tiny-llama reads at most 64"),
        (PLAIN, "the " * 64, True, "has 65 tokens"),
        (PLAIN, [5, tiny.VOCABULARY], None, f"id {tiny.VOCABULARY} lies outside"),
        (PLAIN, [5, -1], None, "id -1 lies outside the vocabulary of 108"),
        (BARE, "the capital", None, "no tokenizer; give token ids"),
        (BARE, [5, 6], True, "the tokenizer has none"),
        (PLAIN, Prompt("", (5,), ("a",)), None, "has 1 token;"),
    ],
)
def test_prompts_that_cannot_be_traced_are_refused(
    model: Any, prompt: Any, bos: bool | None, message: str
) -> None:
    with pytest.raises(PromptError, match=message):
        tokenize(model, arch(), prompt, bos)


def test_one_word_without_its_bos_is_too_short(adds: Any) -> None:
    assert len(tokenize(adds, arch(), "Paris").ids) == 2
    with pytest.raises(PromptError, match="has 1 token;"):
        tokenize(adds, arch(), "Paris", bos=False)


def test_the_longest_prompt_is_the_context() -> None:
    assert len(tokenize(PLAIN, arch(), "the " * 64).ids) == 64


def test_a_prompt_is_cut_and_gone_on_with() -> None:
    prompt = tokenize(PLAIN, arch(), tiny.PROMPT)
    prefix = cut(PLAIN, prompt, 3)
    assert prefix == Prompt("the capital of", prompt.ids[:3], ("the", "capital", "of"))
    assert extended(PLAIN, prefix, prompt.ids[3:]) == prompt
    assert cut(BARE, tokenize(BARE, arch(), [7, 8, 9]), 2).text == "7 8"
    assert prefix.sha256 != prompt.sha256 == tokenize(BARE, arch(), prompt.ids).sha256
    assert Prompt("", (1, 23), ("", "")).sha256 != Prompt("", (12, 3), ("", "")).sha256


def test_rows_are_padded_on_the_right() -> None:
    rows = [torch.tensor([5, 6, 7]), torch.tensor([8]), torch.tensor([9, 4])]
    assert pad_right(rows).tolist() == [[5, 6, 7], [8, 0, 0], [9, 4, 0]]


def test_windows_are_cut_at_even_spacing(adds: Any) -> None:
    text = "0 1 2 3 4 5 6 7 8 9"
    ids = tiny.tokenizer()(text).input_ids
    cut = windows(PLAIN, [text], 4, 3)
    assert [w.tolist() for w in cut] == [ids[:4], ids[3:7], ids[6:]]
    assert [w.tolist() for w in windows(PLAIN, [text], 10, 5)] == [ids]
    assert [w.tolist() for w in windows(PLAIN, [text], 4, 1)] == [ids[:4]]
    joined = windows(adds, ["0 1 2", "3 4 5"], 5, 2, [BOS])
    assert [w.tolist() for w in joined] == [[BOS, *ids[:4]], [BOS, *ids[2:6]]]
    with pytest.raises(PromptError, match="have 10 tokens, but the prompt has 11"):
        windows(PLAIN, [text], 11, 2)
    with pytest.raises(PromptError, match="no tokenizer"):
        windows(BARE, [text], 2, 2)


# Tokenizers that put special tokens around a text

AROUND = {
    "nothing": (None, False),
    "bos": ("<s> $A", True),
    "eos": ("$A </s>", False),
    "both": ("<s> $A </s>", True),
}


@pytest.mark.parametrize(("text", "own"), [("", 0), ("<s> ", 1), ("<s> <s> ", 2)])
@pytest.mark.parametrize("bos", [None, True, False])
@pytest.mark.parametrize("around", AROUND)
def test_one_bos_at_the_start_and_nothing_behind_the_text(
    tmp_path: Path, around: str, bos: bool | None, text: str, own: int
) -> None:
    """`own` BOS that the text begins with; the tokenizer may add one more, and an EOS."""
    template, adds_bos = AROUND[around]
    model = types.SimpleNamespace(tokenizer=made_tokenizers.saved(tmp_path, template))
    words = tiny.tokenizer()(tiny.PROMPT).input_ids
    expected = {True: 1, False: 0, None: own or int(adds_bos)}[bos]
    prompt = tokenize(model, arch(), text + tiny.PROMPT, bos)
    assert list(prompt.ids) == [BOS] * expected + words
    assert prompt.text == text + tiny.PROMPT
    again = tokenize(model, arch(), prompt, bos)
    assert again == prompt


def test_an_eos_that_the_text_itself_ends_with_stays(tmp_path: Path) -> None:
    model = types.SimpleNamespace(tokenizer=made_tokenizers.saved(tmp_path, "<s> $A </s>"))
    assert tokenize(model, arch(), "the capital </s>").strings == ("<s>", "the", "capital", "</s>")


def test_windows_hold_no_special_token(tmp_path: Path) -> None:
    model = types.SimpleNamespace(tokenizer=made_tokenizers.saved(tmp_path, "<s> $A </s>"))
    (window,) = windows(model, ["<s> 0 1", "2 3"], 5, 1, [BOS])
    assert window.tolist() == [BOS, *tiny.tokenizer()("0 1 2 3").input_ids]


def test_a_chat_template_brings_the_one_bos() -> None:
    made = made_tokenizers.sentence_piece("<s> $A </s>")
    made.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    said = [{"role": "user", "content": "the capital of France"}]
    text = made.apply_chat_template(said, tokenize=False)
    assert text.startswith("<s>")
    ids = text_ids(made, text)
    assert ids.count(made.bos_token_id) == 1
    assert ids[0] == made.bos_token_id
    assert ids[-1] != made.eos_token_id


def test_what_a_tokenizer_puts_before_a_text(tmp_path: Path) -> None:
    assert leading_ids(made_tokenizers.saved(tmp_path / "a", "<s> $A </s>")) == [BOS]
    assert leading_ids(made_tokenizers.saved(tmp_path / "b", "$A </s>")) == []
    assert leading_ids(tiny.tokenizer()) == []


def test_a_tokenizer_that_was_saved_again_is_read_again(tmp_path: Path) -> None:
    made_tokenizers.saved(tmp_path)
    reloaded = tf.AutoTokenizer.from_pretrained(tmp_path, add_bos_token=True)
    model = types.SimpleNamespace(tokenizer=reloaded)
    assert tokenize(model, arch(), tiny.PROMPT).ids[0] != BOS
    made_tokenizers.saved(tmp_path, "<s> $A")
    assert tokenize(model, arch(), tiny.PROMPT).ids[0] == BOS


# Texts of other scripts, and what is no text


@pytest.mark.parametrize("made", [made_tokenizers.sentence_piece, made_tokenizers.byte_level])
def test_a_prompt_cut_and_gone_on_with_reads_as_a_text(made: Any) -> None:
    text = "the capital of 日本 שלום is Paris"
    tokenizer = made()
    model = types.SimpleNamespace(tokenizer=tokenizer)
    prompt = tokenize(model, dataclasses.replace(arch(), d_vocab=500), text)
    assert prompt.text == text
    assert tokenize(model, dataclasses.replace(arch(), d_vocab=500), prompt.ids).text == (
        tokenizer.decode(prompt.ids)
    )
    for length in range(2, len(prompt.ids)):
        first = cut(model, prompt, length)
        assert first.strings == prompt.strings[:length]
        assert "\ufffd" not in first.text
        if "<0x" not in first.text:
            assert text.startswith(first.text)
            assert extended(model, first, prompt.ids[length:]) == prompt
    words = cut(model, prompt, len(text_ids(tokenizer, "the capital of")))
    assert words.text == "the capital of"


@pytest.mark.parametrize("text", ["the \ud800 capital", "the capital of \udce9"])
def test_half_of_a_surrogate_pair_is_refused_by_name(text: str) -> None:
    with pytest.raises(PromptError, match=r"character \d+ is half of a surrogate pair, '.u") as e:
        tokenize(PLAIN, arch(), text)
    assert str(e.value).isascii()
    with pytest.raises(PromptError, match="half of a surrogate pair"):
        windows(PLAIN, [text], 2, 1)
