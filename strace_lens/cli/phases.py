"""`strace-lens phases`: the analyses of one or more sweeps, as tables and a page of figures."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from strace_lens.cli import options as opt
from strace_lens.cli.common import Bar, one_line_errors
from strace_lens.utils.disk import results_folder, write_whole

PAGE = "phases.html"
WIDTH = 180
PRINTED = (
    *("corpus_boundaries", "size_needed", "head_and_tail_means", "density_correlations"),
    "estimator_table",
)
"""The short tables that JSON holds besides the claims; the long ones are in their files."""


def phases_command(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Folders that `strace-lens sweep` wrote; for a sweep of several combinations, the "
            "folder that holds them all.",
            file_okay=False,
        ),
    ],
    out: Annotated[
        Path | None,
        opt.option(
            "Folder for phases.html and the CSV tables. Default: the folder of the first run."
        ),
    ] = None,
    seed: Annotated[int, opt.option("Seed of the bootstrap.")] = 0,
    as_json: opt.Json = False,
) -> None:
    """Analyse sweeps: test the paper's claims, find where construction ends, compare runs.

    Several runs (of models, estimators or checkpoints) are compared over the prompts they share.

    Example: strace-lens phases runs/first
    """
    folder = out or runs[0]
    with one_line_errors(), Bar() as bar, ExitStack() as place:
        with bar.importing():
            from strace_lens.corpus.analyses.all import ANALYSES, CLAIMS, analyse
            from strace_lens.corpus.run_folder import read_run, run_folders
            from strace_lens.report.claims_table import print_claims
            from strace_lens.report.corpus import corpus_report
            from strace_lens.report.summary import records
            from strace_lens.report.tables import frame_table, wide_console
            from strace_lens.report.tables_corpus import corpus_sections
        files = (PAGE, *(f"{name}.csv" for name in (*ANALYSES, CLAIMS)))
        place.enter_context(results_folder(folder, files))
        bar.step("reading")
        read = [read_run(one) for folder in runs for one in run_folders(folder)]
        bar.step("analysing")
        tables = analyse(read, seed=seed, progress=bar.tell)
        bar.step("drawing")
        for name, frame in tables.items():
            write_whole(folder / f"{name}.csv", frame.to_csv(index=False).encode())
        write_whole(folder / PAGE, corpus_report(read, tables).encode())
        bar.stop()
        if as_json:
            short = {name: records(tables[name]) for name in (CLAIMS, *PRINTED) if name in tables}
            print(json.dumps(short, allow_nan=False))
            return
        console = wide_console(WIDTH)
        print_claims(console, tables[CLAIMS])
        for title, frame in corpus_sections(read, tables).items():
            console.print(frame_table(title, frame))
        for run in read:
            if len(run.prompts) < 2:
                print(f"{run.name} has a single prompt: there are no intervals")
            if run.missing:
                print(f"{run.name} is unfinished: {run.missing} prompts are not done")
        print(f"wrote {PAGE} and {len(tables)} CSV tables to {folder}")
