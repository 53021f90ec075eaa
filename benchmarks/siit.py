"""AUROC of every method on the semi-synthetic models, over seeds of their training and pairs.

A seed whose model was not trained well enough is left out for the next one. Writes a row for each
task and method, with the mean over seeds and its 95 % bootstrap interval, in about six minutes of
one core.
Run: python -m benchmarks.siit [docs/circuits/siit.csv]
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

import strace_lens as sl
from benchmarks.common import info, show
from strace_lens.circuits.agreement import auroc, missed_edges
from strace_lens.circuits.discover.methods import METHODS
from strace_lens.ground_truth.models import GroundTruth, ground_truth
from strace_lens.ground_truth.siit import PROGRAMS, TrainingError
from strace_lens.measures.intervals import means

SEEDS, PAIRS = 5, 32
MEASURES = ("auroc", "precision")


def models(task: str, count: int, pairs: int = PAIRS) -> list[tuple[int, GroundTruth]]:
    """The models of the first seeds that train well enough."""
    found: list[tuple[int, GroundTruth]] = []
    for seed in itertools.count():
        if len(found) == count:
            return found
        try:
            found.append((seed, ground_truth(task, seed, pairs)))
        except TrainingError as error:
            info(str(error))
    raise AssertionError("seeds do not end")


def measured(known: GroundTruth, seed: int, methods: Sequence[str]) -> list[dict[str, Any]]:
    """AUROC, precision at the true size and seconds of each method, by magnitude of its scores."""
    truth, rows = known.truth("resample"), []
    for method in methods:
        scores = sl.discover(known.model, known.task, method, seed=seed)
        found = 1 - len(missed_edges(scores, truth)) / len(truth)
        rows.append({"method": method, "auroc": auroc(scores, truth), "precision": found})
        rows[-1]["seconds"] = scores.seconds
    return rows


def table(
    tasks: Sequence[str], methods: Sequence[str], seeds: int = SEEDS, pairs: int = PAIRS
) -> pd.DataFrame:
    """Means over seeds with their intervals: one row a task and method."""
    rows: list[dict[str, Any]] = []
    for task in tasks:
        for seed, known in models(task, seeds, pairs):
            info(f"{task}, seed {seed}")
            rows += [{"task": task, **row} for row in measured(known, seed, methods)]
    return summary(pd.DataFrame(rows))


def summary(each: pd.DataFrame) -> pd.DataFrame:
    """Of one row a run: the mean and interval of each measure, by task and method as they come."""
    rows = []
    for _, group in each.groupby(["task", "method"], sort=False):
        first = group.iloc[0]
        row: dict[str, Any] = {"task": first["task"], "method": first["method"], "runs": len(group)}
        for name in MEASURES:
            row |= means(group[name].to_numpy(np.float64)).columns(name)
        rows.append({**row, "seconds": group["seconds"].mean()})
    return pd.DataFrame(rows)


def main(argv: Sequence[str] = ()) -> None:
    found = table([f"siit-{name}" for name in PROGRAMS], list(METHODS))
    show(found)
    if argv:
        found.to_csv(argv[0], index=False, float_format="%.4g")


if __name__ == "__main__":
    main(sys.argv[1:])
