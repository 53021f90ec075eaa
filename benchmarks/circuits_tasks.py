"""Every method on four tasks of SmolLM2 and on models whose circuit is known: the docs' tables.

A method sees the first half of a task's pairs, and its circuits are evaluated on the other half,
under resample ablation, from edges ranked by magnitude. `tasks.csv` has what `compare` prints, with
95 % intervals over pairs; `better.csv` holds every method against EAP-IG, pair by pair; `known.csv`
has the area under the ROC curve where the circuit is known. Seconds are those of one thread. What
is done is kept in the folder of `--runs`, so a run that was stopped resumes.
Run: python -m benchmarks.circuits_tasks [--tasks NAMES] [--methods NAMES] [--pairs N] [--jobs N]
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import strace_lens as sl
from benchmarks.common import smollm2
from strace_lens.comparison.comparison import Comparison
from strace_lens.ground_truth.models import GROUND_TRUTHS, ground_truth
from strace_lens.utils.disk import write_whole

LANGUAGE = ("ioi", "greater-than", "agreement", "induction")
"""In the order of the table; the longest prompts are those of induction."""
SLOW = ("edge-patching",)
"""Methods that need a pass an edge: hours on SmolLM2, and seconds on the small known models."""
PAIRS = 12
AGAINST = "eap-ig"
KNOWN_PAIRS = 32
KNOWN_COLUMNS = ("method", "cpr", "cmd", "auroc", "precision", "beats_random")


def compared(name: str, methods: Sequence[str], pairs: int, folder: Path) -> Comparison:
    """Methods on one task, kept in a folder."""
    runs = folder / name
    if name in GROUND_TRUTHS:
        known = ground_truth(name, pairs=KNOWN_PAIRS)
        return sl.compare(
            known.model, known.task, methods, ground_truth=known, folder=runs, **_ALIKE
        )
    model = smollm2()
    task = sl.make_task(model, name, pairs=2 * pairs)
    seen, others = task.take(range(pairs)), task.take(range(pairs, len(task)))
    return sl.compare(model, seen, methods, evaluation=others, folder=runs, **_ALIKE)


_ALIKE: dict[str, Any] = {
    "ranking": "absolute",
    "completeness": False,
    "minimality": False,
    "overwrite": True,
}


def run_task(name: str, methods: Sequence[str], pairs: int, folder: Path) -> list[pd.DataFrame]:
    """The table of one task, and every method against EAP-IG by both areas."""
    torch.set_num_threads(1)
    if name not in GROUND_TRUTHS:
        methods = [method for method in methods if method not in SLOW]
    found = compared(name, methods, pairs, folder)
    table = found.table.assign(task=name, edges=found.graph.edges)
    against = []
    for measure in ("cpr", "cmd"):
        rows = found.differences(measure)
        chosen = rows.loc[rows["other"] == AGAINST].assign(task=name, measure=measure)
        against.append(chosen.drop(columns="other"))
    print(f"{name}: {len(table)} methods", file=sys.stderr, flush=True)
    return [table, pd.concat(against)]


def _longest_first(name: str) -> int:
    """Where a task stands in the queue: that with the longest prompts must not start last."""
    return -LANGUAGE.index(name) if name in LANGUAGE else 1


def write(folder: Path, file: str, tables: Sequence[pd.DataFrame], columns: Sequence[str]) -> None:
    """Write tables below one another, the task and then these columns, to five digits."""
    if tables:
        whole = pd.concat(tables, ignore_index=True)[["task", *columns]]
        write_whole(folder / file, whole.to_csv(index=False, float_format="%.5g").encode())


def main(argv: Sequence[str] | None = None) -> None:
    """Run the tasks, several at once, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", default=",".join((*LANGUAGE, *GROUND_TRUTHS)))
    parser.add_argument("--methods", default=",".join(sl.METHODS))
    parser.add_argument("--pairs", type=int, default=PAIRS, help="pairs to find, and to evaluate")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--runs", type=Path, default=Path("runs/circuits"))
    parser.add_argument("--out", type=Path, default=Path("out/circuits"))
    given = parser.parse_args(argv)
    methods, tasks = given.methods.split(","), given.tasks.split(",")
    known = [name for name in (*LANGUAGE, *GROUND_TRUTHS) if name in tasks]
    if unknown := set(tasks) - set(known):
        parser.error(f"unknown task {min(unknown)!r}; choose from {', '.join(known)}")
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
        running = {
            name: pool.submit(run_task, name, methods, given.pairs, given.runs)
            for name in sorted(known, key=_longest_first)
        }
        tables = {name: running[name].result() for name in known}
    given.out.mkdir(parents=True, exist_ok=True)
    language = [table for name, table in tables.items() if name in LANGUAGE]
    figures = [f"{name}{end}" for name in ("cpr", "cmd") for end in ("", "_low", "_high")]
    passes = ["method", "forwards", "backwards", "seconds"]
    write(
        given.out,
        "tasks.csv",
        [table for table, _ in language],
        [*passes, *figures, "edges_at_85", "edges", "beats_random"],
    )
    write(
        given.out,
        "better.csv",
        [against for _, against in language],
        ["measure", "method", "difference", "low", "high", "better"],
    )
    write(
        given.out,
        "known.csv",
        [table for name, (table, _) in tables.items() if name in GROUND_TRUTHS],
        KNOWN_COLUMNS,
    )


if __name__ == "__main__":
    main()
