"""Rows of a file of pairs: JSON Lines, a JSON array or CSV."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from strace_lens.circuits.task import TaskError
from strace_lens.utils.csv_text import CsvError, csv_rows
from strace_lens.utils.disk import (
    JsonError,
    TextFileError,
    lines_of,
    parse_json,
    parse_object,
    read_text,
)

KEYS = ("clean", "corrupted", "answers", "wrong_answers")
"""Keys of a line of our own layout; others are ignored."""

_EXAMPLE = (
    '{"clean": "The capital of France is", "corrupted": "The capital of Italy is", '
    '"answers": " Paris", "wrong_answers": " Rome"}'
)


class Row(NamedTuple):
    """One object of a file.

    Attributes:
        where: the file and the place in it, for the message of an error.
        number: of the line, or of the object in a JSON array, counted from 1.
        facts: its values by key.
    """

    where: str
    number: int
    facts: Mapping[str, Any]


def read_rows(path: str | Path) -> Iterator[Row]:
    """Rows of a file: CSV by its suffix, a JSON array by its first character, else JSON Lines.

    A column `a.b` of a CSV is the key `b` within `a`.

    Raises:
        OSError: the file cannot be read.
        TaskError: a file without text, or a place in it that is no row; the message names it.
    """
    try:
        text = read_text(path).rstrip()
    except TextFileError as error:
        raise TaskError(str(error)) from error
    if not text:
        raise TaskError(f"{path} is empty; give one JSON object a line, with {', '.join(KEYS)}")
    if Path(path).suffix.lower() == ".csv":
        yield from _csv(text, path)
    elif text.startswith("["):
        yield from _array(text, path)
    else:
        for number, line in enumerate(lines_of(text), start=1):
            where = f"{path}, line {number}"
            yield Row(where, number, _facts(line, where))


def _facts(line: str, where: str) -> dict[str, Any]:
    """The object of a line."""
    if not line.strip():
        raise TaskError(f"{where}: the line is blank; remove it")
    try:
        return parse_object(line, where)
    except JsonError as error:
        if line.lstrip().startswith(("{", "[")):  # meant as JSON: the error says where it fails
            raise TaskError(str(error)) from error
        table = {"clean", "corrupted"} <= set(re.split(r'[\s",;]+', line))
        what = "CSV; name it .csv, or" if table else "text;"
        raise TaskError(
            f"{where}: not JSON Lines but {what} give one object a line, as {_EXAMPLE}"
        ) from error


def _array(text: str, path: str | Path) -> Iterator[Row]:
    try:
        objects = parse_json(text, path)
    except JsonError as error:
        raise TaskError(str(error)) from error
    for number, facts in enumerate(objects, start=1):
        where = f"{path}, object {number}"
        if not isinstance(facts, dict):
            raise TaskError(f"{where}: not a JSON object but a {type(facts).__name__}")
        yield Row(where, number, facts)


def _csv(text: str, path: str | Path) -> Iterator[Row]:
    try:
        (_, header), *rows = csv_rows(text, path)
    except CsvError as error:
        raise TaskError(str(error)) from error
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise TaskError(f"{path} has the column {twice[0]!r} twice")
    for line, cells in rows:
        facts: dict[str, Any] = {}
        for name, cell in zip(header, cells, strict=True):
            *outer, last = name.split(".")
            inner = facts
            for key in outer:
                inner = inner.setdefault(key, {})
                if not isinstance(inner, dict):
                    raise TaskError(f"{path}: the columns {key!r} and {name!r} exclude each other")
            inner[last] = cell
        yield Row(f"{path}, line {line}", line, facts)
