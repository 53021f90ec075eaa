"""Edges of a token graph as rows of a table, and back: what other tools read and write."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int64
from torch import Tensor

from strace_lens.traces.edges import (
    KINDS,
    EdgeTensors,
    GraphShape,
    edge_list,
    hook_name,
)
from strace_lens.utils.checks import (
    codes_of,
    refuse_rows,
    refuse_twice,
    require_columns,
    whole_numbers,
)

ENDS = ["kind", "layer", "head", "source", "source_position", "target", "target_position"]
"""The columns that tell an edge from all others."""


def edge_table(shape: GraphShape, strings: Sequence[str], chosen: EdgeTensors) -> pd.DataFrame:
    """The chosen edges (booleans), one row each, in the order of their flat ids.

    Args:
        shape: of the token graph.
        strings: its tokens as text.
        chosen: which edges.

    Returns:
        The columns `ENDS`, and `source_token` and `target_token` behind their positions.
    """
    edges = edge_list(shape, chosen)
    names = np.array([hook_name(shape, level) for level in range(shape.levels)], dtype=object)
    tokens = np.array(strings, dtype=object)
    head = edges.head.numpy()
    return pd.DataFrame(
        {
            "kind": np.array(KINDS, dtype=object)[edges.kind.numpy()],
            "layer": edges.layer.numpy(),
            "head": pd.arrays.IntegerArray(head, head < 0),
            "source": names[edges.source_level.numpy()],
            "source_position": edges.source_token.numpy(),
            "source_token": tokens[edges.source_token.numpy()],
            "target": names[edges.target_level.numpy()],
            "target_position": edges.target_token.numpy(),
            "target_token": tokens[edges.target_token.numpy()],
        }
    )


def edge_ids(table: pd.DataFrame, shape: GraphShape) -> Int64[Tensor, " row"]:
    """Flat ids of the edges that the rows name.

    Args:
        table: the columns `ENDS` as `edge_table` gives them, of which a missing head may be None,
            NaN or NA; other columns are not read.
        shape: of the token graph.

    Raises:
        ValueError: a column is missing, a row names no edge that reaches the output, or two rows
            name the same one; the message names the rows.
    """
    require_columns(table, ENDS)
    names = [hook_name(shape, level) for level in range(shape.levels)]
    given = {
        "kind": _codes(table, "kind", KINDS),
        "layer": whole_numbers(table, "layer"),
        "head": whole_numbers(table, "head", missing=-1),
        "source_level": _codes(table, "source", names),
        "source_token": whole_numbers(table, "source_position"),
        "target_level": _codes(table, "target", names),
        "target_token": whole_numbers(table, "target_position"),
    }
    reachable = shape.reachable()
    known = pd.DataFrame({k: v.numpy() for k, v in edge_list(shape, reachable)._asdict().items()})
    known["id"] = reachable.flat().nonzero()[:, 0].numpy()
    found = pd.DataFrame(given).merge(known, on=list(given), how="left")["id"]
    ids = pd.Series(found).fillna(-1).to_numpy(dtype=np.int64, copy=True)
    if (ids < 0).any():
        lost = table[ids < 0].assign(edge=_described)
        why = f"is none of the {shape.edges:,} that reach the output"
        refuse_rows(lost, "edge", np.ones(len(lost), dtype=bool), why)
    refuse_twice(table, ids, "name the same edge")
    return torch.from_numpy(ids)


def _codes(table: pd.DataFrame, name: str, known: Sequence[str]) -> Int64[np.ndarray, " row"]:
    why = f"is none of the graph, which has {', '.join(known[:3])} ..."
    return codes_of(table, name, known, why)


def _described(table: pd.DataFrame) -> list[str]:
    rows = table[ENDS].itertuples(index=False)
    return [
        f"{kind} of layer {layer}{'' if pd.isna(head) else f' head {head}'}, {a}@{i} to {b}@{j}"
        for kind, layer, head, a, i, b, j in rows
    ]
