"""Seconds of every edge importance on one real token graph.

Run: python -m benchmarks.importance
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import pandas as pd

import strace_lens as sl
from benchmarks.common import TOKENS, real_prompt, show, smollm2
from strace_lens.traces.importance import IMPORTANCES

NAMES = (*IMPORTANCES, "leverage(8)")
ENOUGH_SECONDS = 1.0


def seconds_by_importance(graph: sl.TokenGraph, names: Sequence[str]) -> pd.DataFrame:
    """Fastest wall seconds of each importance, repeated until a second has gone by."""
    fastest = []
    for name in names:
        seconds: list[float] = []
        while sum(seconds) < ENOUGH_SECONDS:
            began = time.perf_counter()
            sl.edge_importance(graph, name)
            seconds.append(time.perf_counter() - began)
        fastest.append(min(seconds))
    return pd.DataFrame({"importance": names, "seconds": fastest})


def main() -> None:
    """Print the table for 47 tokens of SmolLM2."""
    graph = sl.token_graph(smollm2(), real_prompt(smollm2(), TOKENS))
    print(f"seconds of each importance, {graph.shape.edges:,} edges of SmolLM2:")
    show(seconds_by_importance(graph, NAMES))


if __name__ == "__main__":
    main()
