"""`strace-lens circuit-test`: test the claims about a saved circuit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from strace_lens.cli import options as opt
from strace_lens.cli.common import Bar, one_line_errors
from strace_lens.cli.task_options import PAIRS, ModelOptions, TaskOptions, check_task
from strace_lens.utils.choices import EDGE_ABLATIONS, REFERENCES, TESTS


def circuit_test_command(
    file: Annotated[
        Path,
        typer.Argument(
            help="A circuit or scores that compare wrote, or an importance file (.json).",
            dir_okay=False,
        ),
    ],
    task: opt.Task,
    edges: Annotated[
        str | None,
        opt.option(
            "Size of the circuit, for a file of scores: a number of edges, such as 500, or a "
            "fraction of all edges, such as 0.02. Those of largest magnitude are taken."
        ),
    ] = None,
    tests: Annotated[
        str,
        opt.option(f"Tests, separated by commas: {', '.join(TESTS)}.", choices=TESTS),
    ] = ",".join(TESTS),
    reference: Annotated[
        str,
        opt.option(
            "Random circuits to compare with: random, of any edges; connected, of edges on paths "
            "from the embedding to the logits.",
            choices=REFERENCES,
        ),
    ] = "random",
    draws: Annotated[int, opt.option("Maximum number of random circuits; at least 19.")] = 99,
    sample: Annotated[int, opt.option("Number of edges that minimality tests.")] = 16,
    model: opt.TaskModel = None,
    pairs: Annotated[
        int | None, opt.option(f"Number of pairs. Default: {PAIRS}, or all pairs of a file.")
    ] = None,
    ablation: opt.CircuitAblation = "resample",
    metric: opt.Metric = None,
    prepend_bos: opt.PrependBos = False,
    seed: Annotated[
        int, opt.option("Seed of the pairs and of all draws; use another than in discovery.")
    ] = 1,
    device: opt.Device = None,
    dtype: opt.Dtype = "float32",
    allow_pickle: opt.AllowPickle = False,
    revision: opt.Revision = None,
    memory: opt.Memory = None,
    as_json: opt.Json = False,
) -> None:
    """Test the claims about a saved circuit: five tests with p-values.

    Is it sufficient, necessary, complete, minimal and equivalent to the model? Two tests compare it
    with random circuits of as many edges and pass at a p-value of at most 0.05; three take the
    claim as the null hypothesis and pass if it is not rejected (Shi et al. 2024).

    Example: strace-lens circuit-test out/compare/ioi/circuits/eap.safetensors --task ioi
    """
    with one_line_errors(), Bar() as bar:
        forward, _ = opt.budgets(memory)
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {file}")
        loading = ModelOptions(model, device, dtype, allow_pickle, revision)
        asked = TaskOptions(task, loading, pairs, seed, metric, prepend_bos)
        check_task(asked)
        named = opt.parse_names(tests)
        for name in named:
            opt.expect_choice(name, TESTS, "test")
        opt.expect_choice(reference, REFERENCES, "reference")
        opt.expect_choice(ablation, EDGE_ABLATIONS, "ablation")
        with bar.importing():
            from strace_lens.circuits.significance import circuit_tests
            from strace_lens.cli.circuit_file import print_tests, read_circuit
            from strace_lens.cli.tasks import task_on_model
        on = task_on_model(asked, times=1, bar=bar)
        circuit = read_circuit(file, on, edges)
        bar.step("testing")
        table = circuit_tests(
            on.model,
            on.task,
            circuit,
            tests=named,
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
        print_tests(table, circuit, on, as_json)
