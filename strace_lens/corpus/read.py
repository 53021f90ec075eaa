"""Prompts from a file, a folder, a Hugging Face data set, or the package's own set.

Every reader yields rows: a name for the row's place in its source, and its values by column. The
error for a bad record names that place.
"""

from __future__ import annotations

import importlib.resources
import itertools
import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from strace_lens.corpus.prompts import CorpusError, CorpusPrompt, listed, prompt_of
from strace_lens.utils.choices import BUILTIN
from strace_lens.utils.csv_text import CsvError, csv_rows
from strace_lens.utils.disk import (
    JsonError,
    TextFileError,
    decoded,
    lines_of,
    parse_json,
    parse_object,
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

COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
"""By the suffix behind that of a text file: how pyarrow calls its compression."""

SAVED = ("dataset_dict.json", "state.json")
"""Files by which a folder of `save_to_disk` is known."""


def read_corpus(
    source: str | Path,
    *,
    text_column: str = "text",
    next_column: str = "next",
    split: str | None = None,
    limit: int | None = None,
) -> list[CorpusPrompt]:
    """Read prompts, in the order of the source.

    Args:
        source: "builtin"; a .txt file (one prompt per line), .jsonl, .json, .csv or .parquet
            (`text`, optionally `next`, every other column a label), .tsv (the columns of the
            paper's authors: context, last word, its part of speech, next word, its part of speech,
            next token; or only context and next token), all but .parquet also compressed, such as
            .jsonl.gz or .txt.zst; a folder that `datasets` saved or can load; or a name on its hub,
            `owner/name` or `owner/name:configuration`.
        text_column: column of the text, in files with named columns.
        next_column: column of the text that follows.
        split: split of a data set; by default "train", or the only one of a saved data set.
        limit: maximum number of prompts to read.

    Raises:
        FileNotFoundError: the file does not exist.
        CorpusError: the source holds no prompt or cannot be read, with the line and the reason.
        ValueError: a limit below 1, no source, or a split of a source that has none.

    Example:
        >>> prompts = sl.read_corpus("builtin", limit=2)
    """
    if not str(source).strip():
        raise ValueError(f"the source is empty; name a file, a folder, a data set or {BUILTIN!r}")
    check_limit(limit)
    rows = _rows(source, text_column, next_column, split)
    try:
        prompts = [
            prompt_of(values, where, text_column, next_column)
            for where, values in itertools.islice(rows, limit)
        ]
    except (JsonError, TextFileError) as error:
        raise CorpusError(str(error)) from error
    if not prompts:
        raise CorpusError(f"{source} is empty: it holds no prompt")
    return prompts


def check_limit(limit: int | None) -> None:
    """Refuse a number of prompts to read that is below 1."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1; got {limit}")


def _rows(source: str | Path, text_column: str, next_column: str, split: str | None) -> Rows:
    path = Path(source)
    if split is not None and (source == BUILTIN or path.is_file()):
        raise ValueError(f"{source} has no splits, and {split!r} was asked for; leave it out")
    if source == BUILTIN:
        held = importlib.resources.files("strace_lens") / "data" / "prompts.jsonl"
        with importlib.resources.as_file(held) as path:
            yield from read_json(path, "text", "next")
        return
    if path.is_dir() or not (path.is_file() or names_a_file(path)):
        yield from read_dataset(str(source), split, text_column, next_column)
        return
    reader = reader_of(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {source}")
    yield from reader(path, text_column, next_column)


def read_lines(path: Path, text_column: str, next_column: str) -> Rows:
    """A text file: every line that is not blank is a prompt, as it stands.

    A file whose lines all have the six columns of the paper's TSV is read as one, since its authors
    name theirs so. Any other table of cells separated by tabs is refused.
    """
    lines = list(_lines(path))
    widths = {_cells(line) for _, line in lines}
    if widths == {len(TSV_COLUMNS)}:
        yield from read_paper_tsv(path, text_column, next_column)
        return
    if len(widths) == 1 and widths != {1}:
        raise CorpusError(
            f"{path} is a table: each line has {widths.pop()} columns separated by tabs; name it "
            ".tsv if they are a context and its next token, else save it as .csv with a header"
        )
    for number, line in lines:
        yield _place(path, number), {text_column: line}


def read_json(path: Path, text_column: str, next_column: str) -> Rows:
    """An object a line, or in a `.json` file a list of objects.

    Where `text` is asked for and missing, `prompt` takes its place.
    """
    text = _text(path)
    if ".jsonl" not in path.name.lower() and text.lstrip().startswith("["):
        objects = [
            (f"{path}, object {number}", values)
            for number, values in enumerate(parse_json(text, path, nan=True), start=1)
        ]
    else:
        objects = (
            (_place(path, number), parse_object(line, _place(path, number), nan=True))
            for number, line in _lines(path)
        )
    for where, values in objects:
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
    header = [name.strip() for name in header]
    _check_header(path, header, text_column)
    numbers = {
        name
        for name, *column in zip(header, *(cells for _, cells in rows), strict=True)
        if name not in (text_column, next_column)
        and all(_number(cell) is not None for cell in column if cell)
    }
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
    ".jsonl": read_json,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".tsv": read_paper_tsv,
}
"""By suffix: a function of the path and the names of the columns of text and next."""


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
    if packing is None:
        return read_text(path)
    try:
        with pa.input_stream(str(path), compression=packing) as stream:
            data = stream.read()
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise CorpusError(f"{path} cannot be unpacked as {packing}: {reason}") from error
    return decoded(data, path)


def _cells(line: str) -> int:
    """How many columns a line has, if tabs part it; a tab at its start is an indent."""
    return line.count("\t") + 1 if line.partition("\t")[0].strip() else 1


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, numbered from 1; only a newline parts them."""
    for number, line in enumerate(lines_of(_text(path)), start=1):
        if line.strip():
            yield number, line


def _csv_rows(path: Path) -> list[tuple[int, list[str]]]:
    try:
        return csv_rows(_text(path), path)
    except CsvError as error:
        raise CorpusError(str(error)) from error


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


def read_dataset(source: str, split: str | None, text_column: str, next_column: str) -> Rows:
    """Rows of a split, blank texts left out, as corpora have them between paragraphs.

    Columns that hold neither text nor numbers nor truth values are left out; a class is read as
    its name.
    """
    rows, split = _one_split(load_split(source, split), source, split)
    place = f"{source} ({split})" if split else source
    if text_column not in rows.features:
        raise CorpusError(
            f"{source} has no column {text_column!r}; there are {listed(list(rows.features))}"
        )
    scalar = [
        name
        for name, kind in rows.features.items()
        if re.fullmatch(r"(bool|(large_)?string|u?int.*|float.*)", str(getattr(kind, "dtype", "")))
    ]
    names = {name: kind.int2str for name, kind in rows.features.items() if hasattr(kind, "int2str")}
    kept = [text_column, *(name for name in scalar if name != text_column)]
    for number, values in enumerate(rows.select_columns(kept), start=1):
        text = values[text_column]
        if isinstance(text, str) and not text.strip():
            continue
        for name, name_of in names.items():
            if values[name] is not None and values[name] >= 0:
                values[name] = name_of(values[name])
        yield f"{place}, row {number}", values


def load_split(source: str, split: str | None) -> Any:
    """A split of a data set, by default `train`; of a saved one, all splits.

    Args:
        source: a folder, or a name on the hub, with a configuration as `owner/name:configuration`.
        split: name of the split.

    Raises:
        CorpusError: the data set cannot be loaded; the message has the library's reason.
    """
    import datasets  # takes a second

    folder = Path(source).is_dir()
    name, configuration = (source, "") if folder else source.partition(":")[::2]
    bars = datasets.is_progress_bar_enabled()
    before = logging.root.manager.disable
    datasets.disable_progress_bars()
    logging.disable(max(before, logging.ERROR))  # what goes wrong is raised as well
    try:
        if any((Path(source) / saved).is_file() for saved in SAVED):
            return datasets.load_from_disk(source)
        return datasets.load_dataset(name, configuration or None, split=split or "train")
    except Exception as error:  # each loader of the library has errors of its own
        root = _root(error)
        if folder and isinstance(root, UnicodeDecodeError):
            _refuse_other_encodings(Path(source))
        what = "" if folder else "is no file or folder, and as a data set of the hub "
        reason = next(iter(str(root).strip().splitlines()), type(root).__name__)
        raise CorpusError(f"{source} {what}cannot be loaded: {reason}") from error
    finally:
        logging.disable(before)
        if bars:
            datasets.enable_progress_bars()


def _one_split(loaded: Any, source: str, split: str | None) -> tuple[Any, str | None]:
    """The rows of a split and its name; a saved data set is one split, or all of them."""
    if not isinstance(loaded, dict):
        own = None if loaded.split is None else str(loaded.split)
        if split in (None, own):
            return loaded, own
        has = "is one data set without splits" if own is None else f"is the split {own!r} alone"
        raise CorpusError(f"{source} {has}, and {split!r} was asked for; leave it out")
    chosen = split or (next(iter(loaded)) if len(loaded) == 1 else "train")
    if chosen not in loaded:
        raise CorpusError(f"{source} has no split {chosen!r}; there are {listed(list(loaded))}")
    return loaded[chosen], chosen


def _refuse_other_encodings(folder: Path) -> None:
    """Name the file of a folder that is not UTF-8, which the library does not."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in (".txt", ".csv", ".tsv", ".json", ".jsonl") and path.is_file():
            try:
                read_text(path)
            except TextFileError as error:
                raise CorpusError(str(error)) from error


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
