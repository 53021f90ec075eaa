"""Edges of a component graph as rows of a table, and back: what other tools read and write."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int64
from torch import Tensor

from strace_lens.component_graph.graph import ComponentGraph, node_of
from strace_lens.utils.checks import (
    codes_of,
    refuse_rows,
    refuse_twice,
    require_columns,
    whole_numbers,
)

ENDS = ["source", "destination", "input"]


def edge_table(graph: ComponentGraph, cells: Int64[Tensor, "edge axis"]) -> pd.DataFrame:
    """One row for each cell (destination, source) or (destination, source, position), in order.

    Returns:
        Columns `source`, `destination` and `input` (q, k or v of a head; missing where a node has
        but one input), `source_layer` (-1 for the embedding), `destination_layer` (the number of
        layers for the logits), and `position` if there are positions.
    """
    to, source = cells[:, 0].numpy(), cells[:, 1].numpy()
    destinations = graph.destination_names
    inputs = [name[-2] if name.endswith(">") else None for name in destinations]
    columns = {
        "source": np.array(graph.source_names, dtype=object)[source],
        "destination": np.array([node_of(name) for name in destinations], dtype=object)[to],
        "input": np.array(inputs, dtype=object)[to],
        "source_layer": graph.source_layers.numpy()[source],
        "destination_layer": graph.destination_layers.numpy()[to],
    }
    if cells.shape[1] == 3:
        columns["position"] = cells[:, 2].numpy()
    return pd.DataFrame(columns)


def edge_cells(
    table: pd.DataFrame, graph: ComponentGraph, positions: int | None
) -> Int64[Tensor, "row axis"]:
    """The cells that the rows name: what `edge_table` was made from.

    Args:
        table: columns `source`, `destination`, `input` and, where there are positions, `position`;
            others are not read.
        graph: of the edges.
        positions: number of token positions; None where there is no such column.

    Raises:
        ValueError: a column is missing, a row names no edge, or two rows name the same one; the
            message names the rows.
    """
    require_columns(table, ENDS)
    named = table.assign(source=_texts(table["source"]), destination=_destinations(table))
    axes = []
    for end, names in (("destination", graph.destination_names), ("source", graph.source_names)):
        why = f"is no {end} of {graph.model}; they are named like {', '.join(names[:2])}"
        axes.append(codes_of(named, end, names, why))
    named["edge"] = [
        f"{s}->{d}" for s, d in zip(named["source"], named["destination"], strict=True)
    ]
    exists = graph.exists.numpy()[axes[0], axes[1]]
    refuse_rows(named, "edge", ~exists, f"is none of {graph.model}: its source comes too late")
    if positions is not None:
        axes.append(whole_numbers(table, "position"))
        out = (axes[2] < 0) | (axes[2] >= positions)
        refuse_rows(table, "position", out, f"lies outside 0..{positions - 1}")
    shape = (graph.destinations, graph.sources, positions or 1)[: len(axes)]
    refuse_twice(table, np.asarray(np.ravel_multi_index(axes, shape)), "name the same edge")
    return torch.from_numpy(np.stack(axes, axis=1))


def _destinations(table: pd.DataFrame) -> list[str]:
    """Names of the destinations: node and input in one."""
    pairs = zip(_texts(table["destination"]), _texts(table["input"]), strict=True)
    return [f"{node}<{kind}>" if kind else node for node, kind in pairs]


def _texts(column: Iterable[Any]) -> list[str]:
    return ["" if pd.isna(text) else str(text) for text in column]
