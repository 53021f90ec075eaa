"""Traces and density curves to and from disk, one file each (`result_files`).

A trace is stored as its order (int32 ids of the reachable edges, first taken first) and their
importances; a curve is its trace with the columns of its table beside it. A file can be edited and
given a new checksum, so whatever a reader makes of it is checked: the kind of every value, its
range, and that numbers which follow from one another do.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int64
from torch import Tensor

from strace_lens.density.curve import DensityCurve
from strace_lens.files.result_files import ResultFileError, read_result, write_result
from strace_lens.model.predictions import TopToken
from strace_lens.model.prompts import Prompt
from strace_lens.traces.ablation import ABLATIONS
from strace_lens.traces.edges import (
    KINDS,
    UNREACHABLE,
    EdgeTensors,
    GraphShape,
    is_complete,
    kinds_to_keep,
    order_of,
    ranks_of,
)
from strace_lens.traces.trace import Trace
from strace_lens.utils import checks


def save_trace(trace: Trace, path: str | Path) -> None:
    """Write a trace to one file, atomically."""
    write_result(path, "trace", _trace_arrays(trace), _trace_facts(trace))


def load_trace(path: str | Path) -> Trace:
    """Read the trace of a file written by `save_trace` or `save_curve`.

    Raises:
        FileNotFoundError: there is no such file.
        ResultFileError: it is truncated, foreign, damaged or inconsistent.
    """
    arrays, facts = read_result(path, ("trace", "curve"))
    return _trace(path, arrays, facts)


def save_curve(curve: DensityCurve, path: str | Path) -> None:
    """Write a density curve, its trace included, to one file, atomically.

    Raises:
        ValueError: its table holds what no curve can, as a column or a value out of range.
    """
    own = _curve_facts({name: getattr(curve, name) for name in _CURVE_FACTS})
    _check_table(curve)
    arrays = _trace_arrays(curve.trace)
    for name in curve.table:
        arrays[f"{_TABLE}{name}"] = torch.from_numpy(curve.table[name].to_numpy().copy())
    facts = _trace_facts(curve.trace) | {
        "columns": list(curve.table),
        "texts": {"top": curve.tops, "top_tokens": curve.top_tokens},
        "curve": own,
    }
    write_result(path, "curve", arrays, facts)


def load_curve(path: str | Path) -> DensityCurve:
    """Read a density curve written by `save_curve`.

    Raises:
        FileNotFoundError: there is no such file.
        ResultFileError: it is truncated, foreign, damaged or inconsistent.
    """
    arrays, facts = read_result(path, ("curve",))
    trace = _trace(path, arrays, facts)
    try:
        table = _table(arrays, facts)
        texts = _texts(facts["texts"], len(table))
        curve = DensityCurve(trace=trace, table=table, **texts, **_curve_facts(facts["curve"]))
        _check_table(curve)
    except ValueError as error:
        raise ResultFileError(f"{path} is no whole density curve: {error}") from error
    return curve


class _Column(NamedTuple):
    """What a column of a curve's table may hold."""

    dtype: str = "float64"
    low: int | float = 0.0
    high: int | float = 1.0
    nan: bool = False


_ROUNDING = 1e-6
"""By how much a probability may lie outside [0, 1], or a sum miss its total."""

_PART = _Column(low=-_ROUNDING, high=1 + _ROUNDING)
_CONTROL = _PART._replace(nan=True)
_NATS = _Column(low=-_ROUNDING, high=math.inf)
_FLAG = _Column(dtype="bool")
_COLUMNS = {
    "size": _Column(),
    "edges": _Column(dtype="int64", high=math.inf),
    "refined": _FLAG,
    "tv": _PART,
    "kl": _NATS,
    "js": _NATS._replace(high=math.log(2) + _ROUNDING),
    "head_error": _PART,
    "tail_error": _PART,
    "top1": _FLAG,
    "nucleus": _PART,
    "random_tv": _CONTROL,
    "inverse_tv": _CONTROL,
    "random_inverse_tv": _CONTROL,
    "ablatable_size": _PART,
    **dict.fromkeys(KINDS, _PART),
    "mean_layer": _Column(high=math.inf, nan=True),
    "trace_head_mass": _PART,
}
"""Every column of a curve's table that holds numbers."""

_TABLE = "table."
"""What stands before the name of a column in the names of a file's arrays."""

_CURVE_FACTS = [
    f.name
    for f in dataclasses.fields(DensityCurve)
    if f.name not in ("trace", "table", "tops", "top_tokens")
]
_TRACE_FACTS = ("shape", "prompt", "prompt_sha256", "metadata")
_FACTS = {"trace": _TRACE_FACTS, "curve": (*_TRACE_FACTS, "columns", "texts", "curve")}


def _table(arrays: Mapping[str, Tensor], facts: Mapping[str, Any]) -> pd.DataFrame:
    """The table of a file, each column as long as the file's list of sizes."""
    columns = [checks.text(name, "a column") for name in checks.items(facts["columns"], "columns")]
    stored = {n.removeprefix(_TABLE) for n in arrays if n.startswith(_TABLE)}
    if len(set(columns)) < len(columns) or set(columns) != stored:
        raise ValueError(f"it names the columns {columns} and holds {sorted(stored)}")
    rows = {tuple(arrays[f"{_TABLE}{name}"].shape) for name in columns}
    if len(rows) != 1 or len(rows.pop()) != 1:
        raise ValueError("its columns are not of one length")
    return pd.DataFrame({name: arrays[f"{_TABLE}{name}"].numpy() for name in columns})


def _texts(stored: object, sizes: int) -> dict[str, Any]:
    """The most probable tokens at each size."""
    texts = checks.fields(stored, ("top", "top_tokens"), "texts")
    tops = checks.items(texts["top"], "top", sizes)
    both = checks.items(texts["top_tokens"], "top_tokens", sizes)
    return {
        "tops": tuple(_pairs(top) for top in tops),
        "top_tokens": tuple(_top_tokens(row) for row in both),
    }


def _curve_facts(stored: object) -> dict[str, Any]:
    """The fields of a curve beside its trace and its table, if they can be measured ones."""
    given = checks.fields(stored, _CURVE_FACTS, "the curve")
    if checks.text(given["ablation"], "ablation") not in ABLATIONS:
        raise ValueError(f"ablation is {given['ablation']!r}, not one of {', '.join(ABLATIONS)}")
    return {
        "top": _pairs(given["top"]),
        "entropy": checks.number(given["entropy"], "entropy", low=-_ROUNDING),
        "head": checks.number(given["head"], "head", 0, 1),
        "head_mass": _probability(given["head_mass"], "head_mass"),
        "logit_gap": checks.number(given["logit_gap"], "logit_gap", low=0),
        "ablation": given["ablation"],
        "seed": checks.whole(given["seed"], "seed"),
        "keep": _kinds(given["keep"]),
    }


def _kinds(stored: object) -> tuple[str, ...]:
    """Kinds of edges to keep from a file, in the one order in which a curve holds them."""
    given = tuple(checks.text(kind, "a kind to keep") for kind in checks.items(stored, "keep"))
    if kinds_to_keep(given) != given:
        raise ValueError(f"keep is {list(given)}, which no curve holds so")
    return given


def _check_table(curve: DensityCurve) -> None:
    """Refuse a table that nothing measured can be, by ValueError."""
    table = curve.table
    wrong = {*table.columns} ^ {*_COLUMNS}
    if wrong:
        raise ValueError(f"the column {sorted(wrong)[0]!r} is missing or not known")
    for name in table.columns:
        values, may = table[name].to_numpy(), _COLUMNS[name]
        if values.dtype != may.dtype:
            raise ValueError(f"the column {name!r} holds {values.dtype}, not {may.dtype}")
        checks.column(values, name, may.low, may.high, nan=may.nan)
    _check_sizes(curve)


def _check_sizes(curve: DensityCurve) -> None:
    """Refuse a table whose columns do not follow from one another."""
    table, sizes = curve.table, curve.table["size"].to_numpy()
    if not len(sizes) or sizes[0] <= 0 or bool((np.diff(sizes) <= 0).any()):
        raise ValueError("its sizes do not rise from above 0")
    edges = [curve.trace.edge_count(size) for size in sizes]
    if table["edges"].tolist() != edges:
        raise ValueError("its sizes and edges disagree")
    parts = (table["head_error"] + table["tail_error"] - table["tv"]).to_numpy()
    if bool((np.abs(parts) > _ROUNDING).any()):
        raise ValueError("the errors of head and tail do not add up to tv")
    counts = curve.trace.counts_by_size(edges).sum(2).double().numpy()
    shares = table[list(KINDS)].to_numpy() * np.asarray(edges)[:, None]
    if bool((np.abs(shares - counts) > _ROUNDING * curve.trace.edges).any()):
        raise ValueError("the shares of residual, attention and MLP edges are not its trace's")
    can = [kind not in curve.keep for kind in KINDS]
    reachable = curve.trace.counts_by_size([curve.trace.edges])[0].sum(1).double().numpy()
    held = counts[:, can].sum(1) / reachable[can].sum() if reachable[can].any() else 1.0
    if bool((np.abs(table["ablatable_size"].to_numpy() - held) > _ROUNDING).any()):
        raise ValueError("the shares of edges that can be ablated are not its trace's")
    layers = table["mean_layer"].to_numpy()
    none = np.asarray(edges) == 0
    if bool((np.isnan(layers) != none).any()) or bool(
        (layers > curve.trace.shape.layers - 1).any()
    ):
        raise ValueError("the mean layers are not its trace's")


def _trace_arrays(trace: Trace) -> dict[str, Tensor]:
    """The order of a trace, in as many bytes as its ranks, and in that order its importances."""
    cells = trace.ranks.flat().numel()
    if cells > UNREACHABLE:
        raise ValueError(f"a graph of {cells} cells is too large for a result file")
    order = order_of(trace.ranks)
    arrays = {"order": order.int()}
    if trace.importance is not None:
        arrays["importance"] = trace.importance.flat()[order]
    return arrays


def _trace_facts(trace: Trace) -> dict[str, Any]:
    return {
        "shape": dataclasses.asdict(trace.shape),
        "prompt": dataclasses.asdict(trace.prompt),
        "prompt_sha256": trace.prompt.sha256,
        "metadata": dict(trace.metadata),
    }


def _trace(path: str | Path, arrays: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Trace:
    try:
        kind = "curve" if "curve" in facts else "trace"
        facts = checks.fields(facts, _FACTS[kind], "it")
        shape = shape_from_facts(facts["shape"])
        prompt = prompt_from_facts(facts["prompt"])
        made = checks.mapping(facts["metadata"], "metadata")
        if len(prompt.ids) != shape.tokens or prompt.sha256 != facts["prompt_sha256"]:
            raise ValueError("it does not belong to the prompt that it names")
        order = _order(arrays, shape)
        ranks, importance = ranks_of(order, shape), _importance(arrays, order, shape)
    except ValueError as error:
        raise ResultFileError(f"{path} is no whole trace: {error}") from error
    if not is_complete(ranks, shape):
        raise ResultFileError(f"{path} does not rank every edge of its graph once")
    return Trace(shape=shape, prompt=prompt, ranks=ranks, metadata=made, importance=importance)


def _order(arrays: Mapping[str, Tensor], shape: GraphShape) -> Int64[Tensor, " edge"]:
    """The order of a file, if it can be that of a graph: nothing of the graph's size is made."""
    unknown = [n for n in arrays if n not in ("order", "importance") and not n.startswith(_TABLE)]
    if unknown or "order" not in arrays:
        raise ValueError(f"it has an array {unknown[0]!r}" if unknown else "it has no order")
    order = arrays["order"]
    cells = sum(math.prod(each) for each in shape.tensor_shapes)
    if order.dtype != torch.int32 or order.shape != (shape.edges,) or cells > UNREACHABLE:
        raise ValueError(
            f"its order is {order.dtype} of shape {tuple(order.shape)}; its graph has "
            f"{shape.edges} edges"
        )
    if int(order.min()) < 0 or int(order.max()) >= cells:
        raise ValueError("its order names an edge that its graph has not")
    return order.long()


def _importance(
    arrays: Mapping[str, Tensor], order: Int64[Tensor, " edge"], shape: GraphShape
) -> EdgeTensors | None:
    if "importance" not in arrays:
        return None
    values = arrays["importance"]
    if values.dtype != torch.float32 or values.shape != order.shape:
        raise ValueError(f"its importances are {values.dtype} of shape {tuple(values.shape)}")
    if not bool(torch.isfinite(values).all()):
        raise ValueError("its importances hold NaN or infinity")
    flat = shape.full(0.0, torch.float32).flat()
    flat[order] = values
    return shape.split(flat)


def shape_from_facts(stored: object) -> GraphShape:
    """The shape of a token graph from the fields that a file names.

    Raises:
        ValueError: a field is missing, unknown or of another kind, or no graph has such a shape.
    """
    names = [field.name for field in dataclasses.fields(GraphShape)]
    given = checks.fields(stored, names, "shape")
    for name in ("layers", "heads", "tokens"):
        checks.whole(given[name], name, 1, UNREACHABLE)
    for name in ("parallel", "mlp"):
        checks.flag(given[name], name)
    return GraphShape(**given)


def prompt_from_facts(stored: object) -> Prompt:
    """A prompt from the fields that a file names.

    Raises:
        ValueError: a field is missing, unknown or of another kind, or a token has no label.
    """
    given = checks.fields(stored, ("text", "ids", "strings"), "prompt")
    ids = [checks.whole(i, "a token id", 0, 2**63 - 1) for i in checks.items(given["ids"], "ids")]
    strings = checks.items(given["strings"], "strings", len(ids))
    return Prompt(
        checks.text(given["text"], "text"),
        tuple(ids),
        tuple(checks.text(string, "a token") for string in strings),
    )


def _pairs(top: object) -> tuple[tuple[str, float], ...]:
    pairs = [checks.items(pair, "top", 2) for pair in checks.items(top, "top")]
    return tuple((checks.text(token, "a token"), _probability(p)) for token, p in pairs)


def _top_tokens(row: object) -> tuple[TopToken, ...]:
    cells = [checks.items(cell, "top_tokens", 4) for cell in checks.items(row, "top_tokens")]
    return tuple(
        TopToken(
            checks.text(token, "a token"),
            _probability(model),
            _probability(trace),
            checks.flag(head, "head"),
        )
        for token, model, trace, head in cells
    )


def _probability(value: object, what: str = "a probability") -> float:
    return checks.number(value, what, -_ROUNDING, 1 + _ROUNDING)
