"""Rows of a Hugging Face data set: one saved to a folder, a folder of files, or a hub's name."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from strace_lens.corpus.prompts import CorpusError, listed
from strace_lens.corpus.read_files import Rows
from strace_lens.utils.disk import TextFileError, read_text

SAVED = ("dataset_dict.json", "state.json")
"""Files by which a folder of `save_to_disk` is known."""


def read_dataset(source: str, split: str | None, text_column: str, next_column: str) -> Rows:
    """Rows of a split, blank texts left out, as corpora have them between paragraphs.

    Columns that hold neither text nor numbers nor truth values are left out; a class is read as
    its name.

    Args:
        source: a folder, or a name on the hub, `owner/name` or `owner/name:configuration`.
        split: of the data set; by default "train", or the only one of a saved data set.
        text_column: column of the text.
        next_column: column of what follows, if there is one.

    Raises:
        CorpusError: nothing is found, it cannot be loaded, or it lacks the split or the column.
    """
    rows, split = _split(_load(source, split), source, split)
    place = f"{source} ({split})" if split else source
    if text_column not in rows.features:
        raise CorpusError(
            f"{source} has no column {text_column!r}; there are {listed(list(rows.features))}"
        )
    scalar = [name for name, kind in rows.features.items() if _is_scalar(kind)]
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


def _load(source: str, split: str | None) -> Any:
    """A data set, or all splits of a saved one."""
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
        if folder and isinstance(_root(error), UnicodeDecodeError):
            _refuse_other_encodings(Path(source))
        what = "" if folder else "is no file or folder, and as a data set of the hub "
        raise CorpusError(f"{source} {what}cannot be loaded: {_reason(error)}") from error
    finally:
        logging.disable(before)
        if bars:
            datasets.enable_progress_bars()


def _split(loaded: Any, source: str, split: str | None) -> tuple[Any, str | None]:
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


def _is_scalar(kind: Any) -> bool:
    stored = str(getattr(kind, "dtype", ""))
    return stored in ("bool", "string", "large_string") or stored.startswith(
        ("int", "uint", "float")
    )


def _reason(error: BaseException) -> str:
    """The first line of the error at the root."""
    error = _root(error)
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
