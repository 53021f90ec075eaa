"""Parts of a run: one Parquet file a batch, written whole or not at all, tied to its run.

Every part carries a checksum of all its bytes, so that damage shows before parsing. The checksum is
a value of the file's own metadata, which other readers of Parquet ignore, and is taken over the
whole file with zeros in its place. What is read is checked as well: columns, ranges, sums.
"""

# pandas' types are wider than what it returns here.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportAttributeAccessIssue=false, reportReturnType=false

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from strace_lens.utils.disk import write_whole

Value = TypeVar("Value")

Row = dict[str, object]
"""One row of a part (`schema`)."""

_RUN, _PROMPTS = "strace-lens-run", "strace-lens-prompts"


GEOMETRY = ("cosine", "l2", "cka", "velocity", "curvature")
"""Columns with a value a layer, of the trace of each size."""

STATE = "final_state"
"""Column with the state at the last token behind the final norm, at sizes of the grid."""

CONTROLS = "controls"
"""Column with what the controls of the estimator give, at sizes of the grid; a list of rows."""

PATH = ("velocity", "curvature")
"""Columns with a value a layer, of the full model; `full_` comes before their names."""

SHARES = (
    *("tv", "head_error", "tail_error", "residual", "attention", "mlp", "trace_head_mass"),
    "ablatable_size",
)
"""Columns of every row that lie in [0, 1] and are never missing."""

MAYBE_SHARES = ("random_tv", "inverse_tv", "random_inverse_tv", "unigram_tv", "no_context_tv")
"""Columns of every row that lie in [0, 1] where they are known."""

ROUNDING = 1e-6

_KEY = b"strace-lens-sha256"
_BLANK = b"0" * 64
# Thrift's compact protocol puts two bytes between a key and its value: type, and length 64.
_BETWEEN = b"\x18\x40"


class PartError(ValueError):
    """A part that is damaged or of another run, with the reason."""


class DamagedPartError(PartError):
    """A part that is not as the sweep wrote it; the sweep measures its prompts again."""


class SealError(ValueError):
    """Bytes whose checksum is missing or wrong, with the reason."""


def merged(*parts: Mapping[str, Value]) -> dict[str, Value]:
    """One row with the values of all parts.

    A name that two parts share is refused: the later value would silently take the place of the
    earlier one.

    Raises:
        ValueError: a name comes twice; the message holds it.
    """
    row: dict[str, Value] = {}
    for part in parts:
        twice = row.keys() & part.keys()
        if twice:
            names = ", ".join(map(repr, sorted(twice)))
            raise ValueError(f"a row has two values for {names}; rename one of them")
        row.update(part)
    return row


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
    controls = {
        **{"role": pa.string(), "seed": pa.int32(), "tv": pa.float64(), "top1": pa.bool_()},
        **{"path_share": pa.float64(), "connected": pa.bool_(), "compute": pa.float64()},
        **{"forward": pa.int64(), "backward": pa.int64()},
    }
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
        {STATE: pa.list_(pa.float32()), CONTROLS: pa.list_(pa.struct(list(controls.items())))},
    )
    return pa.schema(list(columns.items()))


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


def sealed(table: pa.Table) -> bytes:
    """A table as a Parquet file with a checksum."""
    metadata = {**(table.schema.metadata or {}), _KEY: _BLANK}
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), buffer, compression="zstd")
    data = buffer.getvalue()
    place = _place(data)
    if place is None or data[place : place + 64] != _BLANK:
        raise RuntimeError(f"pyarrow {pa.__version__} writes metadata in a form unknown here")
    return data[:place] + _digest(data, place) + data[place + 64 :]


def unsealed(data: bytes) -> pa.Table:
    """The table of a file of `sealed`.

    Raises:
        SealError: the file carries no checksum, or not the one of its bytes.
    """
    place = _place(data)
    if place is None:
        raise SealError("it carries no checksum, so it is cut short or no part that a sweep wrote")
    if data[place : place + 64] != _digest(data, place):
        raise SealError("its checksum is not that of its content")
    try:
        return pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise SealError(str(error).splitlines()[0]) from error


def wrong_columns(found: pa.Schema, expected: pa.Schema) -> str | None:
    """How the columns of a table differ from those of a part; None where they are the same."""
    there = {field.name: field.type for field in found}
    for field in expected:
        if field.name not in there:
            return f"it has no column {field.name!r}"
        if there[field.name] != field.type:
            return f"its column {field.name!r} holds {there[field.name]}, not {field.type}"
    more = [name for name in there if name not in expected.names]
    if more:
        return f"it has a column {more[0]!r} that no part has"
    return None if found.names == expected.names else "its columns stand in another order"


def wrong_values(frame: pd.DataFrame, manifest: Mapping[str, Any]) -> str | None:
    """What no sweep writes into the rows of a part; None where there is nothing of the kind."""
    numbers = frame["prompt"].to_numpy()
    if len(numbers) and not (numbers.min() >= 0 and numbers.max() < manifest["given"]):
        return f"it has a prompt outside 0 to {manifest['given'] - 1}"
    rows = frame[frame["error"].isna()]
    if rows.empty:
        return None
    return (
        _wrong_grid(rows, manifest)
        or _wrong_ranges(rows)
        or _wrong_counts(rows, manifest)
        or _wrong_states(rows, manifest)
        or _wrong_controls(rows, manifest)
    )


def _check_columns(row: Row, columns: pa.Schema) -> None:
    """Refuse a row with a value that no column takes, or without one that it must have."""
    unknown = row.keys() - set(columns.names)
    if unknown:
        raise ValueError(f"a part has no column {min(unknown)!r}; add it to its schema")
    if "error" in row:
        return
    optional = {"error", STATE, CONTROLS, *GEOMETRY, *(f"full_{name}" for name in PATH)}
    missing = [
        name
        for name in columns.names
        if name not in row and name not in optional and not name.startswith("label_")
    ]
    if missing:
        raise ValueError(f"a measured row has no {missing[0]!r}, which every part holds")


def _damaged(path: Path, reason: str) -> DamagedPartError:
    return DamagedPartError(f"{path} is damaged ({reason}); run the sweep again to mend it")


def _place(data: bytes) -> int | None:
    """Where the checksum stands: metadata is the last thing in a file that can hold the key."""
    key = data.rfind(_KEY + _BETWEEN)
    return None if key < 0 else key + len(_KEY + _BETWEEN)


def _digest(data: bytes, place: int) -> bytes:
    digest = hashlib.sha256(data[:place])
    digest.update(_BLANK)
    digest.update(data[place + 64 :])
    return digest.hexdigest().encode()


def _wrong_grid(rows: pd.DataFrame, manifest: Mapping[str, Any]) -> str | None:
    """Each prompt has a row for each size of the run, no more sizes added to these than the run may
    add, and says the same of itself in all rows.
    """
    sizes, most = list(manifest["sizes"]), manifest["options"]["refine"]
    constant = ["text", "sha256", "next", "tokens", "graph_edges", "entropy", "head_mass"]
    constant += ["density", "logit_gap", "loss", "full_unigram_tv", "full_no_context_tv"]
    constant += [column for column in rows if str(column).startswith("label_")]
    constant += ["corrupted"] * ("corrupted" in rows)
    for prompt, own in rows.groupby("prompt"):
        if own["refined"].isna().any():
            return "'refined' is missing"
        added = own["refined"].to_numpy(dtype=bool)
        every = own["size"].to_numpy()
        rising = (np.diff(every) > 0).all() and every.min() > 0 and every.max() <= 1
        if every[~added].tolist() != sizes or not rising:
            return f"prompt {prompt} has other sizes than the run"
        if added.sum() > most:
            return f"prompt {prompt} has {added.sum()} sizes added, of {most} at the most"
        for column in constant:
            if own[column].nunique(dropna=False) != 1:
                return f"prompt {prompt} has several values of {column!r}"
        first = own.iloc[0]
        if hashlib.sha256(str(first["text"]).encode()).hexdigest() != first["sha256"]:
            return f"prompt {prompt} has a 'sha256' that is not its text's"
    return None


def _wrong_ranges(rows: pd.DataFrame) -> str | None:
    ranges = {
        **dict.fromkeys(SHARES, (-ROUNDING, 1 + ROUNDING, False)),
        **dict.fromkeys(MAYBE_SHARES, (-ROUNDING, 1 + ROUNDING, True)),
        "head_mass": (-ROUNDING, 1 + ROUNDING, False),
        "entropy": (-ROUNDING, np.inf, False),
        "kl": (-ROUNDING, np.inf, True),
        "js": (-ROUNDING, np.log(2) + ROUNDING, True),
        "nucleus": (0.0, 1.0, False),
        "mean_layer": (0.0, np.inf, True),
        "tokens": (2, np.inf, False),
    }
    for column, (low, high, may_miss) in ranges.items():
        values = rows[column].to_numpy(dtype=np.float64)
        inside = (low <= values) & (values <= high) | (may_miss & np.isnan(values))
        if not inside.all():
            place = int((~inside).argmax())
            return f"{column!r} of prompt {rows['prompt'].iloc[place]} is {values[place]:g}"
    return "'top1' is missing" if rows["top1"].isna().any() else None


def _wrong_counts(rows: pd.DataFrame, manifest: Mapping[str, Any]) -> str | None:
    """Edges are counted once by size and once by component."""
    shape = manifest["shape"]
    components = shape["layers"] * (shape["heads"] + shape["sublayers"] + int(shape["mlp"]))
    for counts, total in (("usage", "edges"), ("reachable", "graph_edges")):
        if any(value is None or len(value) != components for value in rows[counts]):
            return f"{counts!r} does not have a count for each of {components} components"
        sums = np.stack(rows[counts].tolist()).sum(1, dtype=np.int64)
        if (sums != rows[total].to_numpy()).any():
            return f"{counts!r} does not add up to {total!r}"
    if (rows["edges"] > rows["graph_edges"]).any():
        return "a trace has more edges than its graph"
    return None


def _wrong_states(rows: pd.DataFrame, manifest: Mapping[str, Any]) -> str | None:
    """Every size of the grid has a state, all of one width, if the sweep kept hidden states."""
    on_grid = rows[~rows["refined"].astype(bool)]
    kept = [values for values in on_grid["final_state"] if values is not None]
    if not manifest["options"]["hidden"]:
        return "'final_state' is there, though no hidden states were kept" if kept else None
    if len(kept) < len(on_grid) or len({len(values) for values in kept}) > 1:
        return "'final_state' does not have a vector of one width for each size"
    if not np.isfinite(np.stack(kept)).all():
        return "'final_state' holds a value that is not finite"
    return None


def _wrong_controls(rows: pd.DataFrame, manifest: Mapping[str, Any]) -> str | None:
    """Every size of the grid has the estimator's controls, if the sweep ran them."""
    wanted = manifest["options"]["controls"] == "all"
    for controls, refined in zip(rows[CONTROLS], rows["refined"], strict=True):
        if (controls is not None) != (wanted and not refined):
            return "'controls' is missing" if controls is None else "'controls' is there, unasked"
        if controls is not None:
            values = np.asarray([row["tv"] for row in controls], dtype=np.float64)
            if not ((values >= -ROUNDING) & (values <= 1 + ROUNDING)).all():
                return "'controls' holds a total variation outside [0, 1]"
    return None
