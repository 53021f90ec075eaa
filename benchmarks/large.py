"""A random model of a billion parameters in bfloat16, end to end: memory and time against the plan.

A graph is read, ranked with and without gradients, and measured at a few sizes, in a process of its
own. Memory is the resident set of that process beyond the weights.
Run: python -m benchmarks.large [--tokens 50] [--shape small]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import strace_lens as sl
from benchmarks.common import info, report
from benchmarks.random_models import LLAMA_1B, LLAMA_SMALL, TINY, llama, random_ids, random_model
from strace_lens.corpus.plan import SweepPlan, plan_sweep
from strace_lens.density.cost import as_text
from strace_lens.utils.peak_memory import peak_memory

ROOT = Path(__file__).resolve().parents[1]
SIZES = (0.01, 0.1, 0.4, 0.8, 1.0)
BUDGET = 2**28
SHAPES = {"1b": LLAMA_1B, "small": LLAMA_SMALL, "tiny": TINY}


def measured(shape: dict[str, Any], tokens: int) -> dict[str, Any]:
    """Bytes and seconds of every step, in this process."""
    began = time.perf_counter()
    model = random_model(llama(shape), torch.bfloat16)
    ids = random_ids(shape["vocab_size"], tokens)
    told: dict[str, Any] = {"loading": time.perf_counter() - began}
    with peak_memory(torch.device("cpu")) as peak:
        began = time.perf_counter()
        graph = sl.token_graph(model, ids)
        told["graph"] = time.perf_counter() - began
        began = time.perf_counter()
        trace = sl.extract(graph)
        told["greedy"] = time.perf_counter() - began
        began = time.perf_counter()
        fitted = sl.fisher(model, graph, memory_budget=BUDGET)
        told["fisher"] = time.perf_counter() - began
        began = time.perf_counter()
        curves = [
            sl.density_curve(model, one, sizes=SIZES, refine=0, memory_budget=BUDGET)
            for one in (trace, fitted)
        ]
        told["curves"] = time.perf_counter() - began
    told["peak"] = peak.bytes
    told["how"] = peak.how
    told["edges"] = graph.shape.edges
    told["tv"] = [curve.table["tv"].tolist() for curve in curves]
    told["gap"] = [curve.logit_gap for curve in curves]
    return told


def planned(shape: dict[str, Any], tokens: int) -> SweepPlan:
    """What the plan says of the same work."""
    options = sl.Options(
        sizes=SIZES, refine=0, hidden=False, memory_budget=BUDGET, gradient_budget=BUDGET
    )
    return plan_sweep(
        llama(shape), [tokens], options, estimators=["greedy", "fisher"], dtype="bfloat16"
    )


def child(shape: str, tokens: int) -> dict[str, Any]:
    """`measured` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.large", "--child", "--tokens", str(tokens)]
    done = subprocess.run(
        [*command, "--shape", shape], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Compare a child's memory with the plan."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=50)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measured(SHAPES[given.shape], given.tokens)))
        return
    plan, told = planned(SHAPES[given.shape], given.tokens), child(given.shape, given.tokens)
    info(f"{as_text(plan.weights_bytes)} of weights, {told['edges']:,} edges; {told['how']}")
    info(f"TV at {SIZES}: greedy {told['tv'][0]}, fisher {told['tv'][1]}")
    info(f"largest logit difference at the full mask: {told['gap']}")
    steps = ("loading", "graph", "greedy", "fisher", "curves")
    info(", ".join(f"{step} {told[step]:.1f} s" for step in steps))
    info(f"held {as_text(int(told['peak']))}, planned {as_text(plan.peak_bytes)}")
    report("memory of a large model, of the plan", told["peak"] / plan.peak_bytes, 1, at_most=True)


if __name__ == "__main__":
    main()
