"""Seconds and peak memory of a trace as the prompt grows, and as layers times heads grows.

A trace here is the token graph, the extraction by l1 and a density curve of four sizes and the full
mask, without controls. Every row of the two tables is a process of its own, so that its peak memory
is its own; a trace of a few tokens warms each up. `above` is the peak less what was resident before
the trace began: model, libraries and compiled code. The exponents are slopes of log-log fits to the
upper half of each table.
Run: python -m benchmarks.scaling
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

import strace_lens as sl
from benchmarks.common import real_prompt, show, smollm2
from strace_lens.architecture import Model

TOKENS = (16, 32, 64, 128, 256, 512)
BLOCKS = ((4, 4), (8, 8), (16, 16), (32, 16))
BLOCKS_TOKENS = 128
SIZES = (0.001, 0.01, 0.1, 1.0)
GOAL_GB = 8
GB = 1e9


@dataclass(frozen=True)
class Cost:
    """What one trace cost: wall seconds by stage, and memory in GB."""

    tokens: int
    layers: int
    heads: int
    edges: int
    graph: float
    extract: float
    curve: float
    seconds: float
    peak_gb: float
    above_gb: float


def cost_of_trace(model: Model, ids: Sequence[int]) -> Cost:
    """Trace a prompt once, after a small one to warm up."""
    sl.density_curve(model, sl.extract(sl.token_graph(model, ids[:4])), sizes=SIZES, controls=False)
    before = _memory("VmRSS")
    times = [time.perf_counter()]
    graph = sl.token_graph(model, ids)
    times.append(time.perf_counter())
    trace = sl.extract(graph)
    times.append(time.perf_counter())
    sl.density_curve(model, trace, sizes=SIZES, controls=False)
    times.append(time.perf_counter())
    peak = _memory("VmHWM")
    stages = np.diff(times).tolist()
    shape = trace.shape
    return Cost(
        shape.tokens,
        shape.layers,
        shape.heads,
        shape.edges,
        *stages,
        seconds=sum(stages),
        peak_gb=peak / GB,
        above_gb=(peak - before) / GB,
    )


def _memory(field: str) -> int:
    """Bytes resident now (VmRSS) or at most since the process began (VmHWM); Linux only.

    `ru_maxrss` will not do: a new process inherits the peak of the one that started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def tiny_llama(layers: int, heads: int) -> Model:
    """A random Llama of width 64 with so many layers and heads."""
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=BLOCKS_TOKENS,
        attn_implementation="eager",
    )
    config.architectures = ["LlamaForCausalLM"]
    torch.manual_seed(0)
    hf = LlamaForCausalLM(config).float().eval()
    bridge = TransformerBridge.boot_transformers(
        f"llama-{layers}x{heads}", hf_model=hf, tokenizer=None
    )
    bridge.enable_compatibility_mode(no_processing=True)
    return bridge


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of log y over log x on the upper half of the points, three at the least."""
    first = min(len(x) // 2, max(0, len(x) - 3))
    slope, _ = np.polyfit(np.log(x[first:]), np.log(y[first:]), 1)
    return float(slope)


def _in_own_process(*arguments: str) -> Cost:
    command = [sys.executable, "-m", "benchmarks.scaling", *arguments]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def _print_table(title: str, costs: Sequence[Cost], x: Sequence[float], x_name: str) -> None:
    table = pd.DataFrame([asdict(c) for c in costs])
    print(title, flush=True)
    show(table)
    fits = {
        name: exponent(x, table[name].tolist())
        for name in ("edges", "graph", "extract", "curve", "seconds", "above_gb")
    }
    show(pd.DataFrame([{"exponent of": x_name, **fits}]))


def main() -> None:
    """Print both tables and whether 512 tokens of SmolLM2 fit in 8 GB."""
    parser = argparse.ArgumentParser(description="one row of a table, as JSON")
    parser.add_argument("--tokens", type=int, help="of SmolLM2's prompt")
    parser.add_argument("--blocks", type=int, nargs=2, help="layers and heads of a random Llama")
    chosen = parser.parse_args()
    if chosen.tokens:
        model = smollm2()
        print(json.dumps(asdict(cost_of_trace(model, real_prompt(model, chosen.tokens)))))
    elif chosen.blocks:
        ids = [i * 37 % 256 for i in range(BLOCKS_TOKENS)]
        print(json.dumps(asdict(cost_of_trace(tiny_llama(*chosen.blocks), ids))))
    else:
        _all_tables()


def _all_tables() -> None:
    by_tokens = [_in_own_process("--tokens", str(n)) for n in TOKENS]
    _print_table("scaling with the tokens T of a prompt, SmolLM2:", by_tokens, TOKENS, "T")
    by_blocks = [_in_own_process("--blocks", str(n), str(h)) for n, h in BLOCKS]
    _print_table(
        f"scaling with layers x heads, random Llama of width 64, {BLOCKS_TOKENS} tokens:",
        by_blocks,
        [n * h for n, h in BLOCKS],
        "L*H",
    )
    peak = by_tokens[-1].peak_gb
    verdict = "ok" if peak <= GOAL_GB else "SHORT"
    print(f"memory at T={TOKENS[-1]}: {peak:.1f} GB (goal {GOAL_GB} GB) {verdict}", flush=True)


if __name__ == "__main__":
    main()
