"""Token ids as text: a run of ids decoded as one, and a label for each token on its own.

One id decoded alone is often no text. SentencePiece drops the space that a word begins with, and a
character of several tokens becomes a replacement character for each. So a text is decoded from the
whole, and a label is made of the token as the tokenizer stores it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

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

    Args:
        tokenizer: of the ids; None writes them as numbers, parted by spaces.
        ids: decoded as one. Bytes that are no whole character, as at the end of a prompt cut within
            one, are written as `<0xE6>`.
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
    as `<0xE6>`. An id that the tokenizer does not know is `<id>`.

    Args:
        tokenizer: of the token; None writes the id as a number.
        token: its id.
    """
    return str(token) if tokenizer is None else _joined([_piece(tokenizer, token)])


def added_text(tokenizer: Any, before: Sequence[int], added: Sequence[int]) -> str:
    """What some tokens add to the text of those before them.

    Args:
        tokenizer: of the ids; None writes them as numbers.
        before: ids that the text begins with.
        added: ids that it goes on with. Where these end a character that `before` begins, only
            their bytes are known, as in `text_of`.
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
