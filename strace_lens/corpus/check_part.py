"""What the rows of a part must satisfy, whoever wrote them: columns, ranges, sums."""

# pandas' types are wider than what it returns here.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportAttributeAccessIssue=false, reportReturnType=false

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

SHARES = (
    *("tv", "head_error", "tail_error", "residual", "attention", "mlp", "trace_head_mass"),
    "ablatable_size",
)
"""Columns of every row that lie in [0, 1] and are never missing."""

MAYBE_SHARES = ("random_tv", "inverse_tv", "random_inverse_tv", "unigram_tv", "no_context_tv")
"""Columns of every row that lie in [0, 1] where they are known."""

ROUNDING = 1e-6


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
    )


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
    components = shape["layers"] * (shape["heads"] + shape["joins"] + int(shape["mlp"]))
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
