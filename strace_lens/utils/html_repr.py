"""How results print in a notebook: a line of facts, the prompt's tokens, a small table.

Texts of prompts come in every script: they are cut between what a reader sees as characters, and
one that runs from right to left is kept from turning round what stands beside it.
"""

from __future__ import annotations

import html
import itertools
import unicodedata
from collections.abc import Sequence

import pandas as pd
import regex

ROWS = 30
"""Rows of a table at most; what is left out is counted."""

_LONGEST = 64  # characters of a cell, tokens of a prompt
_RIGHT_TO_LEFT = ("R", "AL", "AN")
_ISOLATE, _END = "\u2068", "\u2069"


def facts(line: str, table: pd.DataFrame | None = None, strings: Sequence[str] = ()) -> str:
    """HTML of one line of text, tokens and a table, all escaped.

    Args:
        line: text.
        table: shown up to `ROWS` rows, text cut and numbers to four digits.
        strings: tokens.
    """
    shown = f"<p>{html.escape(line, quote=False)}</p>"
    if strings:
        shown += f"<p>{_tokens(strings)}</p>"
    if table is not None and len(table):
        shown += _table(table)
    return shown


def _tokens(strings: Sequence[str]) -> str:
    cells = [
        f"<code>{html.escape(isolated(repr(token)), quote=False)}</code>"
        for token in strings[:_LONGEST]
    ]
    more = len(strings) - _LONGEST
    return " ".join(cells) + (f" and {more:,} more" if more > 0 else "")


def _table(table: pd.DataFrame) -> str:
    cut = table.head(ROWS).map(lambda x: short(x) if isinstance(x, str) else x)
    shown = cut.to_html(index=False, border=0, na_rep="–", float_format="{:.4g}".format)
    more = len(table) - ROWS
    return shown + (f"<p>and {more:,} more rows</p>" if more > 0 else "")


def short(text: str, longest: int = _LONGEST) -> str:
    """A text cut to so many characters, with an ellipsis where it was cut.

    A character is what a reader sees as one (a grapheme cluster): an accented letter or an emoji
    made of several code points is never cut in two.
    """
    if len(text) <= longest:
        return text
    seen = regex.finditer(r"\X", text)
    first = [match.group() for match in itertools.islice(seen, longest + 1)]
    return text if len(first) <= longest else "".join(first[: longest - 1]) + "…"


def isolated(text: str) -> str:
    """A text that holds a right-to-left script, between signs that keep its direction to itself.

    Without them the numbers and brackets beside it would be drawn on its wrong side. They work in
    HTML, in the title of a window and in the text of a figure alike; other texts stay as they are.
    """
    if not any(unicodedata.bidirectional(sign) in _RIGHT_TO_LEFT for sign in text):
        return text
    return f"{_ISOLATE}{text}{_END}"
