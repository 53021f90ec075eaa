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
from strace_lens.utils.disk import (
    JsonError,
    TextFileError,
    decoded,
    lines_of,
    parse_json,
    read_text,
)

Rows = Iterator[tuple[str, dict[str, Any]]]

TEXT_SYNONYM = "prompt"
"""Read as the text by JSONL objects that have no `text`."""

TSV_COLUMNS = ("text", "last_word", "last_pos", "next_word", "next_pos", "next")
"""What we call the columns of the paper's TSV."""

TSV_SHORT = ("text", "next")
"""Its columns where the words and their parts of speech are left out."""

SPACE_MARKS = ("\u0120", "\u2581")
"""How byte-level BPE (Ġ) and SentencePiece (▁) write a token's leading space."""


def read_lines(path: Path, text_column: str, next_column: str) -> Rows:
    """A text file: every line that is not blank is a prompt, as it stands.

    A file whose lines all have the six columns of the paper's TSV is read as one, since its authors
    name theirs so. Any other file all of whose lines are cells parted by tabs is refused: it is a
    table, and its lines are no prompts.
    """
    lines = list(_lines(path))
    widths = {_cells(line) for _, line in lines}
    if widths == {len(TSV_COLUMNS)}:
        yield from read_paper_tsv(path, text_column, next_column)
        return
    if len(widths) == 1 and widths != {1}:
        raise CorpusError(
            f"{path} is a table: each line has {widths.pop()} columns parted by tabs; name it .tsv "
            "if they are a context and its next token, else save it as .csv with a header"
        )
    for number, line in lines:
        yield _place(path, number), {text_column: line}


def read_jsonl(path: Path, text_column: str, next_column: str) -> Rows:
    """An object a line; where `text` is asked for and missing, `prompt` takes its place."""
    for number, line in _lines(path):
        where = _place(path, number)
        yield where, _renamed(_object(line, where), text_column)


def read_json(path: Path, text_column: str, next_column: str) -> Rows:
    """A list of objects, or an object a line as in JSONL."""
    text = _text(path)
    if not text.lstrip().startswith("["):
        yield from read_jsonl(path, text_column, next_column)
        return
    try:
        found = parse_json(text, path, nan=True)
    except JsonError as error:
        raise CorpusError(str(error)) from error
    for number, values in enumerate(found, start=1):
        where = f"{path}, object {number}"
        if not isinstance(values, dict):
            raise CorpusError(f"{where}: not a JSON object but a {type(values).__name__}")
        yield where, _renamed(values, text_column)


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        values = parse_json(line, where, nan=True)
    except JsonError as error:
        raise CorpusError(str(error)) from error
    if not isinstance(values, dict):
        raise CorpusError(f"{where}: not a JSON object but a {type(values).__name__}")
    return values


def _renamed(values: dict[str, Any], text_column: str) -> dict[str, Any]:
    if text_column == "text" and "text" not in values and TEXT_SYNONYM in values:
        values["text"] = values.pop(TEXT_SYNONYM)
    return values


def read_csv(path: Path, text_column: str, next_column: str) -> Rows:
    """A comma-separated file with a header; a label is a number where its whole column is.

    An empty cell is a missing value, except in the column of the text.
    """
    (_, header), *rows = _csv_rows(path)
    header = [name.strip() for name in header]
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
    """The TSV of the paper's authors: `TSV_COLUMNS`, or a context and its next token alone.

    With or without a header, nothing quoted. A mark of a leading space at the start of the next
    token is read as that space.
    """
    lines = list(_lines(path))
    short = bool(lines) and lines[0][1].count("\t") + 1 == len(TSV_SHORT)
    columns = TSV_SHORT if short else TSV_COLUMNS
    names = [{"text": text_column, "next": next_column}.get(c, c) for c in columns]
    for number, line in lines:
        cells = line.split("\t")
        if len(cells) != len(names):
            raise CorpusError(
                f"{_place(path, number)}: a TSV has 6 columns (context, last word, its part of "
                "speech, next word, its part of speech, next token), or 2 (context, next token), "
                f"in every line; got {len(cells)}"
            )
        if number == lines[0][0] and _is_paper_header(cells):
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
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".tsv": read_paper_tsv,
}
"""By suffix: a function of the path and the names of the columns of text and next."""

COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
"""By the suffix behind that of a text file: how pyarrow calls its compression."""


def names_a_file(path: Path) -> bool:
    """Whether a path that need not be there has a suffix of the files that are read."""
    return path.suffix.lower() in {*READERS, *COMPRESSED}


def reader_of(path: Path) -> Callable[[Path, str, str], Rows]:
    """What reads a file, by its suffixes.

    Raises:
        CorpusError: nothing does; the message says what would be read.
    """
    *before, last = path.suffixes[-2:] or [""]
    packed = last.lower() in COMPRESSED
    kind = (before[0] if packed and before else last).lower()
    if kind in READERS and not (packed and kind == ".parquet"):
        return READERS[kind]
    kinds, packings = ", ".join(READERS), ", ".join(COMPRESSED)
    raise CorpusError(
        f"{path}: prompts are read from {kinds}, and from text files packed as {packings}; unpack "
        "or rename it"
    )


def _place(path: Path, line: int) -> str:
    return f"{path}, line {line}"


def _text(path: Path) -> str:
    packing = COMPRESSED.get(path.suffix.lower())
    try:
        if packing is None:
            return read_text(path)
        with pa.input_stream(str(path), compression=packing) as stream:
            return decoded(stream.read(), path)
    except (OSError, pa.ArrowException) as error:
        if packing is None:
            raise
        reason = str(error).splitlines()[0]
        raise CorpusError(f"{path} cannot be unpacked as {packing}: {reason}") from error
    except TextFileError as error:
        raise CorpusError(str(error)) from error


def _cells(line: str) -> int:
    """How many columns a line has, if tabs part it; a tab at its start is an indent."""
    return line.count("\t") + 1 if line.partition("\t")[0].strip() else 1


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
