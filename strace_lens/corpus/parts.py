"""Parts of a run: one Parquet file a batch, written whole or not at all, tied to its run."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from strace_lens.corpus.rows import Row, merged
from strace_lens.storage import write_whole

_RUN, _PROMPTS = "strace-lens-run", "strace-lens-prompts"


GEOMETRY = ("cosine", "l2", "cka", "velocity", "curvature")
"""Columns with a value a layer, of the trace of each size."""

PATH = ("velocity", "curvature")
"""Columns with a value a layer, of the full model; `full_` comes before their names."""


class PartError(ValueError):
    """A part that is torn or of another run, with the reason."""


def part_path(folder: Path, batch: int) -> Path:
    """Where the part of a batch lies."""
    return folder / "parts" / f"part-{batch:05d}.parquet"


def part_paths(folder: Path) -> list[Path]:
    """All parts of a run, in order."""
    return sorted((folder / "parts").glob("part-*.parquet"))


def schema(labels: Sequence[str]) -> pa.Schema:
    """Columns of every part: a row a prompt and size; one a prompt that failed, without a size."""
    top = pa.list_(pa.struct([("token", pa.string()), ("p", pa.float64())]))
    by_layer = pa.list_(pa.float32())
    counts = pa.list_(pa.int32())
    number, text = pa.float64(), pa.string()
    columns: dict[str, pa.DataType] = merged(
        {"prompt": pa.int64(), "text": text, "sha256": text, "error": text, "next": text},
        {f"label_{name}": text for name in labels},
        {"tokens": pa.int32(), "graph_edges": pa.int64()},
        dict.fromkeys(("entropy", "head_mass", "density", "logit_gap", "loss"), number),
        dict.fromkeys(("full_unigram_tv", "full_no_context_tv"), number),
        {"full_top": top, "reachable": counts},
        dict.fromkeys((f"full_{name}" for name in PATH), by_layer),
        {"size": number, "edges": pa.int64()},
        dict.fromkeys(("tv", "kl", "js", "head_error", "tail_error"), number),
        {"top1": pa.bool_()},
        dict.fromkeys(("nucleus", "random_tv", "inverse_tv"), number),
        dict.fromkeys(("residual", "attention", "mlp", "mean_layer", "trace_head_mass"), number),
        dict.fromkeys(("unigram_tv", "no_context_tv"), number),
        {"top": top, "usage": counts},
        dict.fromkeys(GEOMETRY, by_layer),
    )
    return pa.schema(list(columns.items()))


def _check_columns(row: Row, columns: pa.Schema) -> None:
    """Refuse a row with a value that no column takes, or without one that it must have."""
    unknown = row.keys() - set(columns.names)
    if unknown:
        raise ValueError(f"a part has no column {min(unknown)!r}; add it to its schema")
    if "error" in row:
        return
    optional = {"error", *GEOMETRY, *(f"full_{name}" for name in PATH)}
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
) -> None:
    """Write the rows of a batch to one Parquet file, atomically, with its run and its prompts.

    Raises:
        ValueError: a row has a value that no column takes, or lacks one.
    """
    said = {_RUN: run, _PROMPTS: json.dumps(list(prompts))}
    columns = schema(labels).with_metadata(said)
    for row in rows:
        _check_columns(row, columns)
    table = pa.Table.from_pylist(list(rows), schema=columns)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_whole(path, buffer.getvalue())


def is_whole(path: Path, run: str, prompts: Sequence[int]) -> bool:
    """Whether a part is there, whole, and holds just these prompts of the run.

    Raises:
        PartError: it is whole and of another run.
    """
    if not path.is_file():
        return False
    try:
        frame = pq.read_table(path, columns=["prompt"])
        said = frame.schema.metadata or {}
    except (pa.ArrowException, OSError):
        return False
    _check_run(path, said, run)
    return said.get(_PROMPTS.encode()) == json.dumps(list(prompts)).encode() and set(
        frame["prompt"].to_pylist()
    ) == set(prompts)


def read_part(path: Path, run: str) -> pd.DataFrame:
    """Read a part.

    Raises:
        PartError: it is truncated, no Parquet, or of another run than `run`.
    """
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise PartError(f"{path} is torn; run the sweep again to mend it: {reason}") from error
    _check_run(path, table.schema.metadata or {}, run)
    return table.to_pandas()


def _check_run(path: Path, said: Mapping[bytes, bytes], run: str) -> None:
    found = said.get(_RUN.encode(), b"none").decode()
    if found != run:
        raise PartError(f"{path} is of another run ({found}) than its folder's manifest ({run})")
