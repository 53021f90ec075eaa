"""`strace-lens circuit-test`: test what is claimed of a saved circuit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.scores import Scores
from strace_lens.circuits.significance import REFERENCES, TESTS, circuit_tests
from strace_lens.circuits.wiring import component_graph
from strace_lens.cli import options as opt
from strace_lens.cli.common import Bar, one_line_errors
from strace_lens.cli.tasks import PAIRS, ModelOptions, TaskOnModel, task_on_model
from strace_lens.files.interchange import load_importance_circuit, load_importances
from strace_lens.files.results import load
from strace_lens.report.summary import records
from strace_lens.report.tables import frame_table, wide_console


def circuit_test_command(
    file: Annotated[
        Path,
        typer.Argument(
            help="A circuit or scores, as compare writes them, or an importance file (.json).",
            dir_okay=False,
        ),
    ],
    task: opt.Task,
    edges: Annotated[
        str | None,
        opt.option(
            "Edges of the circuit, for a file of scores: a number, as 500, or a fraction of all "
            "edges, as 0.02. The best by magnitude are taken."
        ),
    ] = None,
    tests: Annotated[
        str,
        opt.option(f"Names separated by commas: {', '.join(TESTS)}.", choices=TESTS),
    ] = ",".join(TESTS),
    reference: Annotated[
        str,
        opt.option(
            "Random circuits to compare with: random, of any edges; connected, of edges on paths "
            "from the embedding to the logits.",
            choices=REFERENCES,
        ),
    ] = "random",
    draws: Annotated[int, opt.option("Random circuits at most; at least 19.")] = 99,
    sample: Annotated[int, opt.option("Edges of the circuit that minimality tests.")] = 16,
    model: opt.TaskModel = None,
    pairs: Annotated[
        int | None, opt.option(f"Pairs to test on. Default: {PAIRS}, or all pairs of a file.")
    ] = None,
    ablation: opt.CircuitAblation = "resample",
    metric: opt.Metric = None,
    prepend_bos: opt.PrependBos = False,
    seed: Annotated[
        int, opt.option("Seed of the pairs and of all draws; better not that of the discovery.")
    ] = 1,
    device: opt.Device = None,
    dtype: opt.Dtype = "float32",
    allow_pickle: opt.AllowPickle = False,
    revision: opt.Revision = None,
    memory: opt.Memory = None,
    as_json: opt.Json = False,
) -> None:
    """Test what is claimed of a saved circuit: five tests with p-values.

    Is it sufficient, necessary, all there is, minimal, equal to the model? Two tests hold it
    against random circuits of as many edges and pass at a p-value of at most 0.05; three take the
    claim as null hypothesis and pass where it is not rejected (Shi et al. 2024).

    Example: strace-lens circuit-test out/compare/ioi/circuits/eap.safetensors --task ioi
    """
    with one_line_errors(), Bar() as bar:
        forward, _ = opt.budgets(memory)
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {file}")
        on = task_on_model(
            task,
            ModelOptions(model, device, dtype, allow_pickle, revision),
            pairs=pairs,
            times=1,
            seed=seed,
            metric=metric,
            prepend_bos=prepend_bos,
            bar=bar,
        )
        circuit = read_circuit(file, on, edges)
        bar.step("testing")
        table = circuit_tests(
            on.model,
            on.task,
            circuit,
            tests=opt.parse_names(tests),
            reference=reference,
            draws=draws,
            sample=sample,
            ablation=ablation,
            metric=metric,
            seed=seed,
            memory_budget=forward,
            progress=bar.tell,
        )
        bar.stop()
        _print(table, circuit, on, as_json)


def read_circuit(file: Path, on: TaskOnModel, edges: str | None) -> Circuit:
    """Read a circuit, or take the best edges of scores.

    Raises:
        ValueError: a file that is neither, scores without a number of edges, or a circuit with one.
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
            f"{file} has scores of {found.edges:,} edges: say how many make the circuit, as "
            "--edges 500 or --edges 0.02"
        )
    try:
        size = int(edges) if edges.isdecimal() else float(edges)
    except ValueError:
        raise ValueError(
            f"--edges takes a number of edges or a fraction of them; got {edges!r}"
        ) from None
    return found.top(size)


def _print(table: pd.DataFrame, circuit: Circuit, on: TaskOnModel, as_json: bool) -> None:
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
