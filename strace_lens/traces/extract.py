"""From a token graph to its trace: every edge ranked by a search from the output."""

from __future__ import annotations

from collections.abc import Callable

from strace_lens.model.hold import verb
from strace_lens.traces.best_first import best_first
from strace_lens.traces.edges import EdgeTensors, GraphShape, zero_out_of_reach_
from strace_lens.traces.graph import TokenGraph
from strace_lens.traces.importance import edge_importance
from strace_lens.traces.schedule import schedule
from strace_lens.traces.trace import Trace
from strace_lens.utils.versions import versions

ORDERS: dict[str, Callable[[EdgeTensors, GraphShape], EdgeTensors]] = {
    "best-first": best_first,
    "scheduled": schedule,
}


@verb
def extract(
    graph: TokenGraph,
    importance: str = "l1",
    *,
    order: str = "best-first",
    seed: int = 0,
    memory_budget: int | None = None,
) -> Trace:
    """Rank every edge of a token graph by a search from the output down.

    Args:
        graph: the token graph of a prompt.
        importance: a key of `importance.IMPORTANCES`, or "leverage(k)".
        order: "best-first", the paper's search; or "scheduled", which scores only attention and
            MLP edges and adds the residual edges that they need (`schedule`).
        seed: seed of the random importance.
        memory_budget: as for `edge_importance`.

    Raises:
        ValueError: an unknown importance or order.

    Example:
        >>> trace = sl.extract(graph)
        >>> trace.to_pandas(0.01)[["kind", "layer", "head", "source_token", "target_token"]]
    """
    if order not in ORDERS:
        raise ValueError(f"unknown order {order!r}; choose from {', '.join(ORDERS)}")
    scores = edge_importance(graph, importance, seed=seed, memory_budget=memory_budget)
    ranks = ORDERS[order](scores, graph.shape)
    zero_out_of_reach_(scores, graph.shape)  # a copy would be as large as the graph
    return Trace(
        shape=graph.shape,
        prompt=graph.prompt,
        ranks=ranks,
        metadata={
            "model": graph.architecture.name,
            "weights": graph.weights,
            "importance": importance,
            "order": order,
            "seed": seed,
            "versions": versions(),
        },
        importance=scores,
    )
