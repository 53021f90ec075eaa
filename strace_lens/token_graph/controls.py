"""Control rankings a trace is measured against: what a subgraph of the same size does by chance.

The other control, `inverse`, is the complement of a trace and needs no
ranking of its own.
"""

from __future__ import annotations

import torch

from strace_lens.token_graph.best_first import best_first
from strace_lens.token_graph.edges import EdgeTensors, GraphShape


def random_ranks(shape: GraphShape, seed: int) -> EdgeTensors:
    """Rank the edges by a random growth from the output; the `random` control.

    The growth is a best-first search on uniform random weights, those of residual and MLP edges
    lifted from (0, 1) to (1, 2). The definition (s-Trace, arXiv 2605.27033, "a random subgraph
    grown from the output to the same size, residual and MLP edges of a node before its attention
    edges") is read so: residual and MLP edges of all nodes reached so far are taken before any
    attention edge. Growth therefore first follows the column of the last token down to its
    embedding; each attention edge that reaches a new node is followed by the rest of that node's
    column.

    Returns int32 ranks on the CPU in the layout of `best_first`. The same shape and seed give the
    same ranks.
    """
    generator = torch.Generator().manual_seed(seed)
    zeros = shape.full(0.0, torch.float32)
    attention, residual, mlp = zeros.map(lambda x: x.uniform_(generator=generator))
    return best_first(EdgeTensors(attention, residual + 1, mlp + 1), shape)
