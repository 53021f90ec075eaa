"""One prompt on the tiny models with weighted edges, each kind of replacement, and its references.

`oracle_weighted` is the slow truth about the same.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import strace_lens as sl
from strace_lens.traces import ablation
from strace_lens.traces.ablation import ZERO, Replacement
from strace_lens.traces.edges import EdgeTensors, GraphShape
from strace_lens.traces.rows import WeightedRows
from tests import cases, tiny

TOKENS = tiny.token_ids(5)  # longer than the sliding window
REFERENCES: dict[str, list[list[int]]] = {
    "zero": [],
    "resample": [tiny.token_ids(5, seed=1)],
    "mean": [tiny.token_ids(5, seed=1), tiny.token_ids(5, seed=2)],
}
# One of each way to write a mask: as it comes, a norm after, the pattern recomputed, no MLP.
FEW = ["llama", "gemma2", "gptj", "opt", cases.HOOKED[list(tiny.HOOKED).index("attention_only")]]
EVERY_MODEL = [
    pytest.param(name, kind, marks=[tiny.needs_hooked_transformer] if name in tiny.HOOKED else [])
    for name in [*tiny.BRIDGES, *tiny.HOOKED]
    for kind in REFERENCES
    # Resampling is a mean over one reference: a few models show it.
    if kind != "resample" or name in ("llama", "gptj", "olmo2", "attention_only")
]


@functools.cache
def graph_of(name: str) -> sl.TokenGraph:
    return sl.token_graph(cases.model_of(name), TOKENS)


def shape_of(name: str) -> GraphShape:
    return cases.shape(name, len(TOKENS))


def replacement_of(name: str, kind: str) -> Replacement:
    """The replacement of a kind by `REFERENCES`."""
    model, arch = cases.model_of(name), cases.architecture(name)
    references = [torch.tensor(r) for r in REFERENCES[kind]]
    if kind == "zero":
        return ZERO
    if kind == "resample":
        return ablation.resample(model, arch, references[0])
    return ablation.mean(model, arch, references)


def random_weights(shape: GraphShape, rows: int, seed: int = 0) -> list[EdgeTensors]:
    """Weights from 0 to 1, one half of attention and MLP edges exactly at either end.

    Residual edges keep a third at least, so that no stream is small beside the epsilon of a norm.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(x: Tensor) -> Tensor:
        return (torch.rand(x.shape, generator=generator) * 2 - 0.5).clamp(0, 1)

    drawn = [shape.full(0.0, torch.float32).map(draw) for _ in range(rows)]
    return [w._replace(residual=(1 + 2 * w.residual) / 3) for w in drawn]


def rows_of(weights: Sequence[EdgeTensors], shape: GraphShape, instead: Replacement = ZERO):
    """A row for each of the weights, which ask for gradients."""
    attention, residual, mlp = (torch.stack(w) for w in zip(*weights, strict=True))
    return WeightedRows(
        tokens=torch.tensor(TOKENS),
        shape=shape,
        attention=tuple(layer.requires_grad_() for layer in attention.unbind(1)),
        residual=residual,
        mlp=mlp.requires_grad_(),
        replacement=instead,
    )
