"""Parts of a run: one Parquet file a batch, written whole or not at all, tied to its run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from strace_lens.corpus.check_part import wrong_columns, wrong_values
from strace_lens.corpus.rows import Row, merged
from strace_lens.corpus.seal import SealError, sealed, unsealed
from strace_lens.utils.disk import write_whole

_RUN, _PROMPTS = "strace-lens-run", "strace-lens-prompts"


GEOMETRY = ("cosine", "l2", "cka", "velocity", "curvature")
"""Columns with a value a layer, of the trace of each size."""

STATE = "final_state"
"""Column with the state at the last token behind the final norm, at sizes of the grid."""

PATH = ("velocity", "curvature")
"""Columns with a value a layer, of the full model; `full_` comes before their names."""


class PartError(ValueError):
    """A part that is damaged or of another run, with the reason."""


class DamagedPartError(PartError):
    """A part that is not as the sweep wrote it; the sweep measures its prompts again."""


def part_path(folder: Path, batch: int) -> Path:
    """Where the part of a batch lies."""
    return folder / "parts" / f"part-{batch:05d}.parquet"


def part_paths(folder: Path) -> list[Path]:
    """All parts of a run, in order."""
    return sorted((folder / "parts").glob("part-*.parquet"))


def is_corrupted(manifest: Mapping[str, Any]) -> bool:
    """Whether a run traced corrupted texts."""
    return manifest["options"].get("corrupt", "none") != "none"


def schema(labels: Sequence[str], corrupted: bool = False) -> pa.Schema:
    """Columns of every part: a row a prompt and size; one a prompt that failed, without a size.

    Args:
        labels: names of the prompts' labels.
        corrupted: with a column for the text that was traced in place of the one given.
    """
    top = pa.list_(pa.struct([("token", pa.string()), ("p", pa.float64())]))
    by_layer = pa.list_(pa.float32())
    counts = pa.list_(pa.int32())
    number, text = pa.float64(), pa.string()
    columns: dict[str, pa.DataType] = merged(
        {"prompt": pa.int64(), "text": text, "sha256": text, "error": text, "next": text},
        {"corrupted": text} if corrupted else {},
        {f"label_{name}": text for name in labels},
        {"tokens": pa.int32(), "graph_edges": pa.int64()},
        dict.fromkeys(("entropy", "head_mass", "density", "logit_gap", "loss"), number),
        dict.fromkeys(("full_unigram_tv", "full_no_context_tv"), number),
        {"full_top": top, "reachable": counts},
        dict.fromkeys((f"full_{name}" for name in PATH), by_layer),
        {"size": number, "edges": pa.int64(), "refined": pa.bool_()},
        dict.fromkeys(("tv", "kl", "js", "head_error", "tail_error"), number),
        {"top1": pa.bool_()},
        dict.fromkeys(("nucleus", "random_tv", "inverse_tv", "random_inverse_tv"), number),
        {"ablatable_size": number},
        dict.fromkeys(("residual", "attention", "mlp", "mean_layer", "trace_head_mass"), number),
        dict.fromkeys(("unigram_tv", "no_context_tv"), number),
        {"top": top, "usage": counts},
        dict.fromkeys(GEOMETRY, by_layer),
        {STATE: pa.list_(pa.float32())},
    )
    return pa.schema(list(columns.items()))


def _check_columns(row: Row, columns: pa.Schema) -> None:
    """Refuse a row with a value that no column takes, or without one that it must have."""
    unknown = row.keys() - set(columns.names)
    if unknown:
        raise ValueError(f"a part has no column {min(unknown)!r}; add it to its schema")
    if "error" in row:
        return
    optional = {"error", STATE, *GEOMETRY, *(f"full_{name}" for name in PATH)}
    missing = [
        name
        for name in columns.names
        if name not in row and name not in optional and not name.startswith("label_")
    ]
    if missing:
        raise ValueError(f"a measured row has no {missing[0]!r}, which every part holds")


def write_part(
    path: Path,
    rows: Sequence[Row],
    labels: Sequence[str],
    run: str,
    prompts: Sequence[int],
    corrupted: bool = False,
) -> None:
    """Write the rows of a batch to one Parquet file, atomically, with its run and its prompts.

    Raises:
        ValueError: a row has a value that no column takes, or lacks one.
    """
    said = {_RUN: run, _PROMPTS: json.dumps(list(prompts))}
    columns = schema(labels, corrupted).with_metadata(said)
    for row in rows:
        _check_columns(row, columns)
    write_whole(path, sealed(pa.Table.from_pylist(list(rows), schema=columns)))


def read_part(
    path: Path, manifest: Mapping[str, Any], prompts: Sequence[int] | None = None
) -> pd.DataFrame:
    """Read the whole of a part, and check that it is as a sweep of the run wrote it.

    Args:
        path: of the part.
        manifest: of its run.
        prompts: that it must hold, in this order; those that it names itself by default.

    Raises:
        DamagedPartError: its bytes, columns or values are not those that were written, or it holds
            other prompts.
        PartError: it is a part of another run.
        OSError: the file cannot be read.
    """
    try:
        table = unsealed(path.read_bytes())
    except SealError as error:
        raise _damaged(path, str(error)) from error
    said = table.schema.metadata or {}
    found, run = said.get(_RUN.encode(), b"none").decode(), manifest["id"]
    if found != run:
        raise PartError(f"{path} is of another run ({found}) than its folder's manifest ({run})")
    expected = said.get(_PROMPTS.encode(), b"").decode()
    if prompts is not None and expected != json.dumps(list(prompts)):
        raise _damaged(path, "it holds the prompts of another batch")
    reason = wrong_columns(table.schema, schema(manifest["labels"], is_corrupted(manifest)))
    if reason is not None:
        raise _damaged(path, reason)
    frame = table.to_pandas()
    reason = wrong_values(frame, manifest)
    if reason is not None:
        raise _damaged(path, reason)
    if set(frame["prompt"]) != set(json.loads(expected)):
        raise _damaged(path, "it does not hold the prompts that it names")
    return frame


def whole_part(
    path: Path, manifest: Mapping[str, Any], prompts: Sequence[int]
) -> pd.DataFrame | None:
    """A part that is there, undamaged, and holds just these prompts of the run; None otherwise.

    The whole part is read: damage in any column is found here, not when the run is analysed.

    Raises:
        PartError: it is a part of another run.
    """
    if not path.is_file():
        return None
    try:
        return read_part(path, manifest, prompts)
    except DamagedPartError:
        return None


def _damaged(path: Path, reason: str) -> DamagedPartError:
    return DamagedPartError(f"{path} is damaged ({reason}); run the sweep again to mend it")
