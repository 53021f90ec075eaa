"""Circuits and scores from pandas and networkx."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import torch
from jaxtyping import Int64
from torch import Tensor

from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.graph import ComponentGraph, node_of
from strace_lens.circuits.scores import Scores
from strace_lens.utils.checks import (
    codes_of,
    numbers_of,
    refuse_rows,
    refuse_twice,
    require_columns,
    whole_numbers,
)

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_DTYPES = {str(t).removeprefix("torch."): t for t in (torch.bool, *_FLOATS)}


def circuit_from_pandas(
    table: pd.DataFrame, graph: ComponentGraph, *, positions: int | None = None
) -> Circuit:
    """Make a circuit from a table of its edges, one row per edge.

    Args:
        table: columns as `Circuit.to_pandas` writes them; without `weight` every edge has weight
            1, without `position` it is kept at all positions. If all weights are 1, the circuit is
            boolean.
        graph: component graph of the model that the circuit belongs to.
        positions: number of token positions; by default one more than the last in the table.

    Raises:
        ValueError: a column is missing, a row has no valid edge or a weight outside [0, 1], or two
            rows have the same edge; the message names the rows.
    """
    weights = _weights(table) if "weight" in table.columns else torch.ones(len(table))
    if bool((weights == 1).all()):
        weights = weights.bool()
    return Circuit(graph, _placed(table, graph, positions, weights))


def scores_from_pandas(
    table: pd.DataFrame,
    graph: ComponentGraph,
    *,
    method: str = "pandas",
    task: str = "",
    signed: bool = True,
) -> Scores:
    """Make scores from a table with one row per edge (and token position, if there are any).

    The parameters `method`, `task` and `signed` are as in `Scores`.

    Args:
        table: columns as `Scores.to_pandas` writes them.
        graph: component graph of the model that was scored.

    Raises:
        ValueError: a column is missing, a row has no valid edge or score, two rows have the same
            edge, or an edge has no row; the message names the rows or the edge.
    """
    require_columns(table, ["score"])
    values = _placed(table, graph, None, _values(table, "score"), empty=torch.nan)
    lacking = (graph.exists_like(values) & values.isnan()).nonzero()
    if len(lacking):
        to, source, *at = lacking[0].tolist()
        name = graph.edge_name(to, source) + "".join(f" at position {p}" for p in at)
        raise ValueError(f"{name} has no score; give every edge a row, with 0 if it has none")
    return Scores(graph, values.nan_to_num(0.0), method, task, signed=signed)


def circuit_from_networkx(graph: nx.MultiDiGraph) -> Circuit:
    """Make a circuit from a networkx graph of `Circuit.to_networkx`, with edges removed or not.

    Args:
        graph: a graph with the attributes `component_graph`, `positions` and `dtype`, and on its
            edges `input`, `weight` and, if there are positions, `position`.

    Raises:
        ValueError: an attribute is missing, or an edge is not in the component graph; the message
            names it.
    """
    whole, positions = graph.graph.get("component_graph"), graph.graph.get("positions")
    dtype = _DTYPES.get(graph.graph.get("dtype", ""))
    if not isinstance(whole, ComponentGraph) or dtype is None:
        raise ValueError(
            "the graph does not say which component graph it belongs to: it needs the attributes "
            "component_graph and dtype, as Circuit.to_networkx gives them"
        )
    needed = ["input", "weight"] + ["position"] * (positions is not None)
    rows, labels = [], []
    for source, target, data in graph.edges(data=True):
        absent = [name for name in needed if name not in data]
        if absent:
            raise ValueError(f"edge {source} -> {target} has no attribute {', '.join(absent)}")
        if node_of(str(data["input"])) != target:
            raise ValueError(f"edge {source} -> {target}: {data['input']} is no input of {target}")
        rows.append((source, None, *(data[name] for name in needed)))
        labels.append(f"{source} -> {target}")
    table = pd.DataFrame(rows, columns=["source", "input", "destination", *needed[1:]])
    table.index = pd.Index(labels, dtype=object)
    keep = _placed(table, whole, positions, _weights(table).to(dtype))
    return Circuit(whole, keep, dict(graph.graph.get("metadata", {})))


def _weights(table: pd.DataFrame) -> Tensor:
    weights = _values(table, "weight")
    refuse_rows(table, "weight", ((weights < 0) | (weights > 1)).numpy(), "lies outside [0, 1]")
    return weights


def _values(table: pd.DataFrame, name: str) -> Tensor:
    """A column as a tensor, in its own precision where that is single or double."""
    checked = numbers_of(table, name)
    single = table[name].dtype == np.float32
    return torch.from_numpy(checked.astype(np.float32) if single else checked)


def _placed(
    table: pd.DataFrame,
    graph: ComponentGraph,
    positions: int | None,
    values: Tensor,
    empty: float = 0.0,
) -> Tensor:
    """The values of a table's rows in their cells, `empty` elsewhere."""
    if positions is None and "position" in table.columns and len(table):
        positions = int(whole_numbers(table, "position").max()) + 1
    cells = edge_cells(table, graph, positions if "position" in table.columns else None)
    shape = [graph.destinations, graph.sources] + ([] if positions is None else [positions])
    placed = torch.full(shape, empty, dtype=values.dtype)
    placed[tuple(cells.T)] = values if cells.shape[1] == len(shape) else values[:, None]
    return placed


ENDS = ["source", "destination", "input"]


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
