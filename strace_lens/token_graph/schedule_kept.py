"""Orders of a graph some of whose kinds of edges are never ablated: those come last.

An edge that is always there belongs to every trace, whatever its rank. What is fitted is the order
of the others, and a trace that spends none of its size on what is there anyway is the tightest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from strace_lens.token_graph.edges import EdgeTensors, GraphShape, order_of, ranks_of
from strace_lens.token_graph.schedule import schedule

FREE = 1e-6
"""What a residual column costs where residual edges are kept whole: next to nothing, in edges."""


def schedule_ablatable(
    scores: EdgeTensors,
    shape: GraphShape,
    keep: Sequence[str] = (),
    residual_cost: float | None = None,
) -> EdgeTensors:
    """Schedule edges by their scores (`schedule`), those of kinds that are never ablated last.

    The scores of attention edges that are kept decide too: they say which columns are worth
    reading. On SmolLM2 this ranks residual and MLP edges better than their own scores do, since
    what is read through a residual edge is lost as a whole when it is ablated.

    Args:
        scores: float32 in the layout of `shape`; larger is more important.
        shape: the graph's size and kind.
        keep: kinds of edges that are never ablated.
        residual_cost: as for `schedule`; residual edges that are kept cost next to nothing.

    Returns:
        int32 ranks on the CPU. With nothing kept they are those of `schedule`.
    """
    cost = FREE if "residual" in keep else residual_cost
    return kept_last(schedule(scores, shape, cost), shape, keep)


def kept_last(ranks: EdgeTensors, shape: GraphShape, keep: Sequence[str]) -> EdgeTensors:
    """The same order, but for edges of some kinds, which come last in the order that they had."""
    if not keep:
        return ranks
    order = order_of(ranks)
    kept = EdgeTensors(
        **{
            kind: torch.full_like(x, kind in keep)
            for kind, x in shape.reachable()._asdict().items()
        }
    )
    there = kept.flat()[order]
    return ranks_of(torch.cat([order[~there], order[there]]), shape)
