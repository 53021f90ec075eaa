"""Parts of a run: one Parquet file a batch, written whole or not at all, tied to its run.

Every part carries a checksum of all its bytes, so that damage shows before parsing. The checksum is
a value of the file's own metadata, which other readers of Parquet ignore, and is taken over the
whole file with zeros in its place.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from strace_lens.utils.disk import write_whole

Row = dict[str, object]
"""One row of a part (`schema`)."""

GEOMETRY = ("cosine", "l2", "cka", "velocity", "curvature")
"""Columns with a value a layer, of the trace of each size."""

STATE = "final_state"
"""Column with the state at the last token behind the final norm, at sizes of the grid."""

CONTROLS = "controls"
"""Column with what the controls of the estimator give, at sizes of the grid; a list of rows."""

PATH = ("velocity", "curvature")
"""Columns with a value a layer, of the full model; `full_` comes before their names."""

_TEXT, _NUMBER = pa.string(), pa.float64()
_TOP = pa.list_(pa.struct([("token", _TEXT), ("p", _NUMBER)]))
_BY_LAYER, _COUNTS = pa.list_(pa.float32()), pa.list_(pa.int32())

OF_PROMPT = {
    **{"prompt": pa.int64(), "text": _TEXT, "sha256": _TEXT},
    **{"tokens": pa.int32(), "graph_edges": pa.int64()},
    **dict.fromkeys(("entropy", "head_mass", "density", "logit_gap"), _NUMBER),
    **{"next": _TEXT, "loss": _NUMBER, "full_top": _TOP},
    **dict.fromkeys(("full_unigram_tv", "full_no_context_tv"), _NUMBER),
}
"""Columns that say the same in every row of a prompt, besides its labels."""

OF_SIZE = {
    **{"size": _NUMBER, "edges": pa.int64()},
    **dict.fromkeys(("tv", "kl", "js", "head_error", "tail_error"), _NUMBER),
    "top1": pa.bool_(),
    **dict.fromkeys(("nucleus", "random_tv", "inverse_tv", "random_inverse_tv"), _NUMBER),
    **dict.fromkeys(("ablatable_size", "residual", "attention", "mlp", "mean_layer"), _NUMBER),
    **dict.fromkeys(("trace_head_mass", "unigram_tv", "no_context_tv"), _NUMBER),
    "top": _TOP,
}
"""Columns with a value of each size."""

_OF_CONTROL = {
    **{"role": _TEXT, "seed": pa.int32(), "tv": _NUMBER, "top1": pa.bool_()},
    **{"path_share": _NUMBER, "connected": pa.bool_(), "compute": _NUMBER},
    **{"forward": pa.int64(), "backward": pa.int64()},
}

_RUN, _PROMPTS = b"strace-lens-run", b"strace-lens-prompts"
# Thrift's compact protocol puts two bytes between a key and its value: type, and length 64.
_KEY, _BETWEEN, _BLANK = b"strace-lens-sha256", b"\x18\x40", b"0" * 64


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
    return manifest["options"]["corrupt"] != "none"


def schema(manifest: Mapping[str, Any]) -> pa.Schema:
    """Columns of every part of a run: a row a prompt and size; one without a size for a failure."""
    columns: dict[str, pa.DataType] = {
        **{"error": _TEXT, **OF_PROMPT, "reachable": _COUNTS},
        **({"corrupted": _TEXT} if is_corrupted(manifest) else {}),
        **{f"label_{name}": _TEXT for name in manifest["labels"]},
        **dict.fromkeys((f"full_{name}" for name in PATH), _BY_LAYER),
        **{"refined": pa.bool_(), **OF_SIZE, "usage": _COUNTS},
        **dict.fromkeys((*GEOMETRY, STATE), _BY_LAYER),
        CONTROLS: pa.list_(pa.struct(list(_OF_CONTROL.items()))),
    }
    return pa.schema(list(columns.items()))


def write_part(
    path: Path, rows: Sequence[Row], manifest: Mapping[str, Any], prompts: Sequence[int]
) -> None:
    """Write the rows of a batch to one Parquet file, atomically, with its run and its prompts.

    Raises:
        ValueError: a row has a value that no column takes, or lacks one.
    """
    columns = schema(manifest).with_metadata(
        {_RUN: manifest["id"].encode(), _PROMPTS: json.dumps(list(prompts)).encode()}
    )
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
        DamagedPartError: its bytes or columns are not those that were written, or it holds other
            prompts.
        PartError: it is a part of another run.
        OSError: the file cannot be read.
    """
    try:
        table = unsealed(path.read_bytes())
        said = table.schema.metadata or {}
        found, run = said.get(_RUN, b"none").decode(), manifest["id"]
        if found != run:
            raise PartError(
                f"{path} is of another run ({found}) than its folder's manifest ({run})"
            )
        named = said.get(_PROMPTS, b"").decode()
        if prompts is not None and named != json.dumps(list(prompts)):
            raise DamagedPartError("it holds the prompts of another batch")
        there, here = ({f.name: f.type for f in of} for of in (table.schema, schema(manifest)))
        if there != here:
            odd = [name for name in {**here, **there} if here.get(name) != there.get(name)]
            raise DamagedPartError(f"its columns are not those of a part: {odd}")
    except DamagedPartError as error:
        raise DamagedPartError(
            f"{path} is damaged ({error}); run the sweep again to mend it"
        ) from error
    return table.to_pandas()


def sealed(table: pa.Table) -> bytes:
    """A table as a Parquet file with a checksum."""
    metadata = {**(table.schema.metadata or {}), _KEY: _BLANK}
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), buffer, compression="zstd")
    before, checksum, after = _parted(buffer.getvalue())
    if checksum != _BLANK:
        raise RuntimeError(f"pyarrow {pa.__version__} writes metadata in a form unknown here")
    return before + _digest(before, after) + after


def unsealed(data: bytes) -> pa.Table:
    """The table of a file of `sealed`.

    Raises:
        DamagedPartError: the file carries no checksum, or not the one of its bytes.
    """
    before, checksum, after = _parted(data)
    if not before:
        raise DamagedPartError("it carries no checksum, so it is cut short or no part of a sweep")
    if checksum != _digest(before, after):
        raise DamagedPartError("its checksum is not that of its content")
    return pq.read_table(pa.BufferReader(data))


def _check_columns(row: Row, columns: pa.Schema) -> None:
    """Refuse a row with a value that no column takes, or without one that it must have."""
    unknown = row.keys() - set(columns.names)
    if unknown:
        raise ValueError(f"a part has no column {min(unknown)!r}; add it to its schema")
    optional = {"error", STATE, CONTROLS, *GEOMETRY, *(f"full_{name}" for name in PATH)}
    needed = {name for name in columns.names if not name.startswith("label_")} - optional
    missing = needed - row.keys()
    if missing and "error" not in row:
        raise ValueError(f"a measured row has no {min(missing)!r}, which every part holds")


def _parted(data: bytes) -> tuple[bytes, bytes, bytes]:
    """What stands before the checksum, the checksum, and what follows it.

    Metadata is the last thing in a file that can hold the key. Nothing stands before a checksum
    that is not there.
    """
    before, key, after = data.rpartition(_KEY + _BETWEEN)
    return before + key, after[:64], after[64:]


def _digest(before: bytes, after: bytes) -> bytes:
    return hashlib.sha256(before + _BLANK + after).hexdigest().encode()
