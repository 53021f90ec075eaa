"""Traces, density curves, circuits and scores to and from disk, one file each (`result_files`).

A trace is stored as its order (int32 ids of the reachable edges, in order of rank) and their
importances; a curve is stored as its trace and the columns of its table. A circuit and scores are
stored with their graph, which says which model they belong to. How long a method took is not stored
as it is not part of the result, so that the same scores are the same bytes.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch
from jaxtyping import Int64
from torch import Tensor

from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.graph import ComponentGraph
from strace_lens.circuits.scores import Scores
from strace_lens.density.curve import DensityCurve
from strace_lens.files.result_files import ResultFileError, read_result, write_result
from strace_lens.files.schema import check_curve, read_as
from strace_lens.model.prompts import Prompt
from strace_lens.model.targets import Target
from strace_lens.traces.edges import UNREACHABLE, GraphShape, is_complete, order_of, ranks_of
from strace_lens.traces.trace import Trace
from strace_lens.utils.choices import kinds_to_keep

Arrays = Mapping[str, Tensor]
Facts = Mapping[str, Any]
T = TypeVar("T")

_TABLE = "table."
"""What stands before the name of a column in the names of a file's arrays."""

_CURVE_FACTS = {
    name: hint
    for name, hint in typing.get_type_hints(DensityCurve).items()
    if name not in ("trace", "table")
}
"""What a curve holds beside its trace and its table, and of what kind."""
_SCORES_FACTS = {"method": str, "task": str, "forwards": float, "backwards": float}


def save(result: Trace | DensityCurve | Circuit | Scores, path: str | Path) -> None:
    """Write a result to one file, completely or not at all.

    Args:
        result: A trace, a density curve (with its trace), a circuit, or the scores of a discovery
            method (without its `seconds`).
        path: Path of the file; it may have any suffix, `.safetensors` describes the format.

    Raises:
        TypeError: If `result` is another kind of object.
        ValueError: If its `metadata` holds values that JSON cannot represent.
        OSError: If the file cannot be written.

    Example:
        >>> trace = sl.extract(sl.token_graph(model, "The capital of France is"))
        >>> sl.save(trace, "trace.safetensors")
        >>> sl.load("trace.safetensors").prompt.text
        'The capital of France is'
    """
    if type(result) not in _WRITERS:
        raise TypeError(
            f"save takes a trace, a density curve, a circuit or scores; got {type(result).__name__}"
        )
    kind, parts = _WRITERS[type(result)]
    write_result(path, kind, *parts(result))


def load(path: str | Path, *types: type[T]) -> T:
    """Read a result that `save` wrote, onto the CPU.

    Args:
        path: Path of the file.
        types: Accepted types, among `Trace`, `DensityCurve`, `Circuit`, `Scores`; by default all.

    Raises:
        FileNotFoundError: If there is no such file.
        ResultFileError: If the file is damaged, has another format or holds another type of result.

    Example:
        >>> sl.save(trace, "trace.safetensors")
        >>> sl.load("trace.safetensors", sl.Trace).edges
        4398
    """
    kinds = [kind for each, (kind, _) in _WRITERS.items() if each in (types or _WRITERS)]
    kind, arrays, facts = read_result(path, kinds)
    try:
        return _READERS[kind](arrays, facts)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ResultFileError(f"{path} is no whole {kind}: {error!s}") from error


# ------------------------------------------------------------------ traces and curves


def _trace_parts(trace: Trace) -> tuple[Arrays, Facts]:
    """The order of a trace, in as many bytes as its ranks, and in that order its importances."""
    cells = trace.ranks.flat().numel()
    if cells > UNREACHABLE:
        raise ValueError(f"a graph of {cells} cells is too large for a result file")
    order = order_of(trace.ranks)
    arrays = {"order": order.int()}
    if trace.importance is not None:
        arrays["importance"] = trace.importance.flat()[order]
    return arrays, {
        "shape": dataclasses.asdict(trace.shape),
        "prompt": dataclasses.asdict(trace.prompt),
        "prompt_sha256": trace.prompt.sha256,
        "metadata": dict(trace.metadata),
    }


def _trace(arrays: Arrays, facts: Facts) -> Trace:
    shape = read_as(facts["shape"], GraphShape, "shape")
    prompt = read_as(facts["prompt"], Prompt, "prompt")
    if len(prompt.ids) != shape.tokens or prompt.sha256 != facts["prompt_sha256"]:
        raise ValueError("it does not belong to the prompt that it names")
    order = _order(arrays, shape)
    ranks = ranks_of(order, shape)
    if not is_complete(ranks, shape):
        raise ValueError("it does not rank every edge of its graph once")
    importance = None
    if "importance" in arrays:
        if not bool(torch.isfinite(arrays["importance"]).all()):
            raise ValueError("its importances hold NaN or infinity")
        flat = shape.full(0.0, torch.float32).flat()
        flat[order] = arrays["importance"]
        importance = shape.split(flat)
    return Trace(
        shape=shape, prompt=prompt, ranks=ranks, metadata=_metadata(facts), importance=importance
    )


def _metadata(facts: Facts) -> dict[str, Any]:
    return read_as(facts["metadata"], Mapping[str, Any], "metadata")


def _order(arrays: Arrays, shape: GraphShape) -> Int64[Tensor, " edge"]:
    """The order of a file; nothing of the graph's size is made before it is known to fit."""
    order = arrays["order"]
    if order.dtype != torch.int32 or order.shape != (shape.edges,):
        raise ValueError(
            f"its order is {order.dtype} of shape {tuple(order.shape)}; its graph has "
            f"{shape.edges} edges"
        )
    return order.long()


def _curve_parts(curve: DensityCurve) -> tuple[Arrays, Facts]:
    arrays, facts = _trace_parts(curve.trace)
    columns = curve.table
    table = {f"{_TABLE}{n}": torch.from_numpy(columns[n].to_numpy().copy()) for n in columns}
    return {**arrays, **table}, {
        **facts,
        "columns": list(columns),
        "texts": {"top": curve.tops, "top_tokens": curve.top_tokens},
        "curve": {
            name: value.facts() if isinstance(value, Target) else value
            for name in _CURVE_FACTS
            # A curve without a target says nothing of one.
            if name not in ("tops", "top_tokens") and (value := getattr(curve, name)) is not None
        },
    }


def _curve(arrays: Arrays, facts: Facts) -> DensityCurve:
    table = pd.DataFrame({name: arrays[f"{_TABLE}{name}"].numpy() for name in facts["columns"]})
    stored = {**facts["curve"], "tops": facts["texts"]["top"]}
    stored["top_tokens"] = facts["texts"]["top_tokens"]
    own = {name: read_as(stored.get(name), _CURVE_FACTS[name], name) for name in _CURVE_FACTS}
    if kinds_to_keep(own["keep"]) != own["keep"]:
        raise ValueError(f"keep is {own['keep']}, which is not how a curve stores it")
    curve = DensityCurve(trace=_trace(arrays, facts), table=table, **own)
    check_curve(curve)
    return curve


# ------------------------------------------------------------------ circuits and scores


def _graph_facts(found: Circuit | Scores) -> dict[str, Any]:
    return {"graph": dataclasses.asdict(found.graph), "metadata": dict(found.metadata)}


def _graph(facts: Facts) -> ComponentGraph:
    return read_as(facts["graph"], ComponentGraph, "graph")


def _circuit_parts(circuit: Circuit) -> tuple[Arrays, Facts]:
    return {"keep": circuit.keep}, _graph_facts(circuit)


def _circuit(arrays: Arrays, facts: Facts) -> Circuit:
    return Circuit(_graph(facts), arrays["keep"], _metadata(facts))


def _scores_parts(scores: Scores) -> tuple[Arrays, Facts]:
    own = {name: getattr(scores, name) for name in _SCORES_FACTS}
    # A file calls `Scores.signed` "effects".
    return {"values": scores.values}, {**_graph_facts(scores), **own, "effects": scores.signed}


def _scores(arrays: Arrays, facts: Facts) -> Scores:
    return Scores(
        graph=_graph(facts),
        values=arrays["values"],
        seconds=math.nan,
        signed=read_as(facts["effects"], bool, "effects"),
        metadata=_metadata(facts),
        **{name: read_as(facts[name], hint, name) for name, hint in _SCORES_FACTS.items()},
    )


_WRITERS: dict[type, tuple[str, Callable[[Any], tuple[Arrays, Facts]]]] = {
    Trace: ("trace", _trace_parts),
    DensityCurve: ("curve", _curve_parts),
    Circuit: ("circuit", _circuit_parts),
    Scores: ("scores", _scores_parts),
}
_READERS: dict[str, Callable[[Arrays, Facts], Any]] = {
    "trace": _trace,
    "curve": _curve,
    "circuit": _circuit,
    "scores": _scores,
}
