"""A prompt of a corpus: its text, the text that truly follows, and labels that go along."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Label = str | int | float | bool


class CorpusError(ValueError):
    """A corpus that cannot be read, with the file, the line and the reason."""


@dataclass(frozen=True)
class CorpusPrompt:
    """A prompt as given, not tokenized.

    Attributes:
        text: never blank.
        next: the text that truly follows, its leading space included; None where it is unknown.
        labels: scalars by name; one that is missing has no key.
    """

    text: str
    next: str | None = None
    labels: Mapping[str, Label] = field(default_factory=dict)


def prompt_of(
    values: Mapping[str, Any], where: str, text_column: str, next_column: str
) -> CorpusPrompt:
    """A prompt of one row: text, next, and every other column a label.

    Args:
        values: of the row, by column.
        where: the row lies, for the error.
        text_column: column of the text.
        next_column: column of what follows; it may be missing, null or empty.

    Raises:
        CorpusError: the text is missing, no string or blank, or a value is no scalar.
    """
    if text_column not in values:
        raise CorpusError(f"{where}: no {text_column!r}; there are {listed(values)}")
    text, following = values[text_column], values.get(next_column)
    if not isinstance(text, str):
        raise CorpusError(
            f"{where}: {text_column!r} must be text; got {_shown(text)}; fill it in or drop the row"
        )
    if not text.strip():
        raise CorpusError(f"{where}: {text_column!r} is empty")
    if not (following is None or isinstance(following, str)):
        raise CorpusError(f"{where}: {next_column!r} must be text; got {_shown(following)}")
    for name in values:
        if name not in (text_column, next_column) and name.strip() in (text_column, next_column):
            raise CorpusError(
                f"{where}: the name {name!r} has a space at its ends; write {name.strip()!r}"
            )
    labels = {
        name: _label(name, value, where)
        for name, value in values.items()
        if name not in (text_column, next_column) and not _missing(value)
    }
    return CorpusPrompt(text, following or None, labels)


def listed(names: Mapping[str, Any] | list[str]) -> str:
    """Names in a row, for an error."""
    return ", ".join(map(repr, names)) or "none"


def _label(name: str, value: Any, where: str) -> Label:
    if not isinstance(value, Label):
        raise CorpusError(
            f"{where}: label {name!r} must be text, a number or a truth value; got "
            f"{_shown(value)}; drop the column or write it as text"
        )
    return value


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
