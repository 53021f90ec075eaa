"""Names of the edges of a token graph, in the manner of the component graph's.

| edge | name |
|---|---|
| of a head, from a token to the same or a later one | `a3.h2@5->9` |
| of an MLP, at a token | `m3@5` |
| residual, into `blocks.3.hook_resid_mid` at a token | `r3.mid@5` |
| residual, into `blocks.3.hook_resid_post` at a token | `r3.post@5` |

A graph whose layers have one node at each token (attention and MLP in parallel, or no MLP) has
residual edges into `hook_resid_post` alone.
"""

from __future__ import annotations

import math
import re

import numpy as np

from strace_lens.traces.edges import EdgeTensors, GraphShape

_ATTENTION = re.compile(r"a(\d+)\.h(\d+)@(\d+)->(\d+)")
_RESIDUAL = re.compile(r"r(\d+)\.(mid|post)@(\d+)")
_MLP = re.compile(r"m(\d+)@(\d+)")


def edge_names(shape: GraphShape, chosen: EdgeTensors) -> list[str]:
    """Names of the chosen edges (booleans), in the order of their flat ids."""
    nodes = ("mid", "post")[-shape.sublayers :]
    return [
        *(f"a{n}.h{h}@{key}->{query}" for n, h, query, key in chosen.attention.nonzero().tolist()),
        *(f"r{n}.{nodes[node]}@{pos}" for n, node, pos in chosen.residual.nonzero().tolist()),
        *(f"m{n}@{pos}" for n, pos in chosen.mlp.nonzero().tolist()),
    ]


def edge_id(shape: GraphShape, name: object) -> int:
    """Flat id of the edge of a name.

    Raises:
        TypeError: the name is no text.
        ValueError: it names no edge that reaches the output.
    """
    if not isinstance(name, str):
        raise TypeError(f"edges go by name, as 'a3.h2@5->9'; got {name!r}")
    nodes = ("mid", "post")[-shape.sublayers :]
    # One index for each axis of the kind's tensor, and the kind's place in `EdgeTensors`.
    if found := _ATTENTION.fullmatch(name):
        layer, head, key, query = map(int, found.groups())
        kind, cell = 0, (layer, head, query, key)
    elif found := _RESIDUAL.fullmatch(name):
        # Behind the last node where the graph has no such nodes.
        node = nodes.index(found[2]) if found[2] in nodes else len(nodes)
        kind, cell = 1, (int(found[1]), node, int(found[3]))
    elif found := _MLP.fullmatch(name):
        kind, cell = 2, (int(found[1]), int(found[2]))
    else:
        raise ValueError(
            f"{name!r} is no name of an edge; write 'a3.h2@5->9' (head, from and to token), "
            f"'m3@5' or {' or '.join(repr(f'r3.{node}@5') for node in nodes)}"
        )
    sizes = shape.tensor_shapes
    within = all(index < size for index, size in zip(cell, sizes[kind], strict=True))
    if not within or not bool(shape.reachable()[kind][cell]):
        raise ValueError(
            f"{name!r} is none of the {shape.edges:,} edges that reach the output of this graph "
            f"of {shape.layers} layers, {shape.heads} heads and {shape.tokens} tokens, counted "
            "from 0"
        )
    before = sum(math.prod(of_kind) for of_kind in sizes[:kind])
    return before + int(np.ravel_multi_index(cell, sizes[kind]))
