"""What `plan` tells of a density curve, in bytes and seconds, against what the curve takes.

Every row is a process of its own, warmed up by a short prompt: a graph is read, ranked greedily and
measured at a few sizes with all controls. Bytes are the peak of the resident set above what was
held before; seconds are those of the curve, which are what the plan tells. SmolLM2 reads real
English, the random models random tokens.
Run: python -m benchmarks.plan
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import strace_lens as sl
from benchmarks.common import real_prompt, report, show, smollm2
from benchmarks.random_models import LLAMA_SMALL, TINY, llama, random_ids, random_model
from strace_lens.model.architecture import Model
from strace_lens.utils.peak_memory import peak_memory

ROOT = Path(__file__).resolve().parents[1]
SIZES = (0.01, 0.1, 0.4, 0.8, 1.0)
WIDE = {**LLAMA_SMALL, "hidden_size": 1024, "num_hidden_layers": 4, "intermediate_size": 4096}
LONGEST = {**TINY, "num_hidden_layers": 8, "max_position_embeddings": 1024}
RANDOM = {"small": LLAMA_SMALL, "wide": WIDE, "long": LONGEST}
CASES = (
    *(("smollm2", tokens) for tokens in (16, 64, 256)),
    *(("small", tokens) for tokens in (32, 128)),
    *(("wide", tokens) for tokens in (32, 128)),
    ("long", 512),
)
BYTES_GOAL, SECONDS_GOAL = 1.3, 2


def prepared(name: str, tokens: int) -> tuple[Model, list[int]]:
    """A model and a prompt for it."""
    if name == "smollm2":
        return smollm2(), real_prompt(smollm2(), tokens)
    shape = RANDOM[name]
    return random_model(llama(shape), torch.float32), random_ids(shape["vocab_size"], tokens)


def told_and_taken(name: str, tokens: int) -> dict[str, Any]:
    """Bytes and seconds that the plan tells and that the work takes, in this process."""
    model, ids = prepared(name, tokens)
    curve_of(model, ids[:4])
    plan = sl.plan(model, tokens, sizes=SIZES, refine=0)
    with peak_memory(torch.device("cpu")) as peak:
        seconds = curve_of(model, ids)
    return {
        "model": name,
        "tokens": tokens,
        "rows": plan.rows,
        "planned_mb": plan.peak_bytes / 1e6,
        "taken_mb": peak.bytes / 1e6,
        "bytes_ratio": plan.peak_bytes / peak.bytes,
        "planned_s": plan.seconds,
        "taken_s": seconds,
        "seconds_ratio": plan.seconds / seconds,
    }


def curve_of(model: Model, ids: list[int]) -> float:
    """Seconds of the curve alone, its graph read and ranked before."""
    trace = sl.extract(sl.token_graph(model, ids))
    began = time.perf_counter()
    sl.density_curve(model, trace, sizes=SIZES, refine=0)
    return time.perf_counter() - began


def in_own_process(name: str, tokens: int) -> dict[str, Any]:
    """`told_and_taken` in a new process."""
    command = [sys.executable, "-m", "benchmarks.plan", name, str(tokens)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print the table and how far apart the plan and the work are at the most."""
    table = pd.DataFrame([in_own_process(*case) for case in CASES])
    show(table)
    for what, goal in (("bytes", BYTES_GOAL), ("seconds", SECONDS_GOAL)):
        ratio = table[f"{what}_ratio"]
        furthest = float(pd.concat([ratio, 1 / ratio]).max())
        report(f"{what} of the plan against those taken, at the most", furthest, goal, at_most=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(told_and_taken(sys.argv[1], int(sys.argv[2]))))
    else:
        main()
