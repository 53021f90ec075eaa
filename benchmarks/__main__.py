"""Run the benchmarks that take minutes, or all of them with `--all`.

A goal missed prints SHORT and is no failure; an exception is.
Run: python -m benchmarks [--all]
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

import torch

from benchmarks import (
    circuits_attribution,
    circuits_masked,
    circuits_scaling,
    compare_seconds,
    extraction,
    fitting,
    importance,
    masked_forward,
    plan,
    relevance,
    scaling,
    scheduling,
    sparse_seconds,
    start,
    sweeps,
    trace_job,
)

QUICK = (
    start,
    extraction,
    scheduling,
    masked_forward,
    trace_job,
)
LONG = (
    fitting,
    sparse_seconds,
    importance,
    scaling,
    plan,
    sweeps,
    circuits_attribution,
    circuits_masked,
    circuits_scaling,
    relevance,
    compare_seconds,
)


def main(argv: Sequence[str]) -> int:
    """Exit status: 1 if a benchmark raised, 0 otherwise."""
    if argv not in ([], ["--all"]):
        print(f"only --all is an option; got {' '.join(argv)}", file=sys.stderr)
        return 2
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, CPU, float32")
    return run_each((*QUICK, *LONG) if argv else QUICK)


def run_each(benchmarks: Sequence[ModuleType]) -> int:
    """Run benchmarks, those after one that raises too; 1 if any did, 0 otherwise."""
    failed = 0
    for benchmark in benchmarks:
        try:
            benchmark.main()
        except Exception:
            traceback.print_exc()
            print(f"{benchmark.__name__}: failed", flush=True)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
