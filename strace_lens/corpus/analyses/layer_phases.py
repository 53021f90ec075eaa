"""Where in the layers a corpus' traces build the head of the output, and where they refine it.

Source: s-Trace (arXiv 2605.27033), section "phases". Depth is relative: 0 is the first layer, 1 the
last. A residual column that reaches down to the embedding is early by construction, so the depth of
the edges of attention and MLPs, the block depth, is given as well as that of all edges. Where kinds
of edges are kept in every row (`keep`), only the others change the output: those are the ablatable
edges, and depths and counts are given over them alone as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped

from strace_lens.corpus.analyses.arrays import (
    ablatable_kinds,
    added,
    at_sizes,
    divide,
    edges_by,
    every_size,
    frame_of,
    grouped,
    layer_of,
    shares,
)
from strace_lens.corpus.run_folder import Run
from strace_lens.measures.intervals import means
from strace_lens.measures.sizes import THRESHOLD, restored_from
from strace_lens.utils.choices import KINDS

SIZES_OF = ("head_size", "tail_size", "head_ablatable_size", "tail_ablatable_size")
"""Quantities of `head_and_tail` whose means are geometric."""

Counts = Float[np.ndarray, "prompt kind layer"]


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
    tables, prompts = every_size(run), run.prompts
    ends = np.array(
        [restored_from(*of, threshold) for of in zip(tables, prompts["head_mass"], strict=True)]
    )
    # NaN if either is: the refinement of the tail starts where the head is restored.
    sizes = {"head": ends[:, 0], "tail": ends.max(1)}
    graph = _by_kind_and_layer(run, run.reachable)
    until = {part: _by_kind_and_layer(run, _used(tables, at)) for part, at in sizes.items()}
    parts = {"head": until["head"], "tail": until["tail"] - until["head"]}
    ablatable = [KINDS.index(kind) for kind in ablatable_kinds(run)]
    depths = {
        "depth": slice(None),
        "block_depth": [KINDS.index("attention"), KINDS.index("mlp")],
        "ablatable_depth": ablatable,
    }
    attention = KINDS.index("attention")
    found = {"prompt": prompts["prompt"], **{f"{part}_size": at for part, at in sizes.items()}}
    for part, counts in until.items():
        held = np.maximum(1, counts[:, ablatable].sum((1, 2)))
        found[f"{part}_ablatable_size"] = divide(held, graph[:, ablatable].sum((1, 2)))
    for part, at in sizes.items():
        found[f"{part}_not_yet_at"] = [_before(*of) for of in zip(tables, at, strict=True)]
    for part, counts in parts.items():
        found[f"{part}_edges"] = edges = counts.sum((1, 2))
        found[f"{part}_ablatable_edges"] = counts[:, ablatable].sum((1, 2))
        found |= {f"{part}_{name}": _depth(counts[:, kinds]) for name, kinds in depths.items()}
        found[f"{part}_attention"] = divide(counts[:, attention].sum(1), edges)
    found |= {f"graph_{name}": _depth(graph[:, kinds]) for name, kinds in depths.items()}
    for name in depths:
        found[f"{name}_gap"] = found[f"head_{name}"] - found[f"tail_{name}"]
        found[f"head_{name}_vs_graph"] = found[f"head_{name}"] - found[f"graph_{name}"]
    left = graph - parts["head"]
    # As many of each kind as the tail has, spread over the layers as those that are left.
    drawn = _no_nan(divide(left, left.sum(2, keepdims=True)))
    drawn = drawn * parts["tail"].sum(2, keepdims=True)
    for name in ("depth", "ablatable_depth"):
        found[f"tail_{name}_vs_left"] = found[f"tail_{name}"] - _depth(drawn[:, depths[name]])
    share_left = divide(left[:, attention].sum(1), left.sum((1, 2)))
    found["tail_attention_vs_left"] = found["tail_attention"] - share_left
    return pd.DataFrame(found)


def head_and_tail_means(run: Run, *, seed: int = 0) -> pd.DataFrame:
    """Means over prompts of the columns of `head_and_tail`, with intervals.

    Returns:
        Columns `quantity`, `mean` (geometric for sizes), `low`, `high`, `prompts`: those that have
        the quantity, the only ones in the mean. Whether the head subgraph is early is said by
        `head_depth_vs_graph` and `head_ablatable_depth_vs_graph`: it is where the interval lies
        below 0.
    """
    around = ["head_not_yet_at", "tail_not_yet_at"]
    table = head_and_tail(run).drop(columns=["prompt", *around])
    values = table.to_numpy(dtype=np.float64, copy=True)
    logarithmic = table.columns.isin(SIZES_OF)
    values[:, logarithmic] = np.log(values[:, logarithmic])
    found = means(values, seed)
    columns = found.columns()
    for column in columns.values():
        column[logarithmic] = np.exp(column[logarithmic])
    return pd.DataFrame({"quantity": list(table), **columns, "prompts": found.prompts})


def _by_kind_and_layer(run: Run, edges: Shaped[np.ndarray, "prompt component"]) -> Counts:
    """Edges of components added up; NaN where those of a prompt are."""
    kinds = run.components["kind"].map(KINDS.index).to_numpy(dtype=np.int64)
    layers = layer_of(run)
    count = int(layers.max()) + 1
    of_both = grouped(edges.astype(np.float64), kinds * count + layers, len(KINDS) * count)
    return of_both.reshape(-1, len(KINDS), count)


def _used(
    tables: Sequence[pd.DataFrame], sizes: Float[np.ndarray, " prompt"]
) -> Float[np.ndarray, "prompt component"]:
    """Edges of each component in each prompt's trace of its size; NaN for NaN."""
    rows = []
    for table, size in zip(tables, sizes, strict=True):
        usage = dict(zip(table["size"], table["usage"], strict=True))
        rows.append(usage.get(size, np.full(len(table["usage"].iloc[0]), np.nan)))
    return np.array(rows, dtype=np.float64)


def _before(table: pd.DataFrame, size: float) -> float:
    """The size measured before one; 0 if none was, NaN for NaN."""
    sizes = table["size"].to_numpy(dtype=np.float64)
    return math.nan if math.isnan(size) else float(sizes[sizes < size].max(initial=0.0))


def _depth(counts: Counts) -> Float[np.ndarray, " prompt"]:
    """Mean layer of edges over the last layer; NaN without edges or with a single layer."""
    by_layer = counts.sum(1)
    last = by_layer.shape[1] - 1
    return divide(by_layer @ np.arange(last + 1), by_layer.sum(1) * last)


def _fall(errors: Float[np.ndarray, "prompt size"]) -> Float[np.ndarray, "prompt size"]:
    """By how much an error falls from the size before; 0 at the first."""
    return -np.diff(errors, axis=1, prepend=errors[:, :1])


def _no_nan(values: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(values), 0.0, values)


def _mean_of_there(values: np.ndarray) -> np.ndarray:
    """Means over the prompts that have a value."""
    return divide(_no_nan(values).sum(0), (~np.isnan(values)).sum(0))
