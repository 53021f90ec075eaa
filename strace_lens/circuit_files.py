"""Circuits and scores to and from disk: one safetensors file each, written whole, without code.

The graph is stored with the values, so a file says which model it belongs to: what is run on
another model is refused.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from strace_lens.component_graph.circuit import Circuit
from strace_lens.component_graph.graph import graph_from_facts
from strace_lens.component_graph.scores import Scores
from strace_lens.storage import ResultFileError, read_result, write_result

_COSTS = ("forwards", "backwards", "seconds")
_INCONSISTENT = (KeyError, TypeError, ValueError)


def save_circuit(circuit: Circuit, path: str | Path) -> None:
    """Write a circuit to one file, atomically.

    Raises:
        ValueError: what `made` says is no JSON.
    """
    facts = {"graph": dataclasses.asdict(circuit.graph), "made": dict(circuit.made)}
    write_result(path, "circuit", {"keep": circuit.keep}, facts)


def load_circuit(path: str | Path) -> Circuit:
    """Read a circuit written by `save_circuit`, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ResultFileError: it is truncated, foreign or inconsistent.
    """
    arrays, facts = read_result(path, ("circuit",))
    try:
        return Circuit(
            graph_from_facts(facts["graph"]),
            _edges(arrays["keep"], torch.bool),
            dict(facts["made"]),
        )
    except _INCONSISTENT as error:
        raise ResultFileError(f"{path} is no whole circuit: {error!r}") from error


def save_scores(scores: Scores, path: str | Path) -> None:
    """Write the scores of a discovery method to one file, atomically.

    Raises:
        ValueError: what `made` says is no JSON.
    """
    facts = {"graph": dataclasses.asdict(scores.graph), "made": dict(scores.made)}
    facts |= {name: getattr(scores, name) for name in ("method", "task", "effects", *_COSTS)}
    write_result(path, "scores", {"values": scores.values}, facts)


def load_scores(path: str | Path) -> Scores:
    """Read scores written by `save_scores`, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ResultFileError: it is truncated, foreign or inconsistent.
    """
    arrays, facts = read_result(path, ("scores",))
    try:
        if type(facts["effects"]) is not bool:
            raise TypeError(f"effects = {facts['effects']!r}")
        return Scores(
            graph=graph_from_facts(facts["graph"]),
            values=_edges(arrays["values"]),
            method=str(facts["method"]),
            task=str(facts["task"]),
            effects=facts["effects"],
            made=dict(facts["made"]),
            **{name: float(facts[name]) for name in _COSTS},
        )
    except _INCONSISTENT as error:
        raise ResultFileError(f"{path} holds no whole scores: {error!r}") from error


def _edges(values: Tensor, *dtypes: torch.dtype) -> Tensor:
    """The values, if they can be one an edge: floating, or of the other types allowed."""
    if values.ndim < 2 or not (values.is_floating_point() or values.dtype in dtypes):
        raise ValueError(f"{values.dtype} of shape {tuple(values.shape)} says nothing of edges")
    return values
