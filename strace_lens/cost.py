"""What a density curve will cost, told before anything runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from strace_lens.architecture import Model, device_of
from strace_lens.contract import architecture_of
from strace_lens.hold import verb
from strace_lens.refinement import REFINE
from strace_lens.run import MEMORY_BUDGET, bytes_per_row, rows_per_pass
from strace_lens.sizes import SIZES
from strace_lens.token_graph.curve_rows import most_rows
from strace_lens.token_graph.masked_run import passes


@dataclass(frozen=True)
class Plan:
    """What a density curve will cost at the most: rows, passes, bytes of a pass, rough seconds."""

    rows: int
    passes: int
    bytes: int
    seconds: float


@verb
def plan(
    model: Model,
    tokens: int,
    *,
    sizes: Sequence[float] = SIZES,
    refine: int = REFINE,
    controls: bool = True,
    memory_budget: int = MEMORY_BUDGET,
) -> Plan:
    """What `density_curve` would cost for a prompt of so many tokens, without running the model.

    Seconds come from the multiply-adds of the rows and the speed of a matrix product timed here
    (a fifth of a second); half of that speed is what a whole forward pass reaches.
    """
    architecture = architecture_of(model)
    rows = most_rows(sizes, controls, refine)
    at_once = min(rows, rows_per_pass(architecture, tokens, memory_budget))
    weights = sum(p.numel() for p in cast(Any, model).parameters())
    embedding = architecture.d_vocab * architecture.d_model
    flops = 2 * rows * (tokens * max(weights - embedding, embedding) + embedding)
    return Plan(
        rows=rows,
        # Every size that is added may be a round of its own.
        passes=passes(architecture, [tokens] * (rows - refine), memory_budget) + refine,
        bytes=at_once * bytes_per_row(architecture, tokens),
        seconds=2 * flops / _matmul_flops_per_second(device_of(model)),
    )


def _matmul_flops_per_second(device: torch.device, seconds: float = 0.2) -> float:
    a = torch.ones(512, 512, device=device)
    products, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        (a @ a)[0, 0].item()  # waits for the device
        products += 1
    return products * 2 * 512**3 / (time.perf_counter() - begin)
