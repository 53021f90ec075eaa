"""What the benchmarks share: the model, a real prompt, interleaved timing, and what they print."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from statistics import median
from typing import Any

import pandas as pd
import torch

import strace_lens as sl
from strace_lens.model.architecture import Model

TOKENS = 47


_devices = [torch.device("cpu")]


def use(device: str) -> None:
    """Put the models of the benchmarks on a device; to be called before any of them is made."""
    _devices[0] = torch.device(device)


def device() -> torch.device:
    """The device of the models: the CPU, unless `use` said otherwise."""
    return _devices[0]


def synchronize() -> None:
    """Wait until the device has done what it was given."""
    if device().type == "cuda":
        torch.cuda.synchronize()


@functools.cache
def smollm2() -> Model:
    """SmolLM2-135M in float32 on the device of the benchmarks, loaded once a process."""
    return sl.load_model(device=str(device()))


@functools.cache
def smollm2_trace() -> sl.Trace:
    """The trace by l1 of the 47-token prompt on SmolLM2-135M, made once a process."""
    model = smollm2()
    return sl.extract(sl.token_graph(model, real_prompt(model, TOKENS)))


def real_prompt(model: Model, tokens: int) -> list[int]:
    """The first so many tokens of the English page that the package carries, as ids.

    Raises:
        ValueError: the page has fewer tokens.
    """
    tokenizer: Any = model.tokenizer
    text = files("strace_lens").joinpath("data/reference.txt").read_text("utf-8")
    ids = [int(i) for i in tokenizer(text).input_ids]
    if len(ids) < tokens:
        raise ValueError(f"reference.txt has {len(ids)} tokens; {tokens} were asked for")
    return ids[:tokens]


def interleaved_seconds(
    functions: Sequence[Callable[[], object]], repeats: int
) -> list[list[float]]:
    """Wall seconds of each function, `repeats` times, taking turns.

    Turns and an order that reverses each round spread a busy machine's slow moments over all.
    """
    seconds: list[list[float]] = [[] for _ in functions]
    order = list(range(len(functions)))
    for _ in range(repeats):
        for i in order:
            began = time.perf_counter()
            functions[i]()
            synchronize()
            seconds[i].append(time.perf_counter() - began)
        order.reverse()
    return seconds


def fastest(functions: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Seconds of the fastest run of each, taking turns; prints them with their medians."""
    seconds = interleaved_seconds(functions, repeats)
    info("fastest (median), s: " + ", ".join(f"{min(s):.3f} ({median(s):.3f})" for s in seconds))
    return [min(s) for s in seconds]


def report(name: str, ratio: float, goal: float, at_most: bool = False, *, unit: str = "x") -> None:
    """Print one line, `NAME: 31.4x (goal 30x) ok`, or `SHORT` where the goal is missed.

    The goal is a lower bound of the ratio, or with `at_most` an upper bound. NaN misses both.
    `unit` follows both numbers where they are no ratios.
    """
    met = ratio <= goal if at_most else ratio >= goal
    digits = 1 if ratio >= 10 else 2
    bound = "at most " if at_most else ""
    verdict = "ok" if met else "SHORT"
    print(f"{name}: {ratio:.{digits}f}{unit} (goal {bound}{goal:g}{unit}) {verdict}", flush=True)


def info(text: str) -> None:
    """Print a line that states no goal, indented under the benchmark's own."""
    print(f"  {text}", flush=True)


def show(table: pd.DataFrame) -> None:
    """Print a table, indented, floats to three digits."""
    for line in table.to_string(index=False, float_format="{:.3g}".format).splitlines():
        info(line)
