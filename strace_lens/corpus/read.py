"""Prompts from a file, a folder, a Hugging Face data set, or the package's own set."""

from __future__ import annotations

import importlib.resources
import itertools
from pathlib import Path

from strace_lens.corpus.prompts import CorpusError, CorpusPrompt, prompt_of
from strace_lens.corpus.read_datasets import read_dataset
from strace_lens.corpus.read_files import READERS, Rows, read_jsonl

CARRIED = "carried"
"""The source that stands for the package's own prompts, 13 of each of 8 kinds."""


def read_corpus(
    source: str | Path,
    *,
    text_column: str = "text",
    next_column: str = "next",
    split: str = "train",
    limit: int | None = None,
) -> list[CorpusPrompt]:
    """Read prompts, in the order of the source.

    Args:
        source: "carried"; a .txt file (a prompt a line), .jsonl, .csv or .parquet (`text`,
            optionally `next`, every other column a label), .tsv (the columns of the paper's
            authors: context, last word, its part of speech, next word, its part of speech, next
            token); a folder that `datasets` saved or can load; or a name on its hub,
            `owner/name` or `owner/name:configuration`.
        text_column: column of the text, in files with named columns.
        next_column: column of the text that follows.
        split: of a data set.
        limit: read no more prompts than this.

    Raises:
        FileNotFoundError: a file that is not there.
        CorpusError: a source that holds no prompt or cannot be read, with the line and the reason.
        ValueError: a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1; got {limit}")
    rows = _rows(source, text_column, next_column, split)
    prompts = [
        prompt_of(values, where, text_column, next_column)
        for where, values in itertools.islice(rows, limit)
    ]
    if not prompts:
        raise CorpusError(f"{source} is empty: it holds no prompt")
    return prompts


def _rows(source: str | Path, text_column: str, next_column: str, split: str) -> Rows:
    if source == CARRIED:
        carried = importlib.resources.files("strace_lens") / "data" / "prompts.jsonl"
        with importlib.resources.as_file(carried) as path:
            yield from read_jsonl(path, "text", "next")
        return
    path = Path(source)
    reader = READERS.get(path.suffix.lower())
    if path.is_dir() or (reader is None and not path.exists()):
        yield from read_dataset(str(source), split, text_column, next_column)
    elif reader is None:
        raise CorpusError(f"{source}: prompts are read from {', '.join(READERS)}; rename it")
    elif not path.exists():
        raise FileNotFoundError(f"there is no file {source}")
    else:
        yield from reader(path, text_column, next_column)
