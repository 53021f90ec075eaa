"""The scheduled order against best-first search, from the same scores.

Scheduling finds the residual columns worth their cost, then runs a best-first search over what it
found, so it can only be slower. Times are medians of runs that take turns, on one thread.
Run: python -m benchmarks.scheduling
"""

from __future__ import annotations

from statistics import median

from benchmarks.common import TOKENS, info, interleaved_seconds, report
from benchmarks.extraction import real_importance
from strace_lens.traces.best_first import best_first
from strace_lens.traces.schedule import schedule

GOAL = 10
REPEATS = 11


def main() -> None:
    """Compare on a real prompt's graph of 298,923 edges."""
    scores, shape = real_importance()
    orders = (best_first, schedule)
    for order in orders:
        order(scores, shape)  # compiles
    runs = interleaved_seconds(
        [lambda order=order: order(scores, shape) for order in orders], REPEATS
    )
    search, scheduled = (median(seconds) for seconds in runs)
    report(
        f"scheduling against best-first, {TOKENS} tokens", scheduled / search, GOAL, at_most=True
    )
    info(f"{shape.edges:,} edges: best-first {search:.3f} s, scheduled {scheduled:.3f} s")


if __name__ == "__main__":
    main()
