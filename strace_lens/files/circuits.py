"""Circuits and scores to and from disk, one file each (`result_files`).

The graph is stored with the values, so a file says which model it belongs to: what is run on
another model is refused. How long a method took is no part of its result and is not stored, so that
the same scores are the same bytes.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from strace_lens.circuits.circuit import Circuit, Scores
from strace_lens.circuits.graph import ComponentGraph, graph_from_facts
from strace_lens.files.result_files import ResultFileError, read_result, write_result
from strace_lens.utils import checks

_GRAPH_FACTS = ("graph", "metadata")
_SCORES_FACTS = (*_GRAPH_FACTS, "method", "task", "effects", "forwards", "backwards")
"""What a file says beside the values; it calls `Scores.signed` "effects"."""


def save_circuit(circuit: Circuit, path: str | Path) -> None:
    """Write a circuit to one file, atomically.

    Raises:
        ValueError: what `made` says is no JSON.
    """
    facts = {"graph": dataclasses.asdict(circuit.graph), "metadata": dict(circuit.metadata)}
    write_result(path, "circuit", {"keep": circuit.keep}, facts)


def load_circuit(path: str | Path) -> Circuit:
    """Read a circuit written by `save_circuit`, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ResultFileError: it is truncated, foreign, damaged or inconsistent.
    """
    arrays, facts = read_result(path, ("circuit",))
    try:
        facts = checks.fields(facts, _GRAPH_FACTS, "it")
        graph = graph_from_facts(facts["graph"])
        keep = _edges(checks.fields(arrays, ["keep"], "it")["keep"], graph, torch.bool)
        return Circuit(graph, keep, checks.mapping(facts["metadata"], "metadata"))
    except ValueError as error:
        raise ResultFileError(f"{path} is no whole circuit: {error}") from error


def save_scores(scores: Scores, path: str | Path) -> None:
    """Write the scores of a discovery method to one file, atomically, without its `seconds`.

    Raises:
        ValueError: what `made` says is no JSON.
    """
    facts: dict[str, Any] = {
        "graph": dataclasses.asdict(scores.graph),
        "metadata": dict(scores.metadata),
    }
    facts |= {"effects": scores.signed}
    facts |= {name: getattr(scores, name) for name in ("method", "task", "forwards", "backwards")}
    write_result(path, "scores", {"values": scores.values}, facts)


def load_scores(path: str | Path) -> Scores:
    """Read scores written by `save_scores`, on the CPU; their `seconds` are NaN.

    Raises:
        FileNotFoundError: there is no such file.
        ResultFileError: it is truncated, foreign, damaged or inconsistent.
    """
    arrays, facts = read_result(path, ("scores",))
    try:
        facts = checks.fields(facts, _SCORES_FACTS, "it")
        graph = graph_from_facts(facts["graph"])
        return Scores(
            graph=graph,
            values=_edges(checks.fields(arrays, ["values"], "it")["values"], graph),
            method=checks.text(facts["method"], "method"),
            task=checks.text(facts["task"], "task"),
            forwards=checks.number(facts["forwards"], "forwards", low=0),
            backwards=checks.number(facts["backwards"], "backwards", low=0),
            seconds=math.nan,
            signed=checks.flag(facts["effects"], "effects"),
            metadata=checks.mapping(facts["metadata"], "metadata"),
        )
    except ValueError as error:
        raise ResultFileError(f"{path} holds no whole scores: {error}") from error


def _edges(values: Tensor, graph: ComponentGraph, *dtypes: torch.dtype) -> Tensor:
    """The values, if they can be one an edge: floating, or of the other types allowed."""
    right = values.ndim in (2, 3) and values.shape[:2] == (graph.destinations, graph.sources)
    if not right or not (values.is_floating_point() or values.dtype in dtypes):
        raise ValueError(
            f"{values.dtype} of shape {tuple(values.shape)} is not one value an edge of "
            f"{graph.model}, with {graph.destinations} destinations and {graph.sources} sources"
        )
    return values
