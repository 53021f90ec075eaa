"""Time and memory of EAP and of masked passes as heads, layers and positions grow.

Random models of GPT-2's kind, eight pairs; exponents are slopes in log-log, by least squares.
Run: python -m benchmarks.circuits_scaling
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from benchmarks.circuits_models import gpt2_shape, random_task
from benchmarks.common import info, show
from strace_lens.component_graph.discover.attribution import eap
from strace_lens.component_graph.problem import prepare
from strace_lens.component_graph.run_circuits import circuit_metric
from strace_lens.peak_memory import peak_memory

GROWING = {
    "heads": [{"heads": n} for n in (3, 6, 12, 24)],
    "layers": [{"layers": n} for n in (3, 6, 12, 24)],
    "tokens": [{"tokens": n} for n in (16, 32, 64, 128)],
}
BASE = {"layers": 6, "heads": 6, "tokens": 16}
D_HEAD, VOCABULARY = 32, 1000


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """Least seconds of three, and the peak of memory above what was held, in MB."""
    work()
    seconds = []
    with peak_memory(torch.device("cpu")) as peak:
        for _ in range(3):
            began = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - began)
    return min(seconds), peak.bytes / 1e6


def main() -> None:
    """Print a table and exponents for each thing that grows."""
    for name, steps in GROWING.items():
        rows = []
        for step in steps:
            size = BASE | step
            model = gpt2_shape(size["layers"], size["heads"], D_HEAD, VOCABULARY)
            task = random_task(model, tokens=size["tokens"])
            problem = prepare(model, task)
            keep = problem.graph.exists[None] & False
            eap_seconds, eap_mb = measured(lambda t=task, m=model: eap(prepare(m, t)))
            masked_seconds, masked_mb = measured(lambda p=problem, k=keep: circuit_metric(p, k))
            rows.append(
                {
                    **size,
                    "edges": problem.graph.edges,
                    "eap_seconds": eap_seconds,
                    "eap_mb": eap_mb,
                    "masked_seconds": masked_seconds,
                    "masked_mb": masked_mb,
                }
            )
        table = pd.DataFrame(rows)
        print(f"component graph as {name} grow:", flush=True)
        show(table)
        columns = ["edges", "eap_seconds", "eap_mb", "masked_seconds", "masked_mb"]
        logs = np.log(table[[name, *columns]].clip(lower=1e-9))
        slopes = [np.polyfit(logs[name], logs[c], 1)[0] for c in columns]
        fitted = ", ".join(f"{c} {s:.2f}" for c, s in zip(columns, slopes, strict=True))
        info(f"exponents: {fitted}")


if __name__ == "__main__":
    main()
