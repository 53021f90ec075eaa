"""Where in the layers a corpus' traces build the head of the output, and where they refine it.

Source: s-Trace (arXiv 2605.27033), section "phases". Depth is relative: 0 is the first layer, 1 the
last. A residual column that reaches down to the embedding is early by its making, so the depth of
attention and MLP edges, those of the blocks, is told beside that of all edges.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Int64

from strace_lens.corpus.analyses.arrays import (
    added,
    at_sizes,
    divide,
    edges_by,
    every_size,
    frame_of,
    shares,
)
from strace_lens.corpus.analyses.composition import layer_of
from strace_lens.corpus.analyses.means import means
from strace_lens.corpus.run_folder import Run
from strace_lens.phases import THRESHOLD, restored_from
from strace_lens.token_graph.edges import KINDS
from strace_lens.trials.phases import relative_depth

SIZES_OF = ("head_size", "tail_size")
"""Quantities of `head_and_tail` whose means are geometric."""

_BLOCK = slice(KINDS.index("attention"), None)  # the kinds after residual
_ATTENTION = KINDS.index("attention")


def phase_diagram(run: Run) -> pd.DataFrame:
    """Layer by size: what is present, what is added, and the fall in error that goes with it.

    A gain is an attribution by composition, not an ablation: a prompt's fall in error since the
    size before is shared out among the layers as the edges added. Over the layers gains add up to
    the mean fall in error, of which a size that adds no edge has none; the first size has none
    either, since nothing was measured before it.

    Returns:
        Columns `size`, `layer`; `present`, the mean share of the layer's edges in the trace;
        `added`, the layer's mean share of the edges that the size adds, of the `prompts` to whose
        trace it adds any; `head_gain` and `tail_gain`, in total variation, means over all prompts.
    """
    layers = layer_of(run)
    count = int(layers.max()) + 1
    counts, reachable = edges_by(run, layers, count)
    new = shares(added(counts))
    columns = {
        "present": _mean_of_there(divide(counts, reachable[:, None])),
        "added": _mean_of_there(new),
        **{
            f"{part}_gain": (_fall(at_sizes(run, f"{part}_error"))[..., None] * _no_nan(new)).mean(
                0
            )
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
        A row a prompt: `prompt`; `head_size`, `tail_size`, the relative sizes at which they end;
        `head_not_yet_at`, `tail_not_yet_at`, the sizes measured before these, at which the error is
        still too large (0 if none was);
        `head_edges`, `tail_edges`; `head_depth`, `tail_depth`, and `head_block_depth`,
        `tail_block_depth` of attention and MLP edges alone; `head_attention`, `tail_attention`,
        shares of the edges; `depth_gap`, `block_depth_gap`, the head's less the tail's;
        `graph_depth`, `graph_block_depth`, of the whole graph. NaN where an error never gets there,
        and where there is no edge.

    Raises:
        ValueError: a threshold outside (0, 1).
    """
    by_kind_and_layer = _groups(run)
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
            "head_not_yet_at": _before(table, head_size),
            "tail_not_yet_at": _before(table, tail_size),
            **_about("head", head),
            **_about("tail", tail),
            "graph_depth": relative_depth(graph),
            "graph_block_depth": relative_depth(graph[_BLOCK]),
        }
        for name in ("depth", "block_depth"):
            found[f"{name}_gap"] = found[f"head_{name}"] - found[f"tail_{name}"]
        rows.append(found)
    return pd.DataFrame(rows)


def head_and_tail_means(run: Run, threshold: float = THRESHOLD, *, seed: int = 0) -> pd.DataFrame:
    """Means over prompts of what `head_and_tail` tells, with intervals.

    Returns:
        Columns `quantity`, `mean` (geometric for `head_size` and `tail_size`), `low`, `high`,
        `prompts`: those that have the quantity, the only ones in the mean.
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


def _groups(
    run: Run,
) -> Callable[[Int[np.ndarray, " component"]], Int64[np.ndarray, "kind layer"]]:
    """Adds up edges of components by kind and layer."""
    kind = run.components["kind"].map(KINDS.index).to_numpy(dtype=np.int64)
    layers = layer_of(run)
    shape = len(KINDS), int(layers.max()) + 1

    def grouped(edges: Int[np.ndarray, " component"]) -> Int64[np.ndarray, "kind layer"]:
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


def _about(name: str, counts: Int64[np.ndarray, "kind layer"] | None) -> dict[str, Any]:
    if counts is None:
        names = ("edges", "depth", "block_depth", "attention")
        return {f"{name}_{column}": math.nan for column in names}
    edges = int(counts.sum())
    return {
        f"{name}_edges": float(edges),
        f"{name}_depth": relative_depth(counts),
        f"{name}_block_depth": relative_depth(counts[_BLOCK]),
        f"{name}_attention": counts[_ATTENTION].sum() / edges if edges else math.nan,
    }


def _fall(errors: Float[np.ndarray, "prompt size"]) -> Float[np.ndarray, "prompt size"]:
    """By how much an error falls from the size before; 0 at the first."""
    return -np.diff(errors, axis=1, prepend=errors[:, :1])


def _no_nan(values: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(values), 0.0, values)


def _mean_of_there(values: np.ndarray) -> np.ndarray:
    """Means over the prompts that have a value."""
    return divide(_no_nan(values).sum(0), (~np.isnan(values)).sum(0))
