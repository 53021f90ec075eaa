"""Circuits from scores: the best edges or nodes, a search from the logits, an integer program.

`Scores.top` takes edges one by one, so that some lie on no path from the embedding to the logits
and are wasted. A `Selection` may take nodes instead, walk back from the logits, or leave wasted
edges out, as the circuit track of the MIB benchmark does. The integer program of `best_connected`
wastes none: every edge that it keeps lies on a path of edges kept. `ratio_order` lies between the
rankings by sign and by magnitude.
"""

from __future__ import annotations

import functools
import heapq
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.integer_program import best_edges
from strace_lens.circuits.scores import Scores
from strace_lens.measures.sizes import edge_count

LEVELS = ("edge", "node")
"""What is ranked and kept: edges, or nodes with all of their out-edges."""

SELECTIONS = ("top", "greedy", "ratio", "program")
"""How edges are selected: the best of all, the best that enter what is selected already, a share of
them by sign and the rest by magnitude, or the connected circuit of the greatest sum."""

POSITIVE_SHARE = 0.5
"""Share of the edges that "ratio" takes by sign unless told otherwise."""

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
        how: one of `SELECTIONS`, of edges; "ratio:0.7" takes a share of 0.7 by sign, see
            `ratio_order`.
        connected: leave out the edges that lie on no path from the embedding to the logits.

    Raises:
        ValueError: an unknown level or selection, edges by token position that are to be selected
            by more than their rank, a ratio of scores that are not effects or outside [0, 1], or
            nodes that are to be selected as edges are, connected, or by scores that differ among
            the out-edges of a node.
    """

    scores: Scores
    level: str = "edge"
    how: str = "top"
    connected: bool = False

    def __post_init__(self) -> None:
        for what, name, known in (
            ("level", self.level, LEVELS),
            ("selection", self._kind, SELECTIONS),
        ):
            if name not in known:
                raise ValueError(f"unknown {what} {name!r}; choose from {', '.join(known)}")
        if self.level == "node":
            if self.how != "top" or self.connected:
                raise ValueError(
                    f"nodes are kept with all of their edges: leave out selection={self.how!r} and "
                    "connected=True, which choose among edges"
                )
            node_scores(self.scores)
        elif self.how != "top":
            _expect_no_positions(self.scores)
        if self._kind == "ratio":
            self._expect_ratio()

    @property
    def _kind(self) -> str:
        return "ratio" if self.how.startswith("ratio:") else self.how

    @property
    def _positive_share(self) -> float:
        return float(self.how.partition(":")[2] or POSITIVE_SHARE)

    def _expect_ratio(self) -> None:
        try:
            sound = 0 <= self._positive_share <= 1
        except ValueError:
            sound = False
        if not sound:
            raise ValueError(
                f"the share of edges by sign must be a number in [0, 1], as 'ratio:0.7'; got "
                f"{self.how!r}"
            )
        if not self.scores.signed:
            raise ValueError(
                f"the scores of {self.scores.method} have no sign, only an order: select by 'top', "
                "'greedy' or 'program'"
            )

    @property
    def items(self) -> int:
        """Number of edges or nodes that are ranked."""
        return self.scores.graph.sources if self.level == "node" else self.scores.edges

    def order(self, *, absolute: bool) -> Int[Tensor, " item"]:
        """Flat indices of all edges, or numbers of all nodes as sources, in the order taken.

        The circuits of "program" are not nested, so they have no order.
        """
        if self.level == "edge" and self.how == "top":
            return self.scores.order(absolute=absolute)
        return self._by_magnitude if absolute and self.scores.signed else self._by_value

    def same_by_sign(self, size: int) -> bool:
        """Whether the rankings by sign and by magnitude give one circuit of so many items."""
        if not self.scores.signed or size in (0, self.items):
            return True
        if self.how == "program":
            return False
        by_magnitude, by_sign = (self.order(absolute=a)[:size] for a in (True, False))
        return torch.equal(by_magnitude.sort().values, by_sign.sort().values)

    def circuit(self, size: int, *, absolute: bool) -> Circuit:
        """The circuit of the first so many edges or nodes."""
        scores = self.scores
        if self.level == "edge" and self.how == "top":
            circuit = scores.top(size, absolute=absolute)
        elif self.how == "program":
            circuit = best_connected(scores, size, absolute=absolute)
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
        if self._kind == "ratio":
            return ratio_order(self.scores, self._positive_share)
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


def ratio_order(scores: Scores, share: float = POSITIVE_SHARE) -> Int[Tensor, " edge"]:
    """Flat indices of all edges, in an order that takes a share by sign and the rest by magnitude.

    After the positive-negative ratio of Nikankin et al. (2025, arXiv 2510.25786): a circuit of n
    edges has the floor(share * n) edges with the highest positive scores and, of the others, those
    of largest magnitude. Each such circuit contains the smaller ones, so they define an order: a
    share of 0 gives the order by magnitude; with 1, every edge that helps comes first.

    Args:
        scores: effects, the same at every token position.
        share: the share chosen by sign, in [0, 1].

    Raises:
        ValueError: the scores differ by token position.
    """
    _expect_no_positions(scores)
    by_magnitude = scores.order(absolute=True).tolist()
    positive = scores.values.detach().flatten().cpu() > 0
    by_sign = [at for at in scores.order(absolute=False).tolist() if positive[at]]
    order, taken = [], set[int]()
    signs, magnitudes, count = iter(by_sign), iter(by_magnitude), 0  # of those by sign
    for size in range(1, len(by_magnitude) + 1):
        # One more by sign where the share asks for it, which may be among those taken by magnitude
        # already: then that place is free for one more of these.
        wanted = min(math.floor(share * size + 1e-9), len(by_sign))
        new = next(signs) if wanted > count else None
        count = max(count, wanted)
        if new is None or new in taken:
            new = next(at for at in magnitudes if at not in taken)
        taken.add(new)
        order.append(new)
    return torch.tensor(order)


def _expect_no_positions(scores: Scores) -> None:
    if scores.values.ndim == 3:
        raise ValueError(
            "edges are selected alike at every position; sum the scores over positions"
        )


def best_connected(
    scores: Scores, size: int | float, *, absolute: bool = True, seconds: float = SECONDS
) -> Circuit:
    """Find the connected circuit of at most a given size whose scores have the largest sum.

    After the integer linear program of Nikankin et al. (2025), "BlackboxNLP-2025 MIB Shared Task:
    Improving Circuit Faithfulness via Better Edge Selection" (arXiv 2510.25786).

    Every edge lies on a path; a path may enter a head by any of its inputs, as in
    `Circuit.connected`. On the 70,651 edges of SmolLM2-135M this takes about a second, since few
    edges outside the best ones need a separate column: see `strace_lens.circuits.integer_program`.

    Args:
        scores: scores of edges, the same at every token position.
        size: maximum size of the circuit, as a number of edges (int) or a fraction of all edges in
            (0, 1] (float), rounded down.
        absolute: use effects by magnitude, as `Scores.top` does.
        seconds: time limit of each call of the solver.

    Raises:
        TypeError: the size is a boolean or not a number.
        ValueError: the size is out of range, or the scores differ by token position.
        RuntimeError: the solver found no best circuit in time.
    """
    _expect_no_positions(scores)
    graph, values = scores.graph, scores.values.detach().cpu()
    size = edge_count(size, graph.edges)
    worth = values.abs() if absolute and scores.signed else values
    keep = best_edges(graph, worth, size, seconds)
    made = {"method": scores.method, "task": scores.task, "absolute": absolute, **scores.metadata}
    return Circuit(graph, keep, {**made, "selection": "integer program"})
