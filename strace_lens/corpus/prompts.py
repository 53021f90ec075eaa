"""A prompt of a corpus: its text, what truly follows if it is known, and any labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Label = str | int | float | bool


@dataclass(frozen=True)
class CorpusPrompt:
    """A prompt and what is known of it.

    Attributes:
        text: whose next token is traced.
        next: the text that truly follows; None where it is unknown.
        labels: anything else said of it; travels into the results.
    """

    text: str
    next: str | None = None
    labels: Mapping[str, Label] = field(default_factory=dict)
