"""Curves for the explorer: a tiny model's, and a trace of SmolLM2's shape over 64 tokens."""

from __future__ import annotations

import dataclasses
import functools

import torch

from strace_lens.density.curve import DensityCurve
from strace_lens.model.prompts import Prompt
from strace_lens.model.targets import Target
from strace_lens.traces.edges import GraphShape
from strace_lens.traces.lens import MOST_ATTENTION, SHOWN, WRITTEN, Lens
from strace_lens.traces.trace import Trace
from tests.cases import random_ranks
from tests.plot import made


@functools.cache
def large_curve(tokens: int = 64) -> DensityCurve:
    """The measures of a tiny model over a trace as large as SmolLM2's, ranks and all random.

    Random ids and importances compress worst.
    """
    shape = GraphShape(layers=30, heads=9, tokens=tokens)
    strings = tuple(f" token{i}" for i in range(tokens))
    generator = torch.Generator().manual_seed(0)
    importance = shape.full(0.0, torch.float32).map(
        lambda x: torch.rand(x.shape, generator=generator)
    )
    trace = Trace(
        shape=shape,
        prompt=Prompt("".join(strings), tuple(range(tokens)), strings),
        ranks=random_ranks(shape, 0),
        metadata={**made.curve().trace.metadata, "model": "a/model-of-SmolLM2's-shape"},
        importance=importance,
    )
    table = made.curve().table
    edges = [trace.edge_count(size) for size in table["size"]]
    return dataclasses.replace(made.curve(), trace=trace, table=table.assign(edges=edges))


def large_lens(tokens: int = 64) -> Lens:
    """A lens of that prompt whose numbers, words and attention are random."""
    curve, generator = large_curve(tokens), torch.Generator().manual_seed(1)
    shape, prompt = curve.trace.shape, curve.trace.prompt
    ids = torch.randint(50_000, (shape.levels, tokens, SHOWN), generator=generator)
    written = torch.randint(50_000, (shape.layers, 10, 2 * WRITTEN), generator=generator)
    square = (shape.layers, shape.heads, tokens, tokens)
    whole = shape.layers * shape.heads * tokens * (tokens + 1) // 2 <= MOST_ATTENTION
    queries = slice(None) if whole else slice(-1, None)
    return Lens(
        shape=shape,
        prompt=prompt,
        model=curve.trace.metadata["model"],
        weights=curve.trace.metadata["weights"],
        target=Target((1,), (), (" Rome",), ()),
        capped=False,
        words={i: f" token{i}" for i in torch.cat([ids.flatten(), written.flatten()]).tolist()},
        logits=torch.randn(shape.levels, generator=generator),
        heads=torch.randn(shape.layers, shape.heads, tokens, generator=generator),
        mlps=torch.randn(shape.layers, generator=generator),
        ids=ids,
        probabilities=torch.rand(ids.shape, generator=generator),
        written=written,
        added=torch.randn(written.shape, generator=generator),
        pattern=torch.randn(square, generator=generator).tril().softmax(-1)[:, :, queries],
    )
