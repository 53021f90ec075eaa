"""Seconds and peak memory of a trace as the prompt grows, and as layers times heads grows.

Prompts are real English on SmolLM2 and random tokens on the random models. A trace here is the
token graph, the extraction by l1 and a density curve of four sizes and the full mask, without
controls. Every row of the two tables is a process of its own, so that its peak memory is its own; a
trace of a few tokens warms each up. `peak_gb` is that of the process, loading included; `above_gb`
is the trace's own peak less what was resident before it: model, libraries and compiled code. The
exponents are slopes of log-log fits to the upper half of each table.
Run: python -m benchmarks.scaling
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

import strace_lens as sl
from benchmarks.common import real_prompt, show, smollm2
from strace_lens.model.architecture import Model
from strace_lens.utils.choices import DEFAULT_MODEL as DEFAULT

TOKENS = (16, 32, 64, 128, 256, 512)
BLOCKS = ((4, 4), (8, 8), (16, 16), (32, 16))
BLOCKS_TOKENS = 128
VOCABULARY = 256
SIZES = (0.001, 0.01, 0.1, 1.0)
GOAL_GB = 2
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
    sl.density_curve(
        model, sl.extract(sl.token_graph(model, ids[:4])), sizes=SIZES, controls=False, refine=0
    )
    before, loading_peak = _memory("VmRSS"), _memory("VmHWM")
    with contextlib.suppress(OSError):  # a sandbox may forbid it: then `above` counts loading too
        Path("/proc/self/clear_refs").write_text("5")  # starts VmHWM anew
    times = [time.perf_counter()]
    graph = sl.token_graph(model, ids)
    times.append(time.perf_counter())
    trace = sl.extract(graph)
    times.append(time.perf_counter())
    sl.density_curve(model, trace, sizes=SIZES, controls=False, refine=0)
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
        peak_gb=max(peak, loading_peak) / GB,
        above_gb=(peak - before) / GB,
    )


def _memory(field: str) -> int:
    """Bytes resident now (VmRSS) or at most since the process began (VmHWM); Linux only.

    `ru_maxrss` will not do: a new process inherits the peak of the one that started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def save_tiny_llama(folder: Path, layers: int, heads: int) -> None:
    """Write a random Llama of width 64 with so many layers and heads, whose words are numbers."""
    words = {"<unk>": 0} | {str(i): i for i in range(1, VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=BLOCKS_TOKENS,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of log y over log x on the upper half of the points, three at the least."""
    first = min(len(x) // 2, max(0, len(x) - 3))
    slope, _ = np.polyfit(np.log(x[first:]), np.log(y[first:]), 1)
    return float(slope)


def cost_in_own_process(model: str | Path, ids: Sequence[int]) -> Cost:
    """Load a model in a new process, trace the prompt there and bring the cost."""
    command = [sys.executable, "-m", "benchmarks.scaling", str(model), *map(str, ids)]
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


def costs_by_tokens() -> list[Cost]:
    """Traces of prompts of growing length on SmolLM2."""
    ids = real_prompt(smollm2(), max(TOKENS))
    return [cost_in_own_process(DEFAULT, ids[:n]) for n in TOKENS]


def costs_by_blocks() -> list[Cost]:
    """Traces of one prompt on random Llamas of growing depth and number of heads."""
    ids = torch.randint(VOCABULARY, (BLOCKS_TOKENS,), generator=torch.Generator().manual_seed(0))
    costs = []
    for layers, heads in BLOCKS:
        with tempfile.TemporaryDirectory() as folder:
            save_tiny_llama(Path(folder), layers, heads)
            costs.append(cost_in_own_process(Path(folder), ids.tolist()))
    return costs


def main() -> None:
    """Print both tables and whether 512 tokens of SmolLM2 fit in the goal."""
    disable_progress_bar()
    by_tokens = costs_by_tokens()
    _print_table("scaling with the tokens T of a prompt, SmolLM2:", by_tokens, TOKENS, "T")
    _print_table(
        f"scaling with layers x heads, random Llama of width 64, {BLOCKS_TOKENS} tokens:",
        costs_by_blocks(),
        [layers * heads for layers, heads in BLOCKS],
        "L*H",
    )
    peak = by_tokens[-1].peak_gb
    verdict = "ok" if peak <= GOAL_GB else "SHORT"
    print(f"memory at T={TOKENS[-1]}: {peak:.1f} GB (goal {GOAL_GB} GB) {verdict}", flush=True)


def _one_row(name: str, *ids: str) -> None:
    model = sl.load_model(name, device="cpu")
    print(json.dumps(asdict(cost_of_trace(model, [int(i) for i in ids]))))


if __name__ == "__main__":
    _one_row(*sys.argv[1:]) if len(sys.argv) > 1 else main()
