"""The slow truth of a transformer without norms: a forward pass in which every edge is its own.

Written from the matrices alone, in float64, independent of TransformerLens and of the package's
patching. Tokens and positions are two sources here, `tok` and `pos`, as in the published counts;
the component graph has the one source `embed`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from strace_lens.ground_truth.weights import Weights


@dataclass(frozen=True, eq=False)
class Run:
    """Logits, and what every source wrote."""

    logits: Float[Tensor, "row pos out"]
    sources: Float[Tensor, "row source pos d_model"]


def run(
    w: Weights,
    tokens: Int[Tensor, "row pos"],
    keep: Float[Tensor, "row destination source"] | None = None,
    replaced: Float[Tensor, "row source pos d_model"] | None = None,
) -> Run:
    """Every edge carries `keep` of its source and the rest of its replacement (zero by default)."""
    rows, length = tokens.shape
    layers, heads = w.W_Q.shape[:2]
    sources = [w.W_E.double()[tokens], w.W_pos.double()[:length].expand(rows, -1, -1)]
    destination = 0

    def read() -> Tensor:
        nonlocal destination
        own = torch.stack(sources, 1)
        if keep is None:
            return own.sum(1)
        share = keep[:, destination, : own.shape[1], None, None]
        destination += 1
        other = 0 if replaced is None else replaced[:, : own.shape[1]]
        return (share * own + (1 - share) * other).sum(1)

    for layer in range(layers):
        q, k, v = (
            [read() @ W[layer, head].double() for head in range(heads)]
            for W in (w.W_Q, w.W_K, w.W_V)
        )
        written = []
        for head in range(heads):
            scores = q[head] @ k[head].transpose(1, 2) / w.W_Q.shape[3] ** 0.5
            if w.causal:
                later = torch.ones(length, length, dtype=torch.bool).triu(1)
                scores = scores.masked_fill(later, -torch.inf)
            written.append(scores.softmax(-1) @ v[head] @ w.W_O[layer, head].double())
        sources += written
        if w.W_in is not None:
            W_in, b_in, W_out, b_out = (
                w.of_layer(layer)[name].double() for name in ("W_in", "b_in", "W_out", "b_out")
            )
            sources.append((read() @ W_in + b_in).relu() @ W_out + b_out)
    return Run(read() @ w.W_U.double(), torch.stack(sources, 1))


def writers(w: Weights) -> list[Float[Tensor, "_ d_model"]]:
    """Rows of which everything that a source can write is a sum (biases of MLPs aside)."""
    found = [w.W_E.double(), w.W_pos.double()]
    for layer in range(len(w.W_O)):
        found += list(w.W_V[layer].double() @ w.W_O[layer].double())
        if w.W_out is not None:
            found.append(w.W_out[layer].double())
    return found


def split(keep: Tensor) -> Float[Tensor, "*batch destination source"]:
    """A mask of the component graph for `run`: tokens and positions go where `embed` goes."""
    return torch.cat([keep[..., :1], keep], -1).double()


def merged(keep: Bool[Tensor, "destination source"]) -> Bool[Tensor, "destination source"]:
    """The component graph's mask of a mask over `tok` and `pos`."""
    return torch.cat([keep[:, :2].any(1, keepdim=True), keep[:, 2:]], 1)


def exists(w: Weights) -> Bool[Tensor, "destination source"]:
    """Which pairs of destination and source, tokens and positions apart, are edges."""
    layers, heads = w.W_Q.shape[:2]
    mlp = w.W_in is not None
    rows = []
    total = 2 + layers * (heads + mlp)
    for layer in range(layers):
        before = 2 + layer * (heads + mlp)
        rows += [before] * (3 * heads) + [before + heads] * mlp
    return torch.arange(total) < torch.tensor([*rows, total])[:, None]


def largest_change(
    w: Weights,
    tokens: Int[Tensor, "row pos"],
    keep: Float[Tensor, "destination source"],
    replaced: Float[Tensor, "row source pos d_model"] | None = None,
) -> float:
    """Largest change of an output behind the first position, by one mask on all rows."""
    full = run(w, tokens).logits
    cut = run(w, tokens, keep.double().expand(len(tokens), -1, -1), replaced).logits
    return float((cut - full)[:, 1:].abs().max())
