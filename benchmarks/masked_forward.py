"""Masked forward passes against plain ones: 27 rows as one batch, and all rows of a curve.

Both run through the same model and unembed the last position only; the plain passes have no mask
hooks. In one batch they run the same rows. A curve runs masks that are equal once, and is compared
with as many plain rows as it has sizes and controls. The two take turns, and the ratio is that of
their fastest runs.
Run: python -m benchmarks.masked_forward
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

import torch

import strace_lens as sl
from benchmarks.common import info, interleaved_seconds, report, smollm2, smollm2_trace
from strace_lens.model.architecture import Model, device_of
from strace_lens.model.checks import architecture_of
from strace_lens.model.forward import byte_budget, even_chunks, last_logits, rows_per_pass
from strace_lens.traces.ablation import ZERO
from strace_lens.traces.curve_rows import curve_rows, most_rows
from strace_lens.traces.masked_run import masked_logits, passes
from strace_lens.traces.rows import MaskedRows

GOAL = 1.1
CURVE_GOALS = {False: 0.3, True: 0.5}
"""Without controls and with them."""
REPEATS = 9


class Seconds(NamedTuple):
    """Wall seconds of every run of each."""

    masked: list[float]
    plain: list[float]


def compare(model: Model, trace: sl.Trace, sizes: Sequence[float], repeats: int) -> Seconds:
    """Time both; `sizes` end with 1.

    Raises RuntimeError if the rows need more than one pass, or if at size 1 the two logits differ.
    """
    architecture = architecture_of(model)
    tokens = trace.prompt.tensor
    stop = torch.tensor([trace.edge_count(s) for s in sizes], dtype=torch.int32)
    group = MaskedRows(tokens, trace.shape, trace.ranks, torch.zeros_like(stop), stop)
    rows = tokens.expand(len(sizes), -1)
    budget = byte_budget(None, device_of(model))
    if passes(architecture, [len(tokens)] * len(sizes), budget) != 1:
        raise RuntimeError("the masked rows do not fit one pass of the default memory budget")

    both = (
        lambda: masked_logits(model, architecture, [group]),
        lambda: last_logits(model, architecture, rows),
    )
    masked, plain = (run() for run in both)  # and warms both up
    if not torch.allclose(masked[-1], plain[-1], rtol=0, atol=1e-3):
        gap = float((masked[-1] - plain[-1]).abs().max())
        raise RuntimeError(f"at size 1 masked and plain logits differ by {gap:.1e}")
    return Seconds(*interleaved_seconds(both, repeats))


def curve(model: Model, trace: sl.Trace, controls: bool, repeats: int) -> Seconds:
    """Time the rows of a curve and as many plain rows as it has sizes and controls."""
    architecture, tokens = architecture_of(model), trace.prompt.tensor
    rows = curve_rows(architecture, trace, sl.SIZES, controls=controls, replacement=ZERO, seed=0)
    asked = most_rows(sl.SIZES, controls)
    budget = byte_budget(None, device_of(model))
    chunks = list(even_chunks(asked, rows_per_pass(architecture, len(tokens), budget)))
    info(f"{len(rows)} masks differ, of {asked}")

    def plain() -> None:
        for chunk in chunks:
            last_logits(model, architecture, tokens.expand(chunk.stop - chunk.start, -1))

    both = (lambda: masked_logits(model, architecture, rows.groups), plain)
    return Seconds(*interleaved_seconds(both, repeats))


def main() -> None:
    """Compare on the 47-token trace of SmolLM2."""
    model = smollm2()
    trace = smollm2_trace()
    seconds = compare(model, trace, sl.SIZES, REPEATS)
    masked, plain = min(seconds.masked), min(seconds.plain)
    rows = f"{len(sl.SIZES)} rows of {trace.shape.tokens} tokens"
    report(f"masked forward, {rows}", masked / plain, GOAL, at_most=True)
    info(
        f"fastest of {REPEATS}: masked {masked:.3f} s, plain {plain:.3f} s; "
        f"ratio of medians {median(seconds.masked) / median(seconds.plain):.3f}x"
    )
    for controls, goal in CURVE_GOALS.items():
        seconds = curve(model, trace, controls, 3)
        added = "with all controls" if controls else "without controls"
        name = f"rows of a curve, {len(sl.SIZES)} sizes {added}"
        report(name, min(seconds.masked) / min(seconds.plain), goal, at_most=True)


if __name__ == "__main__":
    main()
