"""The connected edges of greatest worth, by an integer linear program solved on few of its columns.

An edge needs its source to be live and one of the nodes that it enters too; a node is live only if
an edge kept enters it and one leaves it, which in a graph without cycles puts it on a path.

On a graph of 70,000 edges the solver does not get through its presolve in minutes. But hardly any
edge outside the best ones can be of use. So the relaxed program, without integrality, is solved on
the best edges and those of the embedding and the logits, and grows by the edges whose reduced cost
says that they would help, until there are none: it is then the relaxation of the whole program. An
integer program on the edges of small reduced cost gives a circuit, which is at most worth what the
relaxed one is, and an edge whose reduced cost is larger than the gap between them is in no better
circuit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from strace_lens.circuits.graph import EMBED, ComponentGraph

ALL = 1000
"""Edges of a graph up to which the program has a column for each of them."""

_MORE = 200  # edges taken at first beyond as many as may be kept
_TOLERANCE = 1e-7  # of the solver, for worths of at most 1
_GAP = 0.1  # between relaxed and whole program that is tried first, in worths of a last edge


class _Program:
    """The program on some edges, and what its relaxed solution says of all."""

    def __init__(
        self,
        graph: ComponentGraph,
        worth: Float[Tensor, " edge"],
        chosen: Bool[Tensor, " edge"],
        size: int,
    ) -> None:
        # The solver takes half a second to import, and nothing else needs it.
        from scipy.sparse import coo_array

        self.graph, self.worth, self.chosen = graph, worth, chosen
        self.cells: Int[Tensor, "edge 2"] = graph.exists.nonzero()
        to, source = self.cells[chosen].T
        self.edges, nodes = len(to), graph.sources
        every, live = torch.arange(self.edges), self.edges + torch.arange(nodes)
        # Variables are edges, then nodes. Rows say: edge <= source, edge <= nodes entered (but the
        # logits), node <= edges that enter it (but the embedding), node <= edges that leave it,
        # and all edges together <= size. An edge enters several nodes of a group.
        edge, node = graph.feeds[to].nonzero().T
        rows = [(every, every, 1.0), (every, live[source], -1.0)]
        inside = every[graph.feeds[to].any(1)]
        first = self.edges
        rows += [(first + inside, inside, 1.0), (first + edge, live[node], -1.0)]
        first += self.edges
        self.entered = slice(first, first + nodes)
        needs = torch.arange(nodes)[torch.arange(nodes) != graph.source_index(EMBED)]
        rows += [(first + needs, live[needs], 1.0), (first + node, edge, -1.0)]
        first += nodes
        self.left = slice(first, first + nodes)
        rows += [(first + torch.arange(nodes), live, 1.0), (first + source, every, -1.0)]
        first += nodes
        rows += [(torch.full_like(every, first), every, 1.0)]
        row = torch.cat([part for part, _, _ in rows]).numpy()
        column = torch.cat([part for _, part, _ in rows]).numpy()
        entry = np.concatenate([np.full(len(part), value) for part, _, value in rows])
        shape = (first + 1, self.edges + nodes)
        self.matrix: Any = coo_array((entry, (row, column)), shape=shape).tocsr()
        self.most: Any = np.zeros(first + 1)
        self.most[-1] = size
        self.cost = np.concatenate([-worth[chosen].numpy(), np.zeros(nodes)])

    def relaxed(self, seconds: float) -> Any:
        """The solution without integrality, or what the solver says in its place."""
        from scipy.optimize import linprog

        return linprog(
            self.cost,
            A_ub=self.matrix,
            b_ub=self.most,
            bounds=(0, 1),
            method="highs",
            options={"time_limit": seconds},
        )

    def reduced_costs(self, found: Any) -> Float[Tensor, " edge"]:
        """Of every edge, chosen or not, by how much a circuit that has it falls short of the best.

        The rows of an edge that is not chosen have a weight of 0, which is a dual solution too.
        """
        marginals = torch.from_numpy(found.ineqlin.marginals)
        to, source = self.cells.T
        entering = self.graph.feeds.double() @ marginals[self.entered]
        costs = -self.worth + entering[to] + marginals[self.left][source] - marginals[-1]
        own = marginals[: self.edges] + marginals[self.edges : 2 * self.edges]
        return costs.index_put_((self.chosen.nonzero()[:, 0],), -own, accumulate=True)

    def whole(self, seconds: float) -> Any:
        """The solution, or what the solver says in its place."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        return milp(
            self.cost,
            integrality=np.ones(len(self.cost)),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(self.matrix, ub=self.most),
            options={"time_limit": seconds, "mip_rel_gap": 0.0},
        )

    def keep(self, found: Any) -> Bool[Tensor, "destination source"]:
        """The mask of a solution."""
        keep = torch.zeros_like(self.graph.exists)
        to, source = self.cells[self.chosen].T
        keep[to, source] = torch.from_numpy(found.x[: self.edges] > 0.5)
        return keep


def best_edges(
    graph: ComponentGraph, values: Float[Tensor, "destination source"], size: int, seconds: float
) -> Bool[Tensor, "destination source"]:
    """The at most so many edges, each on a path of them, whose values have the greatest sum.

    Args:
        graph: the graph.
        values: of the edges, on the CPU; negative ones are kept only to connect others.
        size: the most edges.
        seconds: that each call of the solver may take.

    Raises:
        RuntimeError: the solver found no best circuit in time.
    """
    to, source = graph.exists.nonzero().T
    worth = values[to, source].double()
    worth = worth / worth.abs().max().clamp_min(1e-300)  # the solver's tolerances are absolute
    chosen = torch.ones_like(worth, dtype=torch.bool)
    if graph.edges <= ALL:
        program = _Program(graph, worth, chosen, size)
        return program.keep(_solved(program.whole(seconds), graph, size, seconds))
    chosen = (source == graph.source_index(EMBED)) | (to == graph.destinations - 1)
    chosen[worth.argsort(descending=True, stable=True)[: size + _MORE]] = True
    while True:
        program = _Program(graph, worth, chosen, size)
        relaxed = _solved(program.relaxed(seconds), graph, size, seconds)
        costs = program.reduced_costs(relaxed)
        useful = ~chosen & (costs < -_TOLERANCE)
        if not bool(useful.any()):
            break
        chosen = chosen | useful
    if np.abs(relaxed.x - relaxed.x.round()).max() < 1e-6:  # whole numbers already
        return program.keep(relaxed)
    gap = max(-_GAP * float(relaxed.ineqlin.marginals[-1]), _TOLERANCE)
    while True:
        program = _Program(graph, worth, costs < gap + _TOLERANCE, size)
        found = _solved(program.whole(seconds), graph, size, seconds)
        if found.fun - relaxed.fun <= gap:
            return program.keep(found)
        gap = min(found.fun - relaxed.fun, 4 * gap)


def _solved(found: Any, graph: ComponentGraph, size: int, seconds: float) -> Any:
    """A solution that is best, or an error."""
    if found.status != 0 or found.x is None:
        raise RuntimeError(
            f"no best circuit of {size} of {graph.edges:,} edges was found in {seconds:g} seconds "
            f"({found.message}); give more seconds, or take Scores.top(size).connected()"
        )
    return found
