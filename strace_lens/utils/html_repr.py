"""How results are shown in a notebook: a line of facts, the tokens of the prompt, a small table.

Prompts come in every script. They are cut between what a reader sees as characters, and text that
runs from right to left is isolated so that it does not reorder the text around it.
"""

from __future__ import annotations

import html
import itertools
import unicodedata
from collections.abc import Sequence

import pandas as pd
import regex

ROWS = 30
"""The most rows of a table that are shown; the number of the others is given."""

_LONGEST = 64  # characters of a cell, tokens of a prompt
_RIGHT_TO_LEFT = ("R", "AL", "AN")
_ISOLATE, _END = "\u2068", "\u2069"


def facts(line: str, table: pd.DataFrame | None = None, strings: Sequence[str] = ()) -> str:
    """Return one line of text, a table and tokens as HTML, all escaped.

    Args:
        line: The text.
        table: Shown up to `ROWS` rows, with text cut and numbers to four digits.
        strings: The tokens.
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
    """Cut a text to at most `longest` characters, with an ellipsis where it is cut.

    A character is what a reader sees as one (a grapheme cluster), so that an accented letter or an
    emoji of several code points is never cut in two.
    """
    if len(text) <= longest:
        return text
    seen = regex.finditer(r"\X", text)
    first = [match.group() for match in itertools.islice(seen, longest + 1)]
    return text if len(first) <= longest else "".join(first[: longest - 1]) + "…"


def isolated(text: str) -> str:
    """Put a text with a right-to-left script between signs that isolate its direction.

    Without them the numbers and brackets next to it would be drawn on the wrong side. They work in
    HTML, window titles and figures alike. Other texts are returned as they are.
    """
    if not any(unicodedata.bidirectional(sign) in _RIGHT_TO_LEFT for sign in text):
        return text
    return f"{_ISOLATE}{text}{_END}"
