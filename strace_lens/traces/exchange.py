"""Traces from pandas and subgraphs from networkx."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import torch
from jaxtyping import Int64
from torch import Tensor

from strace_lens.model.prompts import Prompt
from strace_lens.traces.edges import (
    ENDS,
    UNREACHABLE,
    EdgeTensors,
    GraphShape,
    edge_list,
    hook_name,
)
from strace_lens.traces.graph import TokenGraph
from strace_lens.traces.subgraph import Subgraph
from strace_lens.traces.trace import GIVEN, Trace
from strace_lens.utils.checks import (
    codes_of,
    numbers_of,
    refuse_rows,
    refuse_twice,
    require_columns,
    whole_numbers,
)
from strace_lens.utils.choices import KINDS

_OF_THE_MODEL = ("model", "weights", "versions")
"""What `made` says of the model and not of the ranking."""


def trace_from_pandas(table: pd.DataFrame, like: Trace | TokenGraph) -> Trace:
    """Make a trace from a table that ranks its edges, one row per edge.

    Rows may be in any order, and you may choose the ranks: any ranking of all edges is a trace.
    Positions of tokens are read, their texts are not. An order or importance that differs from that
    of `like` is recorded as "given in the table" in the `made` of the new trace.

    Args:
        table: columns as `Trace.to_pandas` writes them; `importance` is optional.
        like: the trace that the table came from, or the token graph that it ranks.

    Raises:
        ValueError: a column is missing, a row names no edge, or the ranks are not the numbers from
            0 to |E| - 1, once each; the message names the row.
    """
    ids = edge_ids(table, like.shape)
    ranks = _ranks(table, like.shape)
    if len(ids) != like.shape.edges:
        lacking = sorted(set(range(like.shape.edges)) - set(ranks.tolist()))
        raise ValueError(
            f"rank {lacking[0]} is missing: a trace ranks all {like.shape.edges:,} edges, the "
            f"table {len(ids):,}"
        )
    importance = None
    if "importance" in table.columns:
        values = torch.from_numpy(numbers_of(table, "importance")).float()
        importance = _placed(like.shape, 0.0, torch.float32, ids, values)
    placed = _placed(like.shape, UNREACHABLE, torch.int32, ids, ranks)
    return Trace(
        shape=like.shape,
        prompt=like.prompt,
        ranks=placed,
        metadata=_made(like, placed, importance),
        importance=importance,
    )


def _made(like: Trace | TokenGraph, ranks: EdgeTensors, importance: EdgeTensors | None) -> Any:
    """How a trace from a table was made: as `like`, so far as order and importance are its own."""
    if not isinstance(like, Trace):
        of_the_model = {"model": like.architecture.name, "weights": like.weights}
        return {**of_the_model, "order": GIVEN, "importance": GIVEN}
    made = dict(like.metadata)
    if not torch.equal(ranks.flat(), like.ranks.flat()):
        made = {name: made[name] for name in _OF_THE_MODEL if name in made}
        made |= {"order": GIVEN, "importance": GIVEN}
    own, new = like.importance, importance
    if new is not None and (own is None or not torch.allclose(new.flat(), own.flat())):
        made["importance"] = GIVEN
    return made


def subgraph_from_networkx(graph: nx.MultiDiGraph) -> Subgraph:
    """Make a subgraph from a networkx graph of `Subgraph.to_networkx`, with edges removed or not.

    The ranks of edges that are missing are unknown and are set to `UNREACHABLE`.

    Args:
        graph: a graph with the attributes `shape` and `prompt`, and on its edges `kind`, `layer`,
            `head` and `rank`.

    Raises:
        ValueError: an attribute is missing, or an edge is not in the token graph; the message
            names it.
    """
    shape, prompt = graph.graph.get("shape"), graph.graph.get("prompt")
    if not isinstance(shape, GraphShape) or not isinstance(prompt, Prompt):
        raise ValueError(
            "the graph does not say which token graph it belongs to: it needs the attributes "
            "shape and prompt, as Subgraph.to_networkx gives them"
        )
    if not len(prompt.ids) == len(prompt.strings) == shape.tokens:
        raise ValueError(f"the prompt has {len(prompt.ids)} tokens, its graph {shape.tokens}")
    rows, labels = [], []
    for source, target, data in graph.edges(data=True):
        label = f"{source} -> {target}"
        if not all(isinstance(node, tuple) and len(node) == 2 for node in (source, target)):
            raise ValueError(f"edge {label}: nodes are pairs (hook point, token position)")
        absent = {"kind", "layer", "rank"} - data.keys()
        if absent:
            raise ValueError(f"edge {label} has no attribute {', '.join(sorted(absent))}")
        head = data.get("head")
        rows.append((data["kind"], data["layer"], head, *source, *target, data["rank"]))
        labels.append(label)
    table = pd.DataFrame(rows, columns=[*ENDS, "rank"], index=pd.Index(labels, dtype=object))
    ids = edge_ids(table, shape)
    return Subgraph(
        shape=shape,
        prompt=prompt,
        kept=_placed(shape, False, torch.bool, ids, torch.ones(len(ids), dtype=torch.bool)),
        ranks=_placed(shape, UNREACHABLE, torch.int32, ids, _ranks(table, shape)),
        metadata=dict(graph.graph.get("metadata", {})),
    )


def _ranks(table: pd.DataFrame, shape: GraphShape) -> torch.Tensor:
    """The ranks of a table's rows, if they can be ranks of different edges."""
    require_columns(table, ["rank"])
    ranks = whole_numbers(table, "rank")
    out = (ranks < 0) | (ranks >= shape.edges)
    refuse_rows(table, "rank", out, f"lies outside 0..{shape.edges - 1}")
    refuse_twice(table, ranks, "have the same rank")
    return torch.from_numpy(ranks).int()


def _placed(
    shape: GraphShape,
    fill: bool | int | float,
    dtype: torch.dtype,
    ids: torch.Tensor,
    values: torch.Tensor,
) -> EdgeTensors:
    flat = shape.full(fill, dtype).flat()
    flat[ids] = values
    return shape.split(flat)


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

    def codes(name: str, known: Sequence[str]) -> Int64[np.ndarray, " row"]:
        why = f"is none of the graph, which has {', '.join(known[:3])} ..."
        return codes_of(table, name, known, why)

    given = {
        "kind": codes("kind", KINDS),
        "layer": whole_numbers(table, "layer"),
        "head": whole_numbers(table, "head", missing=-1),
        "source_level": codes("source", names),
        "source_token": whole_numbers(table, "source_position"),
        "target_level": codes("target", names),
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


def _described(table: pd.DataFrame) -> list[str]:
    rows = table[ENDS].itertuples(index=False)
    return [
        f"{kind} of layer {layer}{'' if pd.isna(head) else f' head {head}'}, {a}@{i} to {b}@{j}"
        for kind, layer, head, a, i, b, j in rows
    ]
