"""Rows of the files that prompts come in: a name for each row's place, and its values by column."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from strace_lens.corpus.prompts import CorpusError, listed
from strace_lens.text_files import TextFileError, lines_of, read_text

Rows = Iterator[tuple[str, dict[str, Any]]]

TEXT_SYNONYM = "prompt"
"""Read as the text by JSONL objects that have no `text`."""

TSV_COLUMNS = ("text", "last_word", "last_pos", "next_word", "next_pos", "next")
"""What we call the columns of the paper's TSV."""

SPACE_MARKS = ("\u0120", "\u2581")
"""How byte-level BPE (Ġ) and SentencePiece (▁) write a token's leading space."""


def read_lines(path: Path, text_column: str, next_column: str) -> Rows:
    """A text file: every line that is not blank is a prompt, as it stands."""
    for number, line in _lines(path):
        yield _place(path, number), {text_column: line}


def read_jsonl(path: Path, text_column: str, next_column: str) -> Rows:
    """An object a line; where `text` is asked for and missing, `prompt` takes its place."""
    for number, line in _lines(path):
        where = _place(path, number)
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{where}: not JSON ({error})") from error
        if not isinstance(values, dict):
            raise CorpusError(f"{where}: not a JSON object but a {type(values).__name__}")
        if text_column == "text" and "text" not in values and TEXT_SYNONYM in values:
            values["text"] = values.pop(TEXT_SYNONYM)
        yield where, values


def read_csv(path: Path, text_column: str, next_column: str) -> Rows:
    """A comma-separated file with a header; a label is a number where its whole column is.

    An empty cell is a missing value, except in the column of the text.
    """
    (_, header), *rows = _csv_rows(path)
    _check_header(path, header, text_column)
    numbers = set()
    for place, name in enumerate(header):
        cells = [cells[place] for _, cells in rows if cells[place]]
        if name not in (text_column, next_column) and all(_number(c) is not None for c in cells):
            numbers.add(name)
    for line, cells in rows:
        values = {
            name: (_number(cell) if name in numbers else cell)
            for name, cell in zip(header, cells, strict=True)
            if cell or name == text_column
        }
        yield _place(path, line), values


def read_paper_tsv(path: Path, text_column: str, next_column: str) -> Rows:
    """The TSV of the paper's authors: `TSV_COLUMNS`, with or without a header, nothing quoted.

    A mark of a leading space at the start of the next token is read as that space.
    """
    names = [{"text": text_column, "next": next_column}.get(c, c) for c in TSV_COLUMNS]
    for number, line in _lines(path):
        cells = line.split("\t")
        if len(cells) != len(names):
            raise CorpusError(
                f"{_place(path, number)}: a TSV has {len(names)} columns "
                f"(context, last word, its part of speech, next word, its part of speech, "
                f"next token); got {len(cells)}"
            )
        if number == 1 and _is_paper_header(cells):
            continue
        if cells[-1].startswith(SPACE_MARKS):
            cells[-1] = f" {cells[-1][1:]}"
        values = {name: cell for name, cell in zip(names, cells, strict=True) if cell}
        yield _place(path, number), {text_column: "", **values}


def read_parquet(path: Path, text_column: str, next_column: str) -> Rows:
    """A Parquet file, a row a prompt."""
    try:
        file = pq.ParquetFile(path)
        _check_header(path, file.schema_arrow.names, text_column)
        number = 0
        for batch in file.iter_batches():
            for values in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", values
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CorpusError(f"{path} cannot be read as Parquet: {reason}") from error


READERS: dict[str, Callable[[Path, str, str], Rows]] = {
    ".txt": read_lines,
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".tsv": read_paper_tsv,
}
"""By suffix: a function of the path and the names of the columns of text and next."""


def _place(path: Path, line: int) -> str:
    return f"{path}, line {line}"


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except TextFileError as error:
        raise CorpusError(str(error)) from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, numbered from 1; only a newline parts them."""
    for number, line in enumerate(lines_of(_text(path)), start=1):
        if line.strip():
            yield number, line


def _csv_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Rows with the line that each begins at; the header first, all as wide as it."""
    text = _text(path)
    limit = csv.field_size_limit(len(text) + 1)  # the default refuses texts of 128 KiB
    rows: list[tuple[int, list[str]]] = []
    begins = 1
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        for cells in reader:
            if cells:
                rows.append((begins, cells))
                if len(cells) != len(rows[0][1]):
                    raise CorpusError(
                        f"{_place(path, begins)}: {len(cells)} cells under a header of "
                        f"{len(rows[0][1])}; quote texts that hold commas"
                    )
            begins = reader.line_num + 1
    except csv.Error as error:
        raise CorpusError(f"{_place(path, begins)}: not CSV ({error})") from error
    finally:
        csv.field_size_limit(limit)
    if not rows:
        raise CorpusError(f"{path} is empty; a CSV begins with the names of its columns")
    return rows


def _check_header(path: Path, header: list[str], text_column: str) -> None:
    if text_column not in header:
        raise CorpusError(f"{path} has no column {text_column!r}; there are {listed(header)}")
    if "" in header:
        raise CorpusError(f"{path}: column {header.index('') + 1} has no name; name it or drop it")
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise CorpusError(f"{path} has the column {twice[0]!r} twice")


def _number(cell: str) -> int | float | None:
    """A cell as a number, if JSON would read it as one: 007 is none."""
    try:
        number = json.loads(cell)
    except (ValueError, RecursionError):
        return None
    return number if type(number) in (int, float) and number == number else None


def _is_paper_header(cells: list[str]) -> bool:
    first, last = (cell.strip().lower().replace("_", " ") for cell in (cells[0], cells[-1]))
    return first in ("context", "text", "prompt") and last in ("next token", "token", "next")
