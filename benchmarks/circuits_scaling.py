"""Seconds and memory of EAP and of edge-masked runs as heads, layers and tokens grow.

Random GPT-2s with heads of 32 dimensions and a small vocabulary; one size grows at a time. EAP
scores four pairs, a masked run measures eight random circuits on one pair. The edges grow
as the square of layers times heads. Exponents are slopes of log-log fits to the upper half of each
table. Memory is what a run adds to the process at its peak.
Run: python -m benchmarks.circuits_scaling
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pandas as pd

from benchmarks.circuits_attribution import eap, peak_megabytes
from benchmarks.circuits_masked import SOME, masked, random_masks, ready
from benchmarks.circuits_models import gpt2_shape, random_task
from benchmarks.common import interleaved_seconds, show
from benchmarks.scaling import exponent

LAYERS, HEADS, TOKENS = (2, 4, 8, 16, 24), (2, 4, 8, 16, 24), (8, 16, 32, 64, 128)
D_HEAD, VOCABULARY, PAIRS = 32, 512, 4
REPEATS = 3


@dataclass(frozen=True)
class Cost:
    """Wall seconds, fastest of a few, and MB."""

    layers: int
    heads: int
    tokens: int
    edges: int
    eap: float
    eap_mb: float
    masked: float
    masked_mb: float


def cost(layers: int, heads: int, tokens: int) -> Cost:
    """Of one size; both have run once before they are timed."""
    model = gpt2_shape(layers, heads, D_HEAD, VOCABULARY)
    scores = eap(model, random_task(model, PAIRS, tokens))
    experiment = ready(model, tokens)
    runs = scores, masked(experiment, random_masks(experiment.graph, SOME))
    memory = [peak_megabytes(run) for run in runs]
    seconds = [min(s) for s in interleaved_seconds(runs, REPEATS)]
    return Cost(
        layers,
        heads,
        tokens,
        experiment.graph.edges,
        eap=seconds[0],
        eap_mb=memory[0],
        masked=seconds[1],
        masked_mb=memory[1],
    )


def print_table(title: str, costs: Sequence[Cost], growing: str) -> None:
    """The costs, and their exponents in what grows."""
    table = pd.DataFrame([asdict(c) for c in costs])
    print(title, flush=True)
    show(table)
    x = table[growing].tolist()
    fits = {
        name: exponent(x, table[name].clip(lower=1e-9).tolist())
        for name in ("edges", "eap", "eap_mb", "masked", "masked_mb")
    }
    show(pd.DataFrame([{"exponent of": growing, **fits}]))


def main() -> None:
    """Print a table for layers, for heads and for tokens."""
    by_layers = [cost(layers, 4, 16) for layers in LAYERS]
    print_table("component graph, scaling with layers (4 heads, 16 tokens):", by_layers, "layers")
    by_heads = [cost(4, heads, 16) for heads in HEADS]
    print_table("component graph, scaling with heads (4 layers, 16 tokens):", by_heads, "heads")
    by_tokens = [cost(4, 8, tokens) for tokens in TOKENS]
    print_table("component graph, scaling with tokens (4 layers, 8 heads):", by_tokens, "tokens")


if __name__ == "__main__":
    main()
