"""`pair-magnitude` against EAP-IG on many more pairs than the tables of circuits evaluate.

Both methods see the same pairs as in `circuits_tasks`. Their circuits are evaluated on 192 other
pairs, none of which those tables use and on which the method was not chosen. The table, `lead.csv`,
has CPR and CMD of both and the 95 % interval of their difference, pair by pair. The evaluation of a
task takes up to 8 GB.
Run: python -m benchmarks.circuits_lead [--tasks NAMES] [--evaluated N] [--jobs N] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import strace_lens as sl
from benchmarks.circuits_tasks import AGAINST, LANGUAGE, PAIRS, write
from benchmarks.common import smollm2
from strace_lens.circuits.curve import Faithfulness, better, difference
from strace_lens.circuits.discover.run_method import discover_in
from strace_lens.circuits.evaluate import faithfulness_curve
from strace_lens.circuits.experiment import make_experiment

LEADER = "pair-magnitude"
EVALUATED = 192


def run_task(name: str, evaluated: int, model: Any = None) -> pd.DataFrame:
    """A row for each area on one task, by default of SmolLM2."""
    torch.set_num_threads(1)
    model = smollm2() if model is None else model
    task = sl.make_task(model, name, pairs=2 * PAIRS + evaluated)
    seen = make_experiment(model, task.take(range(PAIRS)))
    others = make_experiment(model, task.take(range(2 * PAIRS, len(task))))
    curves = [
        faithfulness_curve(others, discover_in(seen, method), ranking="absolute")
        for method in (LEADER, AGAINST)
    ]
    return pd.DataFrame([_row(measure, *curves) for measure in ("cmd", "cpr")]).assign(
        task=name, pairs=len(others.task)
    )


def _row(measure: str, leader: Faithfulness, other: Faithfulness) -> dict[str, object]:
    low, high = difference(measure, leader, other)
    values = [float(getattr(curve, measure)) for curve in (leader, other)]
    return {
        "measure": measure,
        LEADER: values[0],
        AGAINST: values[1],
        "difference": values[0] - values[1],
        "low": low,
        "high": high,
        "better": better(measure, low, high),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run the tasks, several at once, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", default=",".join(LANGUAGE))
    parser.add_argument("--evaluated", type=int, default=EVALUATED, help="pairs to evaluate on")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("out/circuits"))
    given = parser.parse_args(argv)
    tasks = given.tasks.split(",")
    if unknown := set(tasks) - set(LANGUAGE):
        parser.error(f"unknown task {min(unknown)!r}; choose from {', '.join(LANGUAGE)}")
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
        tables = list(pool.map(run_task, tasks, [given.evaluated] * len(tasks)))
    given.out.mkdir(parents=True, exist_ok=True)
    columns = ["pairs", "measure", LEADER, AGAINST, "difference", "low", "high", "better"]
    write(given.out, "lead.csv", tables, columns)


if __name__ == "__main__":
    main()
