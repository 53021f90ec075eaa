"""The connected circuit of greatest score, by an integer program.

`Scores.top` takes edges one by one, so that some lie on no path from the embedding to the logits
and are wasted. Here every edge kept lies on a path of edges kept. After the integer linear program
of Nikankin et al. (2025), "BlackboxNLP-2025 MIB Shared Task: Improving Circuit Faithfulness via
Better Edge Selection" (arXiv 2510.25786).
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from strace_lens.circuits.circuit import Circuit, Scores
from strace_lens.circuits.graph import EMBED
from strace_lens.measures.sizes import edge_count

SECONDS = 60.0
"""Time that the solver is given unless told otherwise."""


def best_connected(
    scores: Scores, size: int | float, *, absolute: bool = True, seconds: float = SECONDS
) -> Circuit:
    """The circuit of at most so many edges, each on a path, whose scores have the greatest sum.

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
    graph, values = scores.graph, scores.values.detach().cpu()
    if values.ndim == 3:
        raise ValueError(
            "edges are selected alike at every position; sum the scores over positions"
        )
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
