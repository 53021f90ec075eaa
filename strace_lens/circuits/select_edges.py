"""Circuits from scores: the best edges or nodes, a search from the logits, an integer program.

`Scores.top` takes edges one by one, so that some lie on no path from the embedding to the logits
and are wasted. A `Selection` may take nodes instead, walk back from the logits, or leave wasted
edges out, as the circuit track of the MIB benchmark does. The integer program of `best_connected`
wastes none: every edge that it keeps lies on a path of edges kept.
"""

from __future__ import annotations

import functools
import heapq
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.graph import EMBED
from strace_lens.circuits.scores import Scores
from strace_lens.measures.sizes import edge_count

LEVELS = ("edge", "node")
"""What is ranked and kept: edges, or nodes with all of their out-edges."""

SELECTIONS = ("top", "greedy")
"""How edges are selected: the best of all, or the best that enter what is selected already."""

SECONDS = 60.0
"""Time that the solver is given unless told otherwise."""


@dataclass(frozen=True, eq=False)
class Selection:
    """A ranking of edges or nodes, of which the first so many make a circuit.

    After `apply_topn`, `apply_greedy` and `prune` of EAP-IG's `Graph` (github.com/hannamw/EAP-IG),
    with which MIB's circuit track evaluates; ties fall in the model's order.

    Attributes:
        scores: of the edges; those of nodes give all out-edges of a node one score.
        level: one of `LEVELS`.
        how: one of `SELECTIONS`, of edges.
        connected: leave out the edges that lie on no path from the embedding to the logits.

    Raises:
        ValueError: an unknown level or selection, a greedy selection of edges by token position,
            or nodes that are to be selected greedily, connected or by scores that differ among the
            out-edges of a node.
    """

    scores: Scores
    level: str = "edge"
    how: str = "top"
    connected: bool = False

    def __post_init__(self) -> None:
        for what, name, known in (
            ("level", self.level, LEVELS),
            ("selection", self.how, SELECTIONS),
        ):
            if name not in known:
                raise ValueError(f"unknown {what} {name!r}; choose from {', '.join(known)}")
        if self.level == "node":
            if self.how == "greedy" or self.connected:
                raise ValueError(
                    "nodes are kept with all of their edges: leave out selection='greedy' and "
                    "connected=True, which choose among edges"
                )
            node_scores(self.scores)
        elif self.how == "greedy":
            _expect_no_positions(self.scores)

    @property
    def items(self) -> int:
        """Number of edges or nodes that are ranked."""
        return self.scores.graph.sources if self.level == "node" else self.scores.edges

    def order(self, *, absolute: bool) -> Int[Tensor, " item"]:
        """Flat indices of all edges, or numbers of all nodes as sources, in the order taken."""
        if self.level == "edge" and self.how == "top":
            return self.scores.order(absolute=absolute)
        return self._by_magnitude if absolute and self.scores.signed else self._by_value

    def circuit(self, size: int, *, absolute: bool) -> Circuit:
        """The circuit of the first so many edges or nodes."""
        scores = self.scores
        if self.level == "edge" and self.how == "top":
            circuit = scores.top(size, absolute=absolute)
        else:
            first = self.order(absolute=absolute)[:size]
            exists = scores.graph.exists
            if self.level == "node":
                kept = torch.zeros(scores.graph.sources, dtype=torch.bool)
                kept[first] = True
                keep = exists & kept
            else:
                keep = torch.zeros(exists.numel(), dtype=torch.bool)
                keep[first] = True
                keep = keep.view(exists.shape)
            circuit = Circuit(
                scores.graph,
                keep,
                {
                    "method": scores.method,
                    "task": scores.task,
                    "absolute": absolute,
                    **scores.metadata,
                    "level": self.level,
                    "selection": self.how,
                },
            )
        return circuit.connected() if self.connected else circuit

    @functools.cached_property
    def _by_magnitude(self) -> Int[Tensor, " item"]:
        return self._ordered(absolute=True)

    @functools.cached_property
    def _by_value(self) -> Int[Tensor, " item"]:
        return self._ordered(absolute=False)

    def _ordered(self, *, absolute: bool) -> Int[Tensor, " item"]:
        if self.how == "greedy":
            return greedy_order(self.scores, absolute=absolute)
        values = node_scores(self.scores)
        return (values.abs() if absolute else values).argsort(descending=True, stable=True)


def node_scores(scores: Scores) -> Float[Tensor, " source"]:
    """The score of each node, on the CPU, from scores that all of its out-edges share.

    Raises:
        ValueError: they do not share one; the message names a node.
    """
    _expect_no_positions(scores)
    low, high = (x.cpu() for x in scores.range_by_source())
    differs = low != high
    if bool(differs.any()):
        node = scores.graph.source_names[int(differs.nonzero()[0, 0])]
        raise ValueError(
            f"{scores.method} scores edges, and those out of {node} differ; to rank nodes, take a "
            "method that scores nodes, as attribution-patching"
        )
    return low


def greedy_order(scores: Scores, *, absolute: bool = True) -> Int[Tensor, " edge"]:
    """Flat indices of all edges in the order in which a search back from the logits takes them.

    It takes the best edge into what it has reached, at first the logits alone; the source of that
    edge, with all of its inputs, is then reached too. So every edge taken leads to the logits,
    though not every one comes from the embedding.

    Args:
        scores: of edges, alike at every token position.
        absolute: take effects by magnitude, as `Scores.top` does.

    Raises:
        ValueError: scores by token position.
    """
    _expect_no_positions(scores)
    graph, values = scores.graph, scores.values.detach().cpu()
    values = values.abs() if absolute and scores.signed else values
    ranked = values.masked_fill(~graph.exists, -torch.inf).sort(descending=True, stable=True)
    best, sources = ranked.values.tolist(), ranked.indices.tolist()
    counts = graph.exists.sum(1).tolist()
    inputs = [column.nonzero()[:, 0].tolist() for column in graph.feeds.T]
    # The best edge not yet taken into each destination reached: (-score, destination, its place).
    heap = [(-best[-1][0], graph.destinations - 1, 0)]
    reached, opened = set[int](), {graph.destinations - 1}
    taken = []
    while heap:
        _, to, place = heapq.heappop(heap)
        source = sources[to][place]
        taken.append(to * graph.sources + source)
        if place + 1 < counts[to]:
            heapq.heappush(heap, (-best[to][place + 1], to, place + 1))
        if source not in reached:
            reached.add(source)
            for other in inputs[source]:
                if other not in opened:
                    opened.add(other)
                    heapq.heappush(heap, (-best[other][0], other, 0))
    return torch.tensor(taken)


def _expect_no_positions(scores: Scores) -> None:
    if scores.values.ndim == 3:
        raise ValueError(
            "edges are selected alike at every position; sum the scores over positions"
        )


def best_connected(
    scores: Scores, size: int | float, *, absolute: bool = True, seconds: float = SECONDS
) -> Circuit:
    """The circuit of at most so many edges, each on a path, whose scores have the greatest sum.

    After the integer linear program of Nikankin et al. (2025), "BlackboxNLP-2025 MIB Shared Task:
    Improving Circuit Faithfulness via Better Edge Selection" (arXiv 2510.25786).

    An edge needs its source to be live and the node that it enters too; a node is live only if an
    edge kept enters it and one leaves it, which in a graph without cycles puts it on a path. A head
    is entered by any of its inputs, as in `Circuit.connected`.

    Args:
        scores: of edges, alike at every token position.
        size: the most edges that the circuit may have, as a number of edges (int) or a fraction of
            all edges in (0, 1] (float), rounded down.
        absolute: take effects by magnitude, as `Scores.top` does.
        seconds: that the solver may take.

    Raises:
        TypeError: a size that is a boolean or no number.
        ValueError: a size out of range, or scores by token position.
        RuntimeError: the solver found no best circuit in time.
    """
    # The solver takes half a second to import, and nothing else needs it.
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    _expect_no_positions(scores)
    graph, values = scores.graph, scores.values.detach().cpu()
    size = edge_count(size, graph.edges)
    cells = graph.exists.nonzero()
    to, source = cells.T
    edges, nodes = len(cells), graph.sources
    worth = values[to, source].double()
    worth = worth.abs() if absolute and scores.signed else worth
    every, live = torch.arange(edges), edges + torch.arange(nodes)
    # Variables are edges, then nodes. Rows say: edge <= source, edge <= nodes entered (but the
    # logits), node <= edges that enter it (but the embedding), node <= edges that leave it.
    edge, node = graph.feeds[to].nonzero().T  # the nodes that an edge enters: several of a group
    rows = [(every, every, 1.0), (every, live[source], -1.0)]
    inside = every[graph.feeds[to].any(1)]
    first = edges
    rows += [(first + inside, inside, 1.0), (first + edge, live[node], -1.0)]
    first += edges
    needs = torch.arange(nodes)[torch.arange(nodes) != graph.source_index(EMBED)]
    rows += [(first + needs, live[needs], 1.0), (first + node, edge, -1.0)]
    first += nodes
    rows += [(first + torch.arange(nodes), live, 1.0), (first + source, every, -1.0)]
    first += nodes
    row = torch.cat([part for part, _, _ in rows]).numpy()
    column = torch.cat([part for _, part, _ in rows]).numpy()
    entry = np.concatenate([np.full(len(part), value) for part, _, value in rows])
    matrix = coo_array((entry, (row, column)), shape=(first, edges + nodes)).tocsr()
    count = np.concatenate([np.ones(edges), np.zeros(nodes)])[None]
    found = milp(
        np.concatenate([-worth.numpy(), np.zeros(nodes)]),
        integrality=np.ones(edges + nodes),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(matrix, ub=0), LinearConstraint(count, ub=size)],
        options={"time_limit": seconds, "mip_rel_gap": 0.0},
    )
    if found.status != 0 or found.x is None:
        raise RuntimeError(
            f"no best circuit of {size} of {edges:,} edges was found in {seconds:g} seconds "
            f"({found.message}); give more seconds, or take Scores.top(size).connected()"
        )
    keep = torch.zeros_like(graph.exists)
    keep[to, source] = torch.from_numpy(found.x[:edges] > 0.5)
    made = {"method": scores.method, "task": scores.task, "absolute": absolute, **scores.metadata}
    return Circuit(graph, keep, {**made, "selection": "integer program"})
