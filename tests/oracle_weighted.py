"""The slow truth for weights between 0 and 1: the forward pass with every edge a mixture.

In float64 from the oracle's weights, edge by edge, and differentiable by torch: an edge of weight w
carries w times its vector and 1 - w times its mean over full runs of the references (nothing, if
there are none).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.traces.edges import EdgeTensors
from tests import oracle
from tests.oracle_model import Layer

Mix = Callable[[str, Tensor], Tensor]


def weighted_logits(
    name: str,
    tokens: Sequence[int],
    weights: EdgeTensors,
    references: Sequence[Sequence[int]] = (),
) -> Float[Tensor, " vocab"]:
    """Logits after the last token."""
    model = oracle.plain(name)
    stream = model.embed(torch.tensor(tokens))
    theirs = [model.embed(torch.tensor(r)) for r in references]
    for index, layer in enumerate(model.layers):
        seen: dict[str, list[Tensor]] = {}

        def record(part: str, vectors: Tensor, seen: dict[str, list[Tensor]] = seen) -> Tensor:
            seen.setdefault(part, []).append(vectors)
            return vectors

        theirs = [_block(model.parallel, layer, r, record) for r in theirs]
        weight = {
            "attention": weights.attention[index],
            "mlp": weights.mlp[index] if len(weights.mlp) else None,
            **{f"residual {sublayer}": w for sublayer, w in enumerate(weights.residual[index])},
        }

        def mix(part: str, vectors: Tensor, seen=seen, weight=weight) -> Tensor:
            w = weight[part][..., None]
            instead = torch.stack(seen[part]).mean(0) if references else torch.zeros_like(vectors)
            return w * vectors + (1 - w) * instead

        stream = _block(model.parallel, layer, stream, mix)
    return model.unembed(stream[-1])


def _block(parallel: bool, layer: Layer, stream: Tensor, mix: Mix) -> Tensor:
    """One block; the vectors of each kind of edge pass through `mix` on their way."""
    pattern, moved, bias = oracle._attention_parts(layer, stream)
    vectors = torch.einsum("hqk,khd->hqkd", pattern, moved)
    attention = mix("attention", vectors).sum((0, 2)) + bias
    if layer.attention_post is not None:
        attention = layer.attention_post(attention)
    first = mix("residual 0", stream) + attention
    if layer.mlp is None:
        return first
    mlp, mlp_bias = oracle._mlp_edges(layer, stream if parallel else first)
    second = first if parallel else mix("residual 1", first)
    return second + mix("mlp", mlp) + mlp_bias
