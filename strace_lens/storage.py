"""Results to and from disk: one safetensors file each, JSON metadata inside, written whole or not.

A trace is stored as its order (int32 ids of the reachable edges, first taken first) and their
importances; a curve is its trace with the columns of its table beside it. Files hold no code:
reading one runs nothing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from strace_lens.density import TEXTS, DensityCurve
from strace_lens.predictions import Beside
from strace_lens.prompts import Prompt
from strace_lens.token_graph.edges import (
    UNREACHABLE,
    EdgeTensors,
    GraphShape,
    is_complete,
    order_of,
    ranks_of,
)
from strace_lens.token_graph.trace import Trace
from strace_lens.whole_files import write_whole

FORMAT = "strace-lens/1"


class ResultFileError(ValueError):
    """A file that is not a whole result of strace_lens, with the reason."""


def save_trace(trace: Trace, path: str | Path) -> None:
    """Write a trace to one file, atomically."""
    write_result(path, "trace", _trace_arrays(trace), _trace_facts(trace))


def load_trace(path: str | Path) -> Trace:
    """Read the trace of a file written by `save_trace` or `save_curve`.

    Raises:
        FileNotFoundError: there is no such file.
        ResultFileError: it is truncated, foreign or inconsistent.
    """
    arrays, facts = read_result(path, ("trace", "curve"))
    return _trace(path, arrays, facts)


def save_curve(curve: DensityCurve, path: str | Path) -> None:
    """Write a density curve, its trace included, to one file, atomically."""
    columns = curve.table.drop(columns=TEXTS)
    arrays = _trace_arrays(curve.trace)
    for name in columns:
        arrays[f"table.{name}"] = torch.from_numpy(columns[name].to_numpy().copy())
    facts = _trace_facts(curve.trace) | {
        "columns": list(columns),
        "texts": {name: curve.table[name].tolist() for name in TEXTS},
        "curve": {name: getattr(curve, name) for name in _CURVE_FACTS},
    }
    write_result(path, "curve", arrays, facts)


def load_curve(path: str | Path) -> DensityCurve:
    """Read a density curve written by `save_curve`.

    Raises:
        FileNotFoundError: there is no such file.
        ResultFileError: it is truncated, foreign or inconsistent.
    """
    arrays, facts = read_result(path, ("curve",))
    trace = _trace(path, arrays, facts)
    try:
        table = pd.DataFrame({c: arrays[f"table.{c}"].numpy() for c in facts["columns"]})
        table["top"] = [_pairs(top) for top in facts["texts"]["top"]]
        table["beside"] = [
            tuple(Beside(str(t), float(m), float(q), bool(h)) for t, m, q, h in row)
            for row in facts["texts"]["beside"]
        ]
        own: dict[str, Any] = {name: facts["curve"][name] for name in _CURVE_FACTS}
        own["top"] = _pairs(own["top"])
    except (KeyError, TypeError, ValueError) as error:
        raise ResultFileError(f"{path} is no whole density curve: {error!r}") from error
    return DensityCurve(trace=trace, table=table, **own)


_CURVE_FACTS = [
    f.name for f in dataclasses.fields(DensityCurve) if f.name not in ("trace", "table")
]


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
        "made": dict(trace.made),
    }


def _trace(path: str | Path, arrays: dict[str, Tensor], facts: dict[str, Any]) -> Trace:
    try:
        shape = GraphShape(**facts["shape"])
        prompt = prompt_from_facts(facts["prompt"])
        order = arrays["order"].long()
        ranks, importance = ranks_of(order, shape), _importance(arrays, order, shape)
        made = facts["made"]
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise ResultFileError(f"{path} is no whole trace: {error!r}") from error
    if len(prompt.ids) != shape.tokens or prompt.sha256 != facts.get("prompt_sha256"):
        raise ResultFileError(f"{path} does not belong to the prompt it names")
    if not is_complete(ranks, shape):
        raise ResultFileError(f"{path} does not rank every edge of its graph once")
    return Trace(shape=shape, prompt=prompt, ranks=ranks, made=made, importance=importance)


def _importance(
    arrays: dict[str, Tensor], order: Int64[Tensor, " edge"], shape: GraphShape
) -> EdgeTensors | None:
    if "importance" not in arrays:
        return None
    flat = shape.full(0.0, torch.float32).flat()
    flat[order] = arrays["importance"]
    return shape.split(flat)


def write_result(
    path: str | Path, kind: str, arrays: dict[str, Tensor], facts: dict[str, Any]
) -> None:
    """Write arrays and facts to one file of a kind, atomically.

    Raises:
        ValueError: the facts hold what JSON cannot.
    """
    metadata = {"format": FORMAT, "kind": kind, "facts": facts_text(kind, facts)}
    write_whole(path, save({n: a.contiguous() for n, a in arrays.items()}, metadata=metadata))


def facts_text(kind: str, facts: Mapping[str, Any]) -> str:
    """What is known of a result of a kind, as JSON.

    Raises:
        ValueError: the facts hold what JSON cannot.
    """
    try:
        return json.dumps(facts)
    except TypeError as error:
        raise ValueError(
            f"the {kind} says what no JSON can hold of how it was made: {error}"
        ) from error


def prompt_from_facts(stored: Mapping[str, Any]) -> Prompt:
    """A prompt from the fields that a file names."""
    return Prompt(stored["text"], tuple(stored["ids"]), tuple(stored["strings"]))


def read_result(
    path: str | Path, kinds: tuple[str, ...]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Arrays and facts of a file written by `write_result` as one of the kinds.

    Raises:
        FileNotFoundError: there is no such file.
        ResultFileError: it is truncated, foreign or of another kind.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ResultFileError(f"{path} is truncated or foreign: {error}") from error
    if metadata.get("format") != FORMAT or metadata.get("kind") not in kinds:
        found = f"{metadata.get('format', 'no format')}, {metadata.get('kind', 'no kind')}"
        raise ResultFileError(f"{path} is no {' or '.join(kinds)} of {FORMAT}; it says {found}")
    try:
        return arrays, json.loads(metadata["facts"])
    except (KeyError, json.JSONDecodeError) as error:
        raise ResultFileError(f"{path} has no readable metadata: {error!r}") from error


def _pairs(top: Any) -> tuple[tuple[str, float], ...]:
    return tuple((str(token), float(probability)) for token, probability in top)
