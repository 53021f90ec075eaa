"""`strace-lens estimators`: estimators over a file of prompts, with all controls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from strace_lens.cli.common import (
    AllowPickleOption,
    DeviceMapOption,
    DeviceOption,
    DtypeOption,
    MemoryOption,
    ModelOption,
    RevisionOption,
    budgets,
    completing,
    one_line_errors,
    parse_device_map,
    parse_sizes,
    progress_bar,
    step,
)
from strace_lens.corpus.trials.phase_table import phase_table
from strace_lens.corpus.trials.phases import trial_phases
from strace_lens.corpus.trials.prompts import read_prompts
from strace_lens.corpus.trials.run import SEEDS, check_options, run_trials, trial_steps
from strace_lens.corpus.trials.table import estimator_table
from strace_lens.measures.sizes import ESTIMATOR_SIZES
from strace_lens.model.load import load_model
from strace_lens.report.estimators import estimators_report
from strace_lens.report.summary import records
from strace_lens.report.tables import print_estimators, print_phases
from strace_lens.token_graph.estimators import ESTIMATORS
from strace_lens.utils.disk import results_folder, write_whole

PAGE = "estimators.html"
TABLES = ("runs", "traces", "table", "phases")


def estimators(
    prompts: Annotated[
        Path,
        typer.Argument(
            help="JSONL, one object a line: prompt; and if you like kind, sibling (equally long), "
            "wrong (line, from 0, of the prompt whose output is the wrong target).",
            dir_okay=False,
        ),
    ],
    estimators: Annotated[
        str,
        typer.Option(help="Names parted by commas.", autocompletion=completing(ESTIMATORS)),
    ] = ",".join(ESTIMATORS),
    model: ModelOption = "smollm2",
    sizes: Annotated[
        str | None,
        typer.Option(help=f"Relative sizes, some 0.001 or less; {len(ESTIMATOR_SIZES)} if unsaid."),
    ] = None,
    ablation: Annotated[
        str, typer.Option(help="What replaces an ablated edge: zero or mean.")
    ] = "zero",
    seeds: Annotated[int, typer.Option(help="Seeds of each estimator that draws.")] = SEEDS,
    limit: Annotated[int | None, typer.Option(help="Run the first so many prompts only.")] = None,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for estimators.html, CSV tables, and traces/, which a later run "
            "reads instead of estimating them again.",
        ),
    ] = Path("out/estimators"),
    device: DeviceOption = None,
    device_map: DeviceMapOption = None,
    dtype: DtypeOption = "float32",
    allow_pickle: AllowPickleOption = False,
    revision: RevisionOption = None,
    bos: Annotated[
        bool,
        typer.Option(
            "--bos/--no-bos", help="Start with the beginning-of-sequence token, or without it."
        ),
    ] = True,
    memory: MemoryOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and no table.")
    ] = False,
) -> None:
    """Compare ways of ranking edges over prompts: how small their traces are, what they cost.

    Each is also aimed at wrong targets, and its traces run on sibling prompts and under noise: a
    small trace means something only where these controls fail.

    Example: strace-lens estimators benchmarks/prompts.jsonl --limit 4
    """
    files = (PAGE, *(f"{name}.csv" for name in TABLES))
    with one_line_errors(), results_folder(out, files), progress_bar() as progress:
        read = read_prompts(prompts)
        names = [name.strip() for name in estimators.split(",")]
        grid = parse_sizes(sizes) or ESTIMATOR_SIZES
        check_options(names, grid, ablation, seeds, limit)
        forward, backward = budgets(memory)
        step(progress, f"loading {model}")
        loaded = load_model(
            model,
            device=device,
            device_map=parse_device_map(device_map),
            dtype=dtype,
            allow_pickle=allow_pickle,
            revision=revision,
        )
        total = len(read[:limit]) * trial_steps(names, seeds)
        bar = step(progress, "tokenizing", total=total)
        trials = run_trials(
            loaded,
            read,
            estimators=names,
            sizes=grid,
            ablation=ablation,
            seeds=seeds,
            bos=bos,
            limit=limit,
            out=out,
            memory_budget=forward,
            gradient_budget=backward,
            progress=lambda what, n: progress.update(bar, description=what, advance=n),
        )
        table = estimator_table(trials)
        found = trial_phases(trials, out)
        phase_means = phase_table(found.prompts)
        found_tables = (trials.runs, trials.traces, table, phase_means)
        frames = dict(zip(TABLES, found_tables, strict=True))
        for name, frame in frames.items():
            write_whole(out / f"{name}.csv", frame.to_csv(index=False).encode())
        page = estimators_report(trials, table, found, phase_means)
        write_whole(out / PAGE, page.encode())
        progress.stop()
        if as_json:
            print(json.dumps({"table": records(table)}, allow_nan=False))
        else:
            print_estimators(table)
            print_phases(phase_means)
            print(f"wrote {PAGE}, {', '.join(f'{n}.csv' for n in frames)} to {out}")
