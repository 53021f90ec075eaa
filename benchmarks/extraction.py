"""Best-first extraction against a networkx MultiDiGraph with heapq.

Both follow the same definition (s-Trace, arXiv 2605.27033) from the same importances and must give
the same ranks. An implementation on networkx must first build its graph and ours must not, so the
claim counts the building; the ratio of the search alone is printed beside it. Times are CPU
seconds, for both run on one thread and the machine may be shared.
Run: python -m benchmarks.extraction
"""

from __future__ import annotations

import heapq
import time
from statistics import median
from typing import NamedTuple

import networkx as nx
import torch

import strace_lens as sl
from benchmarks.common import TOKENS, info, real_prompt, report, smollm2
from strace_lens.traces.best_first import best_first
from strace_lens.traces.edges import UNREACHABLE, EdgeTensors, GraphShape, edge_list

GOAL = 30
REPEATS = 5


class NetworkxExtraction(NamedTuple):
    """Flat ids of the edges in the order taken, and the CPU seconds of each half."""

    order: list[int]
    build: float
    search: float


def networkx_extraction(importance: EdgeTensors, shape: GraphShape) -> NetworkxExtraction:
    """Section 3 as one would write it with networkx and heapq."""
    began = time.process_time()
    graph = _build(importance, shape)
    built = time.process_time()
    order = _search(graph, (shape.levels - 1, shape.tokens - 1))
    return NetworkxExtraction(order, built - began, time.process_time() - built)


def _build(importance: EdgeTensors, shape: GraphShape) -> nx.MultiDiGraph:
    """The reachable edges between (level, token) nodes, keyed by flat id.

    `place` is an edge's place among the in-edges of its node: residual, MLP, then attention by
    (source token, head).
    """
    chosen = shape.reachable()
    edges = edge_list(shape, chosen)
    edge_id = chosen.flat().nonzero().squeeze(1)
    place = torch.stack(
        (
            torch.zeros_like(edges.kind),
            2 + edges.source_token * shape.heads + edges.head,
            torch.ones_like(edges.kind),
        )
    ).gather(0, edges.kind[None])[0]
    sources = zip(edges.source_level.tolist(), edges.source_token.tolist(), strict=True)
    targets = zip(edges.target_level.tolist(), edges.target_token.tolist(), strict=True)
    weight = importance.flat()[edge_id]
    values = zip(edge_id.tolist(), weight.tolist(), place.tolist(), strict=True)
    graph = nx.MultiDiGraph()
    for source, target, (key, w, p) in zip(sources, targets, values, strict=True):
        graph.add_edge(source, target, key=key, importance=w, place=p)
    return graph


def _search(graph: nx.MultiDiGraph, output: tuple[int, int]) -> list[int]:
    heap: list[tuple] = []
    reached: dict[tuple[int, int], int] = {}
    order = []

    def reach(node: tuple[int, int]) -> None:
        # Arrival, then place, orders edges as their push numbers would, without a sort.
        arrival = reached[node] = len(reached)
        for source, _, key, data in graph.in_edges(node, keys=True, data=True):
            heapq.heappush(heap, (-data["importance"], arrival, data["place"], source, key))

    reach(output)
    while heap:
        *_, source, key = heapq.heappop(heap)
        order.append(key)
        if source not in reached:
            reach(source)
    return order


def lognormal_importance(shape: GraphShape, seed: int = 0) -> EdgeTensors:
    """Random importances with a heavy tail, as measured ones have."""
    generator = torch.Generator().manual_seed(seed)
    zeros = shape.full(0.0, torch.float32)
    return zeros.map(lambda x: x.log_normal_(generator=generator))


def real_importance() -> tuple[EdgeTensors, GraphShape]:
    """Importances by l1 and shape of a real 47-token prompt on SmolLM2-135M: 298,923 edges."""
    graph = sl.token_graph(smollm2(), real_prompt(smollm2(), TOKENS))
    return sl.edge_importance(graph, "l1"), graph.shape


def compare(name: str, importance: EdgeTensors, shape: GraphShape) -> None:
    """Time both on one graph and print the two ratios.

    Raises RuntimeError if the two rank an edge differently.
    """
    ranks = best_first(importance, shape)  # compiles
    seconds = []
    for _ in range(REPEATS):
        began = time.process_time()
        best_first(importance, shape)
        seconds.append(time.process_time() - began)
    ours = median(seconds)

    theirs = networkx_extraction(importance, shape)
    expected = torch.full_like(ranks.flat(), UNREACHABLE)
    expected[theirs.order] = torch.arange(len(theirs.order), dtype=torch.int32)
    if not torch.equal(ranks.flat(), expected):
        raise RuntimeError(f"{name}: networkx and best_first rank edges differently")

    report(f"extraction, {name}", (theirs.build + theirs.search) / ours, GOAL)
    info(
        f"{shape.edges:,} edges: ours {ours:.3f} s; networkx builds in {theirs.build:.2f} s and "
        f"searches in {theirs.search:.2f} s; the search alone is {theirs.search / ours:.1f}x"
    )


def main() -> None:
    """Compare on a real prompt's graph, then on one of the size of a 7B model's."""
    compare(f"{TOKENS} tokens of SmolLM2", *real_importance())
    shape = GraphShape(layers=32, heads=32, tokens=50)
    compare("L = H = 32, T = 50", lognormal_importance(shape), shape)


if __name__ == "__main__":
    main()
