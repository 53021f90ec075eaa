"""Where in the layers a corpus' traces build the head of the output, and where they refine it.

Source: s-Trace (arXiv 2605.27033), section "phases". Depth is relative: 0 is the first layer, 1 the
last. A residual column that reaches down to the embedding is early by construction, so the depth of
the edges of attention and MLPs, the block depth, is given as well as that of all edges. Where kinds
of edges are kept in every row (`keep`), only the others change the output: those are the ablatable
edges, and depths and counts are given over them alone as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Int64

from strace_lens.corpus.analyses.arrays import (
    ablatable_kinds,
    added,
    at_sizes,
    divide,
    edges_by,
    every_size,
    frame_of,
    layer_of,
    shares,
)
from strace_lens.corpus.run_folder import Run
from strace_lens.measures.intervals import means
from strace_lens.measures.sizes import THRESHOLD, restored_from
from strace_lens.traces.edges import KINDS

SIZES_OF = ("head_size", "tail_size", "head_ablatable_size", "tail_ablatable_size")
"""Quantities of `head_and_tail` whose means are geometric."""

_ATTENTION = KINDS.index("attention")
_BLOCK = [KINDS.index("attention"), KINDS.index("mlp")]

Counts = Int64[np.ndarray, "kind layer"]


def phase_diagram(run: Run) -> pd.DataFrame:
    """Layer by size: what is present, what is added, and the fall in error that goes with it.

    A gain is an attribution by composition, not an ablation: a prompt's fall in error since the
    size before is shared out among the layers as the ablatable edges added, since the others are
    there at every size. Over the layers gains add up to the mean fall in error, of which a size
    that adds no ablatable edge has none; the first size has none either, since nothing was measured
    before it.

    Returns:
        Columns `size`, `layer`; `present`, the mean share of the layer's edges in the trace;
        `ablatable_present`, the same of the ablatable edges (NaN where every kind is kept);
        `added`, the layer's mean share of the edges that the size adds, of the `prompts` to whose
        trace it adds any; `head_gain` and `tail_gain`, in total variation, means over all prompts.
    """
    layers = layer_of(run)
    count = int(layers.max()) + 1
    counts, reachable = edges_by(run, layers, count)
    ablatable = run.components["kind"].isin(ablatable_kinds(run)).to_numpy(dtype=np.bool_)
    counts_ablatable, reachable_ablatable = edges_by(run, np.where(ablatable, layers, -1), count)
    new, credit = shares(added(counts)), _no_nan(shares(added(counts_ablatable)))
    columns = {
        "present": _mean_of_there(divide(counts, reachable[:, None])),
        "ablatable_present": _mean_of_there(divide(counts_ablatable, reachable_ablatable[:, None])),
        "added": _mean_of_there(new),
        **{
            f"{part}_gain": (_fall(at_sizes(run, f"{part}_error"))[..., None] * credit).mean(0)
            for part in ("head", "tail")
        },
        "prompts": (~np.isnan(new)).sum(0),
    }
    return frame_of(run.grid, {"layer": range(count)}, columns)


def head_and_tail(run: Run, threshold: float = THRESHOLD) -> pd.DataFrame:
    """The head subgraph and the tail refinement of each prompt.

    The head subgraph is the smallest trace from which on the head error stays under a share of the
    head's mass; the tail refinement is what later sizes add until the tail error stays under the
    same share of the tail's mass.

    Args:
        run: of `read_run`.
        threshold: the share, in (0, 1).

    Returns:
        A row a prompt. Columns:

        - `prompt`;
        - `head_size`, `tail_size`, the relative sizes at which they end, and `head_not_yet_at`,
          `tail_not_yet_at`, the sizes measured before these, at which the error is still too large
          (0 if none was); `head_ablatable_size`, `tail_ablatable_size`, the shares of the ablatable
          edges that the traces of these sizes hold, counting one edge at least;
        - `head_edges`, `tail_edges`, and of these `head_ablatable_edges`, `tail_ablatable_edges`;
        - `head_depth`, `tail_depth` over all their edges, `head_block_depth`, `tail_block_depth`
          over attention and MLP edges, `head_ablatable_depth`, `tail_ablatable_depth` over
          ablatable edges; `depth_gap`, `block_depth_gap`, `ablatable_depth_gap`, the head's less
          the tail's; `graph_depth`, `graph_block_depth`, `graph_ablatable_depth`, of the whole
          graph; `head_depth_vs_graph`, `head_block_depth_vs_graph`,
          `head_ablatable_depth_vs_graph`, the head's less the graph's;
        - `tail_depth_vs_left`, `tail_ablatable_depth_vs_left`, the depth of the tail refinement
          less that of as many edges of each kind drawn from what the head subgraph leaves in the
          graph;
        - `head_attention`, `tail_attention`, shares of the edges; `tail_attention_vs_left`, the
          tail's share less that among the edges that the head subgraph leaves.

        NaN where an error never gets there, and where there is no edge. Where nothing is kept every
        edge is ablatable.

    Raises:
        ValueError: a threshold outside (0, 1).
    """
    by_kind_and_layer = _groups(run)
    parts = {
        "depth": list(range(len(KINDS))),
        "block_depth": _BLOCK,
        "ablatable_depth": [KINDS.index(kind) for kind in ablatable_kinds(run)],
    }
    ablatable = parts["ablatable_depth"]
    masses = run.prompts["head_mass"]
    rows = []
    for prompt, mass, table, reachable in zip(
        run.prompts["prompt"], masses, every_size(run), run.reachable, strict=True
    ):
        head_size, tail_size = restored_from(table, float(mass), threshold)
        # NaN if either is: the refinement of the tail starts where the head is restored.
        tail_size = float(np.maximum(head_size, tail_size))
        graph = by_kind_and_layer(reachable)
        usage = dict(zip(table["size"], table["usage"], strict=True))
        head = None if math.isnan(head_size) else by_kind_and_layer(usage[head_size])
        end = None if math.isnan(tail_size) else by_kind_and_layer(usage[tail_size])
        tail = None if head is None or end is None else end - head
        found = {
            "prompt": int(prompt),
            "head_size": head_size,
            "tail_size": tail_size,
            "head_ablatable_size": _share(head, graph, ablatable),
            "tail_ablatable_size": _share(end, graph, ablatable),
            "head_not_yet_at": _before(table, head_size),
            "tail_not_yet_at": _before(table, tail_size),
            **_about("head", head, parts),
            **_about("tail", tail, parts),
            **{f"graph_{name}": relative_depth(graph[kinds]) for name, kinds in parts.items()},
        }
        for name in parts:
            found[f"{name}_gap"] = found[f"head_{name}"] - found[f"tail_{name}"]
            found[f"head_{name}_vs_graph"] = found[f"head_{name}"] - found[f"graph_{name}"]
        rows.append({**found, **_against_left(graph, head, tail, ablatable)})
    return pd.DataFrame(rows)


def head_and_tail_means(run: Run, threshold: float = THRESHOLD, *, seed: int = 0) -> pd.DataFrame:
    """Means over prompts of the columns of `head_and_tail`, with intervals.

    Returns:
        Columns `quantity`, `mean` (geometric for sizes), `low`, `high`, `prompts`: those that have
        the quantity, the only ones in the mean. Whether the head subgraph is early is said by
        `head_depth_vs_graph` and `head_ablatable_depth_vs_graph`: it is where the interval lies
        below 0.
    """
    around = ["head_not_yet_at", "tail_not_yet_at"]
    table = head_and_tail(run, threshold).drop(columns=["prompt", *around])
    values = table.to_numpy(dtype=np.float64, copy=True)
    logarithmic = table.columns.isin(SIZES_OF)
    values[:, logarithmic] = np.log(values[:, logarithmic])
    found = means(values, seed)
    columns = found.columns()
    for column in columns.values():
        column[logarithmic] = np.exp(column[logarithmic])
    return pd.DataFrame({"quantity": list(table), **columns, "prompts": found.prompts})


def relative_depth(counts: Counts) -> float:
    """Mean layer of edges over the last layer; NaN without edges or with a single layer."""
    by_layer = counts.sum(0)
    last = len(by_layer) - 1
    if not by_layer.any() or last == 0:
        return math.nan
    return float(by_layer @ np.arange(last + 1) / by_layer.sum() / last)


def _groups(
    run: Run,
) -> Callable[[Int[np.ndarray, " component"]], Counts]:
    """Adds up edges of components by kind and layer."""
    kind = run.components["kind"].map(KINDS.index).to_numpy(dtype=np.int64)
    layers = layer_of(run)
    shape = len(KINDS), int(layers.max()) + 1

    def grouped(edges: Int[np.ndarray, " component"]) -> Counts:
        counts = np.zeros(shape, dtype=np.int64)
        np.add.at(counts, (kind, layers), edges)
        return counts

    return grouped


def _before(table: pd.DataFrame, size: float) -> float:
    """The size measured before one; 0 if none was, NaN for NaN."""
    if math.isnan(size):
        return math.nan
    sizes = table["size"].to_numpy(dtype=np.float64)
    return float(sizes[sizes < size].max(initial=0.0))


def _share(counts: Counts | None, graph: Counts, kinds: list[int]) -> float:
    """The share of the graph's edges of these kinds that are there; one edge at least."""
    whole = int(graph[kinds].sum())
    if counts is None or whole == 0:
        return math.nan
    return max(1, int(counts[kinds].sum())) / whole


def _about(name: str, counts: Counts | None, parts: dict[str, list[int]]) -> dict[str, float]:
    if counts is None:
        names = ("edges", "ablatable_edges", *parts, "attention")
        return {f"{name}_{column}": math.nan for column in names}
    edges = int(counts.sum())
    return {
        f"{name}_edges": float(edges),
        f"{name}_ablatable_edges": float(counts[parts["ablatable_depth"]].sum()),
        **{f"{name}_{part}": relative_depth(counts[kinds]) for part, kinds in parts.items()},
        f"{name}_attention": counts[_ATTENTION].sum() / edges if edges else math.nan,
    }


def _against_left(
    graph: Counts, head: Counts | None, tail: Counts | None, ablatable: list[int]
) -> dict[str, float]:
    """The tail refinement compared with what the head subgraph leaves in the graph."""
    names = ("tail_depth_vs_left", "tail_ablatable_depth_vs_left", "tail_attention_vs_left")
    if head is None or tail is None or not tail.any():
        return dict.fromkeys(names, math.nan)
    left = graph - head
    attention = tail[_ATTENTION].sum() / tail.sum() - left[_ATTENTION].sum() / left.sum()
    depths = [_later_than_left(tail[k], left[k]) for k in (list(range(len(KINDS))), ablatable)]
    return dict(zip(names, (*depths, float(attention)), strict=True))


def _later_than_left(tail: Counts, left: Counts) -> float:
    """Depth of some edges less that of as many of each kind drawn from what is left."""
    drawn = divide(left, left.sum(1, keepdims=True)) * tail.sum(1, keepdims=True)
    drawn = _no_nan(drawn).sum(0)
    last = len(drawn) - 1
    if last == 0 or not tail.any():
        return math.nan
    layers = np.arange(last + 1)
    return float((tail.sum(0) - drawn) @ layers / tail.sum() / last)


def _fall(errors: Float[np.ndarray, "prompt size"]) -> Float[np.ndarray, "prompt size"]:
    """By how much an error falls from the size before; 0 at the first."""
    return -np.diff(errors, axis=1, prepend=errors[:, :1])


def _no_nan(values: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(values), 0.0, values)


def _mean_of_there(values: np.ndarray) -> np.ndarray:
    """Means over the prompts that have a value."""
    return divide(_no_nan(values).sum(0), (~np.isnan(values)).sum(0))
