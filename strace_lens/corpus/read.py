"""Prompts from a file, a folder, a Hugging Face data set, or the package's own set."""

from __future__ import annotations

import importlib.resources
import itertools
from pathlib import Path

from strace_lens.corpus.prompts import CorpusError, CorpusPrompt, prompt_of
from strace_lens.corpus.read_datasets import read_dataset
from strace_lens.corpus.read_files import Rows, names_a_file, read_jsonl, reader_of

CARRIED = "carried"
"""The source that stands for the package's own prompts, 13 of each of 8 kinds."""


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
        source: "carried"; a .txt file (a prompt a line), .jsonl, .json, .csv or .parquet (`text`,
            optionally `next`, every other column a label), .tsv (the columns of the paper's
            authors: context, last word, its part of speech, next word, its part of speech, next
            token; or context and next token alone), each but .parquet also packed, as .jsonl.gz or
            .txt.zst; a folder that `datasets` saved or can load; or a name on its hub,
            `owner/name` or `owner/name:configuration`.
        text_column: column of the text, in files with named columns.
        next_column: column of the text that follows.
        split: of a data set; by default "train", or the only one of a saved data set.
        limit: read no more prompts than this.

    Raises:
        FileNotFoundError: a file that is not there.
        CorpusError: a source that holds no prompt or cannot be read, with the line and the reason.
        ValueError: a limit below 1, no source, or a split of a source that has none.
    """
    if not str(source).strip():
        raise ValueError(f"the source is empty; name a file, a folder, a data set or {CARRIED!r}")
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


def _rows(source: str | Path, text_column: str, next_column: str, split: str | None) -> Rows:
    path = Path(source)
    if split is not None and (source == CARRIED or path.is_file()):
        raise ValueError(f"{source} has no splits, and {split!r} was asked for; leave it out")
    if source == CARRIED:
        carried = importlib.resources.files("strace_lens") / "data" / "prompts.jsonl"
        with importlib.resources.as_file(carried) as path:
            yield from read_jsonl(path, "text", "next")
        return
    if path.is_dir() or not (path.is_file() or names_a_file(path)):
        yield from read_dataset(str(source), split, text_column, next_column)
        return
    reader = reader_of(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {source}")
    yield from reader(path, text_column, next_column)
