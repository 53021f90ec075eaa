"""Which nodes of a circuit matter: those that differ from what replaces them and reach the logits.

Where an ablated edge carries its value of a whole other run, a node that reads nothing else is as
in that run, so neither it nor what it would carry need be worked out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from strace_lens.circuits.graph import ComponentGraph


@dataclass(frozen=True)
class Live:
    """What matters in each row.

    Attributes:
        edges: kept, from a source that matters to a destination that does.
        sources: that differ from their replacement and reach the logits through such edges.
    """

    edges: Bool[Tensor, "row destination source"]
    sources: Bool[Tensor, "row source"]


def live_parts(
    graph: ComponentGraph, keep: Bool[Tensor, "row destination source"], *, differ: bool = False
) -> Live:
    """What matters in circuits.

    Args:
        graph: of the circuits.
        keep: edges that are kept, at some token position at least.
        differ: every source differs from what replaces it, so that all that reach the logits
            matter; otherwise only those that the embedding reaches.
    """
    feeds = graph.feeds.to(keep.device)
    kept = keep & graph.exists.to(keep.device)
    rows, first = len(keep), torch.arange(graph.sources, device=keep.device) == 0
    reached = (first | differ).expand(rows, -1).clone()
    # A block's heads come before its MLP, which may read them; so each block takes two steps.
    steps = [step for layer in range(graph.layers) for step in _steps(graph, layer)]
    for reads, writes in [] if differ else steps:
        moved = (kept[:, reads] & reached[:, None]).any(2)
        reached[:, writes] = (moved[:, :, None] & feeds[reads, writes]).any(1)
    useful = kept[:, -1].clone()
    for reads, writes in reversed(steps):
        read = (useful[:, None, writes] & reached[:, None, writes] & feeds[reads, writes]).any(2)
        kept[:, reads] &= read[:, :, None]
        useful |= kept[:, reads].any(1)
    sources = reached & useful
    return Live(kept & sources[:, None], sources)


def _steps(graph: ComponentGraph, layer: int) -> list[tuple[slice, slice]]:
    """Destinations and the sources that they feed, of a block's heads and then of its MLP."""
    inputs, heads = graph.inputs_of(layer), graph.heads_of(layer)
    steps = [(slice(inputs["q"].start, inputs["v"].stop), heads)]
    return steps + [(inputs["mlp"], slice(heads.stop, heads.stop + 1))] * graph.mlp
