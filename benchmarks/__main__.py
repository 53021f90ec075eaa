"""Run every benchmark. A goal missed prints SHORT and is no failure; an exception is."""

from __future__ import annotations

import sys
import traceback

import torch

from benchmarks import (
    circuits_attribution,
    circuits_masked,
    circuits_scaling,
    extraction,
    fitting,
    importance,
    masked_forward,
    scaling,
    scheduling,
    sparse_seconds,
    sweeps,
    trace_job,
)

BENCHMARKS = (
    extraction,
    scheduling,
    masked_forward,
    fitting,
    trace_job,
    sparse_seconds,
    importance,
    scaling,
    sweeps,
    circuits_attribution,
    circuits_masked,
    circuits_scaling,
)


def main() -> int:
    """Exit status: 1 if a benchmark raised, 0 otherwise."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, CPU, float32")
    failed = 0
    for benchmark in BENCHMARKS:
        try:
            benchmark.main()
        except Exception:
            traceback.print_exc()
            print(f"{benchmark.__name__}: failed", flush=True)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
