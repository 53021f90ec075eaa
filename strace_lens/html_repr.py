"""How results print in a notebook: a line of facts, the prompt's tokens, a small table."""

from __future__ import annotations

import html
from collections.abc import Sequence

import pandas as pd

ROWS = 30
"""Rows of a table at most; what is left out is counted."""

_LONGEST = 64  # characters of a cell, tokens of a prompt


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
        f"<code>{html.escape(repr(token), quote=False)}</code>" for token in strings[:_LONGEST]
    ]
    more = len(strings) - _LONGEST
    return " ".join(cells) + (f" and {more:,} more" if more > 0 else "")


def _table(table: pd.DataFrame) -> str:
    cut = table.head(ROWS).map(lambda x: short(x) if isinstance(x, str) else x)
    shown = cut.to_html(index=False, border=0, na_rep="–", float_format="{:.4g}".format)
    more = len(table) - ROWS
    return shown + (f"<p>and {more:,} more rows</p>" if more > 0 else "")


def short(text: str, longest: int = _LONGEST) -> str:
    """A text cut to so many characters, with an ellipsis where it was cut."""
    return text if len(text) <= longest else text[: longest - 1] + "…"
