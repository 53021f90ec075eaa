"""What `strace-lens circuit-test` reads, a circuit or scores in a file, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.scores import Scores
from strace_lens.circuits.wiring import component_graph
from strace_lens.cli.tasks import TaskOnModel
from strace_lens.files.interchange import load_importance_circuit, load_importances
from strace_lens.files.results import load
from strace_lens.report.summary import records
from strace_lens.report.tables import frame_table, wide_console


def read_circuit(file: Path, on: TaskOnModel, edges: str | None) -> Circuit:
    """Read a circuit, or take the best edges of scores.

    Raises:
        ValueError: the file holds neither, or scores without `edges`, or a circuit with `edges`.
    """
    if file.suffix == ".json":
        graph = component_graph(on.model)
        read = load_importances if edges is not None else load_importance_circuit
        found: Circuit | Scores = read(file, graph)
    else:
        found = load(file, Circuit, Scores)
    if isinstance(found, Circuit):
        if edges is not None:
            raise ValueError(f"{file} is a circuit of {len(found):,} edges: leave out --edges")
        return found
    if edges is None:
        raise ValueError(
            f"{file} has scores of {found.edges:,} edges: give the size of the circuit, such as "
            "--edges 500 or --edges 0.02"
        )
    try:
        size = int(edges) if edges.isdecimal() else float(edges)
    except ValueError:
        raise ValueError(
            f"--edges takes a number of edges or a fraction of them; got {edges!r}"
        ) from None
    return found.top(size)


def print_tests(table: pd.DataFrame, circuit: Circuit, on: TaskOnModel, as_json: bool) -> None:
    """Print the table of the tests, or JSON."""
    if as_json:
        facts = {
            "model": circuit.graph.model,
            "task": on.task.name,
            "pairs": len(on.task),
            "edges": len(circuit),
            "tests": records(table),
        }
        print(json.dumps(facts, allow_nan=False))
        return
    title = f"{circuit!r} on {len(on.task)} pairs of {on.task.name}"
    wide_console().print(frame_table(title, table))
