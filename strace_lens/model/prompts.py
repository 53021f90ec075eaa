"""Text to tokens by the model's own tokenizer, and token ids back to text and labels.

A tokenizer may put special tokens before a text and behind it. Those before are kept, never a
second BOS; those behind are left out, since a prediction is read at the last token of the text.

One id decoded alone is often no text: SentencePiece drops the space that a word begins with, and a
character of several tokens becomes a replacement character for each. A text is therefore decoded as
a whole, and the label of a token is the token as the tokenizer stores it.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from strace_lens.model.architecture import Architecture, Model

_SPACE = "\u2581"  # how SentencePiece stores a space
_LOST = "\ufffd"  # what decoders put in the place of bytes that are no whole character
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_letters() -> dict[str, int]:
    """The letter that stands for each byte in the vocabulary of a byte-level tokenizer (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_LETTERS = _byte_letters()


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text that token ids stand for, special tokens included.

    Bytes that are no whole character, as at the end of a prompt cut within one, are written as
    `<0xE6>`. Without a tokenizer the ids are written as numbers, parted by spaces.
    """
    if tokenizer is None:
        return " ".join(map(str, ids))
    whole = _decoded(tokenizer, ids)
    if _LOST not in whole:
        return whole
    pieces = [_piece(tokenizer, i) for i in ids]
    if not any(isinstance(piece, bytes) for piece in pieces):
        return whole
    joined = _joined(pieces)
    return joined if whole.startswith(" ") else joined.removeprefix(" ")


def label(tokenizer: Any, token: int) -> str:
    """One token as text, for axes and tables.

    A word keeps the space that it begins with, and bytes that are no whole character are written
    as `<0xE6>`. An id that the tokenizer does not know is `<id>`; without one it is a number.
    """
    return str(token) if tokenizer is None else _joined([_piece(tokenizer, token)])


def added_text(tokenizer: Any, before: Sequence[int], added: Sequence[int]) -> str:
    """What some tokens add to the text of those before them.

    Where these end a character that those before begin, only their bytes are known (`text_of`).
    """
    first, whole = text_of(tokenizer, before), text_of(tokenizer, [*before, *added])
    if whole.startswith(first):
        return whole[len(first) :]
    return _joined([_piece(tokenizer, token) for token in added])


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    # Some tokenizers would take the spaces before punctuation away, which are part of the text.
    return tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


def _piece(tokenizer: Any, token: int) -> str | bytes:
    """A token's text, or its bytes where these are no whole characters."""
    stored = tokenizer.convert_ids_to_tokens(token)
    if stored is None:
        return f"<{token}>"
    text = _decoded(tokenizer, [token])
    if _LOST in text:
        known = _stored_bytes(stored)
        return text if known is None else known
    if isinstance(stored, str) and _SPACE in stored and _SPACE not in text:
        return stored.replace(_SPACE, " ")
    return text


def _stored_bytes(stored: str | bytes) -> bytes | None:
    if isinstance(stored, bytes):
        return stored
    fallback = _BYTE.fullmatch(stored)
    if fallback:
        return bytes([int(fallback[1], 16)])
    if all(letter in _LETTERS for letter in stored):
        return bytes(_LETTERS[letter] for letter in stored)
    return None


def _joined(pieces: Sequence[str | bytes]) -> str:
    """Pieces in a row: bytes of neighbours that make up a character become that character."""
    rest = b"".join(piece.encode() if isinstance(piece, str) else piece for piece in pieces)
    text = ""
    while rest:
        try:
            return text + rest.decode()
        except UnicodeDecodeError as error:
            text += rest[: error.start].decode()
            text += "".join(f"<0x{byte:02X}>" for byte in rest[error.start : error.end])
            rest = rest[error.end :]
    return text


class PromptError(ValueError):
    """Raised when a prompt cannot be traced, with the reason."""


@dataclass(frozen=True)
class Prompt:
    """A tokenized prompt.

    Attributes:
        text: the text that was given, or that of the token ids that were given.
        ids: token ids, including the BOS if there is one.
        strings: a label for each token, for axes and tables (`label`); joined, they may differ
            from the text.
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
        """Hash of the token ids, which ties a saved result to its prompt."""
        return hashlib.sha256(" ".join(map(str, self.ids)).encode()).hexdigest()


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
        bos: None leaves it to the tokenizer, whose BOS is left out where the text begins with one
            (as a chat template makes it). True makes sure of exactly one BOS at the start, False of
            none. Ids are left as they are by None.

    Raises:
        PromptError: an empty prompt, one of a single token (it has no computation between tokens),
            one longer than the context, an id outside the vocabulary, a BOS the tokenizer lacks, or
            a text that is not Unicode.
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
        ids, text = text_ids(tokenizer, prompt), prompt
    else:
        ids, text = _whole_numbers(prompt), None
    if bos is not None:
        ids = _with_bos(ids, tokenizer) if bos else _without_bos(ids, tokenizer)
    _check(ids, architecture)
    strings = tuple(label(tokenizer, i) for i in ids)
    return Prompt(text_of(tokenizer, ids) if text is None else text, tuple(ids), strings)


def cut(model: Model, prompt: Prompt, length: int) -> Prompt:
    """A prompt cut to its first tokens; its text is what the tokenizer decodes from them."""
    tokenizer = own_tokenizer(model)
    first, whole = text_of(tokenizer, prompt.ids[:length]), text_of(tokenizer, prompt.ids)
    # A BOS that the tokenizer added is no part of the text that was given, nor of its beginning.
    added = whole.removesuffix(prompt.text) if whole.endswith(prompt.text or whole) else ""
    return Prompt(first.removeprefix(added), prompt.ids[:length], prompt.strings[:length])


def extended(model: Model, prompt: Prompt, added: Sequence[int]) -> Prompt:
    """A prompt with some tokens behind it; its text goes on with what the tokens add to it."""
    tokenizer = own_tokenizer(model)
    return Prompt(
        prompt.text + added_text(tokenizer, prompt.ids, added),
        (*prompt.ids, *added),
        (*prompt.strings, *(label(tokenizer, i) for i in added)),
    )


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text with what the tokenizer puts before it, and never a second BOS."""
    before, own = _read(tokenizer, text)
    bos = _bos_of(tokenizer)
    if bos is not None and own[:1] == [bos]:
        before = [i for i in before if i != bos]
    return before + own


def bare_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text without any that the tokenizer adds."""
    return _read(tokenizer, text)[1]


def continuation_ids(tokenizer: Any, prompt: Prompt, continuation: str) -> list[int]:
    """Token ids of a text that goes on with a prompt.

    The tokenizer decides on prompt and continuation joined. Where that adds not one token, as where
    it merges the two (GPT-2 makes one token of some years), the continuation is read on its own.
    """
    before = list(prompt.ids)
    joined = text_ids(tokenizer, prompt.text + continuation)
    added = joined[len(before) :] if joined[: len(before)] == before else []
    return added if len(added) == 1 else bare_ids(tokenizer, continuation)


def leading_ids(tokenizer: Any) -> list[int]:
    """Token ids that a tokenizer puts before every text."""
    return _read(tokenizer, "a")[0]


def _read(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """Token ids that a tokenizer puts before a text, and those of the text itself."""
    half = next((i for i, sign in enumerate(text) if "\ud800" <= sign <= "\udfff"), None)
    if half is not None:
        raise PromptError(
            f"the text is not Unicode: character {half} is half of a surrogate pair, "
            f"{text[half]!r}; it was not UTF-8 where it was read"
        )
    whole = [int(i) for i in tokenizer(text).input_ids]
    own = [int(i) for i in tokenizer(text, add_special_tokens=False).input_ids]
    for before in range(len(whole) - len(own), -1, -1):
        if whole[before : before + len(own)] == own:
            return whole[:before], own
    return [], whole


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
    where = str(tokenizer.name_or_path)
    return _saved_tokenizer(where, _state_of(where)) or tokenizer


def _state_of(where: str) -> tuple[tuple[str, int, int, int], ...]:
    """What changes when a tokenizer is saved again in its folder; nothing where it is none."""
    folder = Path(where)
    if not folder.is_dir():
        return ()
    files = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    return tuple((name, s.st_size, s.st_mtime_ns, s.st_ino) for name, s in files)


@functools.lru_cache
def _saved_tokenizer(where: str, state: object) -> Any:
    """The tokenizer saved in a folder in some state, read once."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(where)
    except (OSError, ValueError):
        return None


def _bos_of(tokenizer: Any) -> int | None:
    return getattr(tokenizer, "bos_token_id", None)


def _with_bos(ids: list[int], tokenizer: Any) -> list[int]:
    bos = _bos_of(tokenizer)
    if bos is None:
        raise PromptError("a BOS was asked for, but the tokenizer has none; leave it out")
    return [bos, *_without_bos(ids, tokenizer)]


def _without_bos(ids: list[int], tokenizer: Any) -> list[int]:
    bos = _bos_of(tokenizer)
    return list(itertools.dropwhile(lambda i: i == bos, ids))


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
    and leaves every real position, its number included, as it is when the prompt runs alone. Rows
    of another `Architecture.padding_class` are the exception: run them apart.
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
    """
    tokenizer = own_tokenizer(model)
    if tokenizer is None:
        raise PromptError("the model has no tokenizer; mean ablation needs one for its references")
    ids = [i for text in texts for i in _without_bos(bare_ids(tokenizer, text), tokenizer)]
    width = length - len(first)
    last = len(ids) - width
    if last < 0:
        raise PromptError(
            f"the reference texts have {len(ids)} tokens, but the prompt has {length}; "
            "give longer reference texts"
        )
    starts = sorted({round(i * last / max(1, count - 1)) for i in range(count)})
    return [torch.tensor([*first, *ids[start : start + width]]) for start in starts]
