"""Rows of a part: put together from facts of several kinds, no name of which may come twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")

Row = dict[str, object]
"""One row of a part (`parts.schema`)."""


def merged(*parts: Mapping[str, Value]) -> dict[str, Value]:
    """One row with the values of all parts.

    A name that two parts share is refused: the later value would silently take the place of the
    earlier one.

    Raises:
        ValueError: a name comes twice; the message holds it.
    """
    row: dict[str, Value] = {}
    for part in parts:
        twice = row.keys() & part.keys()
        if twice:
            names = ", ".join(map(repr, sorted(twice)))
            raise ValueError(f"a row has two values for {names}; rename one of them")
        row.update(part)
    return row
