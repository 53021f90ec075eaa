"""Seconds of one masked forward pass by the size of its trace.

Execution is dense: an ablated edge is computed and then zeroed, so the seconds do not follow the
size. The table shows what a sparse execution, whose cost would follow it, could save.
Run: python -m benchmarks.sparse_seconds
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
import torch

import strace_lens as sl
from benchmarks.common import info, interleaved_seconds, show, smollm2, smollm2_trace
from strace_lens.model.architecture import Model
from strace_lens.model.checks import architecture_of
from strace_lens.traces.masked_run import masked_logits
from strace_lens.traces.rows import MaskedRows

REPEATS = 7


def seconds_by_size(
    model: Model, trace: sl.Trace, sizes: Sequence[float], repeats: int
) -> pd.DataFrame:
    """Fastest wall seconds of a pass of one row at each size; sizes take turns."""
    architecture = architecture_of(model)
    edges = [trace.edge_count(s) for s in sizes]

    def run_of(count: int) -> Callable[[], object]:
        stop = torch.tensor([count], dtype=torch.int32)
        row = MaskedRows(
            trace.prompt.tensor, trace.shape, trace.ranks, torch.zeros_like(stop), stop
        )
        return lambda: masked_logits(model, architecture, [row])

    runs = [run_of(count) for count in edges]
    runs[0]()  # warm up
    seconds = [min(s) for s in interleaved_seconds(runs, repeats)]
    return pd.DataFrame({"size": sizes, "edges": edges, "seconds": seconds})


def main() -> None:
    """Print the table for the 47-token trace of SmolLM2."""
    trace = smollm2_trace()
    table = seconds_by_size(smollm2(), trace, sl.SIZES, REPEATS)
    slowest, fastest = table["seconds"].max(), table["seconds"].min()
    growth = table["edges"].iloc[-1] / max(1, table["edges"].iloc[0])
    print(f"seconds of one masked run by its size, {trace.shape.tokens} tokens of SmolLM2:")
    show(table)
    info(
        f"the slowest size takes {slowest / fastest:.2f}x the fastest, "
        f"the largest has {growth:,.0f}x the edges of the smallest"
    )


if __name__ == "__main__":
    main()
