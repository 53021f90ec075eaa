"""Processor time of `strace-lens compare`, the whole command in a process of its own.

Five methods on six pairs, ACDC among them, which runs a circuit for each edge that it tries; and
what the command does by default.
Run: python -m benchmarks.compare_seconds
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.common import info, report
from benchmarks.start import COMMAND, spent

DEFAULT = (*COMMAND, "compare", "--task", "ioi")
FIVE = (*DEFAULT, "--pairs", "6", "--methods", "eap,eap-ig,acdc,strace,random")
GOALS = {"compare, five methods on six pairs": (FIVE, 180), "compare, by default": (DEFAULT, 300)}


def main() -> None:
    """Print the seconds of both commands, the default model in the cache."""
    with tempfile.TemporaryDirectory() as made:
        # Dequantises the default model and proves it, which is done once on a machine.
        spent((sys.executable, "-c", "import strace_lens; strace_lens.load_model()"), Path(made))
        for name, (command, goal) in GOALS.items():
            out = ("--out", str(Path(made) / name))  # a folder takes one comparison
            # Threads that wait for one another count as working.
            taken = spent((*command, *out), Path(made), OMP_NUM_THREADS="1")
            report(
                f"{name}, processor time of one thread",
                taken.processor,
                goal,
                at_most=True,
                unit=" s",
            )
            info(f"{taken.wall:.0f} s of wall time")


if __name__ == "__main__":
    main()
