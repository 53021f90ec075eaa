"""From a token graph to its trace: every edge ranked by how it is reached from the output."""

from __future__ import annotations

from strace_lens.run import MEMORY_BUDGET
from strace_lens.token_graph.best_first import best_first
from strace_lens.token_graph.graph import TokenGraph
from strace_lens.token_graph.importance import edge_importance
from strace_lens.token_graph.trace import Trace
from strace_lens.versions import versions


def extract(
    graph: TokenGraph,
    importance: str = "l1",
    *,
    seed: int = 0,
    memory_budget: int = MEMORY_BUDGET,
) -> Trace:
    """Rank every edge of a token graph by best-first search from the output node.

    Args:
        graph: the token graph of a prompt.
        importance: a key of `importance.IMPORTANCES`, or "leverage(k)".
        seed: of the random importance.
        memory_budget: bytes that an importance may take for edge vectors at a time.

    Raises:
        ValueError: an unknown importance.
    """
    scores = edge_importance(graph, importance, seed=seed, memory_budget=memory_budget)
    return Trace(
        shape=graph.shape,
        prompt=graph.prompt,
        ranks=best_first(scores, graph.shape),
        made={
            "model": graph.architecture.name,
            "importance": importance,
            "order": "best-first",
            "seed": seed,
            "versions": versions(),
        },
    )
