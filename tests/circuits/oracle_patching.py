"""The slow truth of patching: what each destination reads, summed source by source, in float64.

Independent of the package and of hooks, on the plain matrices of `oracle_model`. Each q, k and v of
each head, each MLP and the logits have a stream of their own: what belongs to no source (b_O, the
bias of a norm after attention) and of every earlier source a share of its own output and a share of
its replacement. Nothing is taken as a difference from a run, and norms stand where the model has
them, before the weights.

Sources and destinations go by name, so that the package's numbering is put to the test too.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.circuits.graph import ComponentGraph
from tests import oracle
from tests.oracle_model import Attention, Layer, Model, Rows

Outputs = Mapping[str, Rows]
Keep = Mapping[tuple[str, str], Tensor]  # (destination, source): one number, or one a position


@dataclass(frozen=True)
class Patched:
    """What every source wrote in a patched run, and the logits at every position."""

    outputs: dict[str, Rows]
    logits: Float[Tensor, "pos vocab"]


@dataclass
class _Stream:
    """What has been written so far, source by source."""

    outputs: dict[str, Rows]
    nobodys: Rows
    keep: Keep
    replaced: Outputs

    def read_by(self, destination: str) -> Rows:
        total = self.nobodys.clone()
        for source, own in self.outputs.items():
            share = self.keep.get((destination, source))
            if share is None:
                total = total + own
            else:
                share = share.reshape(-1, 1)
                total = total + share * own + (1 - share) * self.replaced[source]
        return total


def patched_run(model: Model, tokens: list[int], keep: Keep, replaced: Outputs) -> Patched:
    """One prompt; an edge that `keep` does not name is kept."""
    embedding = model.embed(torch.tensor(tokens))
    stream = _Stream({"embed": embedding}, torch.zeros_like(embedding), keep, replaced)
    for index, layer in enumerate(model.layers):
        heads, nobodys = _heads(layer, index, stream)
        if model.parallel:
            mlp = _mlp(layer, stream.read_by(f"m{index}"))
        for head, rows in enumerate(heads):
            stream.outputs[f"a{index}.h{head}"] = rows
        stream.nobodys = stream.nobodys + nobodys
        if not model.parallel and layer.mlp is not None:
            mlp = _mlp(layer, stream.read_by(f"m{index}"))
        if layer.mlp is not None:
            stream.outputs[f"m{index}"] = mlp
    logits = torch.stack([model.unembed(row) for row in stream.read_by("logits")])
    return Patched(stream.outputs, logits)


def full_run(model: Model, tokens: list[int]) -> Patched:
    """The untouched model."""
    return patched_run(model, tokens, {}, {})


def by_name(
    graph: ComponentGraph, keep: Tensor, dtype: torch.dtype = torch.float64
) -> dict[tuple[str, str], Tensor]:
    """A mask `[destination, source]`, positions behind or not, by the names of its edges."""
    keep = keep.to(dtype)
    pairs = itertools.product(range(graph.destinations), range(graph.sources))
    return {(graph.destination_names[d], graph.source_names[s]): keep[d, s] for d, s in pairs}


def mean_outputs(runs: list[Patched]) -> Outputs:
    """The mean of every source's output over runs of prompts of one length, by position."""
    return {
        name: torch.stack([run.outputs[name] for run in runs]).mean(0) for name in runs[0].outputs
    }


def zero_outputs(run: Patched) -> Outputs:
    """Zeros for every source."""
    return {name: torch.zeros_like(rows) for name, rows in run.outputs.items()}


def _heads(layer: Layer, index: int, stream: _Stream) -> tuple[list[Rows], Rows]:
    """What every head adds to the stream, and what attention adds that is no head's."""
    attention = layer.attention
    heads, groups = len(attention.W_O), len(attention.key.weight)
    kv = "h" if heads == groups else "kv"

    def normed(destination: str) -> Rows:
        read = stream.read_by(destination)
        return read if layer.attention_norm is None else layer.attention_norm(read)

    def placed(destination: str) -> Rows:
        x = normed(destination)
        return x if attention.positions is None else x + attention.positions[: len(x)]

    queries = [attention.query(placed(f"a{index}.h{h}<q>"))[:, h] for h in range(heads)]
    keys = [attention.key(placed(f"a{index}.{kv}{g}<k>"))[:, g] for g in range(groups)]
    values = [
        attention.clipped(attention.value(normed(f"a{index}.{kv}{g}<v>"))[:, g])
        for g in range(groups)
    ]
    pattern = _pattern(attention, torch.stack(queries, 1), torch.stack(keys, 1))
    written = [pattern[h] @ values[h * groups // heads] @ attention.W_O[h] for h in range(heads)]
    nobodys = attention.b_O.expand_as(written[0])
    norm = layer.attention_post
    if norm is None:
        return written, nobodys
    total = torch.stack(written).sum(0) + nobodys
    return (
        [norm.linearised(rows, at=total) for rows in written],
        norm.linearised(nobodys, at=total) + norm.bias,
    )


def _pattern(attention: Attention, queries: Tensor, keys: Tensor) -> Tensor:
    """The pattern of queries and keys that were worked out head by head."""
    ready = replace(attention, query=lambda x: queries, key=lambda x: keys)
    return oracle._pattern(ready, queries[:, 0])


def _mlp(layer: Layer, read: Rows) -> Rows:
    """The whole of what the MLP adds to the stream, its bias included."""
    assert layer.mlp is not None
    out = layer.mlp(read if layer.mlp_norm is None else layer.mlp_norm(read))
    return out if layer.mlp_post is None else layer.mlp_post(out)
