"""What the traces of a corpus are made of at each size: kinds of edges, depth quarters, layers.

Source: s-Trace (arXiv 2605.27033), section "phases". Each prompt counts once: a share is the mean
over prompts of the prompts' own shares, not that of all edges together.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Int64

from strace_lens.corpus.analyses.arrays import added, divide, edges_by, frame_of, shares
from strace_lens.corpus.analyses.means import means
from strace_lens.corpus.run_folder import Run
from strace_lens.token_graph.edges import KINDS

QUARTERS = 4


def kinds_by_size(run: Run, *, seed: int = 0) -> pd.DataFrame:
    """Share of residual, attention and MLP edges at each size.

    Args:
        run: of `read_run`.
        seed: of the bootstrap.

    Returns:
        Columns `size`, `kind`; `share` of the trace's edges, of the `prompts` whose trace has any;
        `marginal`, the share of the edges that the size adds to the one before, of the
        `marginal_prompts` to whose trace it adds any. Both with intervals (`low` and `high`,
        `marginal_low` and `marginal_high`), NaN for fewer than two prompts.
    """
    there = set(run.components["kind"])
    kinds = [kind for kind in KINDS if kind in there]
    of = run.components["kind"].map(kinds.index).to_numpy(dtype=np.int64)
    counts, _ = edges_by(run, of, len(kinds))
    return frame_of(run.grid, {"kind": kinds}, _composition(counts, seed))


def quarters_by_size(run: Run, *, seed: int = 0) -> pd.DataFrame:
    """Share of each quarter of the layers at each size, as `kinds_by_size`.

    Returns:
        `quarter` (from 1, the earliest), `first` and `last` (its layers), and the columns of
        `kinds_by_size` in place of `kind`. Fewer than four layers are as many quarters.
    """
    layers = layer_of(run)
    quarters = np.array_split(np.arange(layers.max() + 1), QUARTERS)
    quarters = [q for q in quarters if len(q)]
    of = np.repeat(np.arange(len(quarters)), [len(q) for q in quarters])[layers]
    counts, _ = edges_by(run, of, len(quarters))
    parts = {
        "quarter": range(1, len(quarters) + 1),
        "first": [int(q[0]) for q in quarters],
        "last": [int(q[-1]) for q in quarters],
    }
    return frame_of(run.grid, parts, _composition(counts, seed))


def layers_by_size(run: Run, *, seed: int = 0) -> pd.DataFrame:
    """Share of each layer at each size, and how much of the layer is present.

    Returns:
        `layer`, the columns of `kinds_by_size` in place of `kind`, and `present`, the share of the
        layer's edges in the graph that the trace holds, with `present_low` and `present_high`: of
        all prompts, a trace without edges holding none.
    """
    layers = layer_of(run)
    count = int(layers.max()) + 1
    counts, reachable = edges_by(run, layers, count)
    present = means(divide(counts, reachable[:, None]), seed)
    columns = {**_composition(counts, seed), **present.columns("present")}
    return frame_of(run.grid, {"layer": range(count)}, columns)


def layer_of(run: Run) -> Int64[np.ndarray, " component"]:
    """The layer of each component."""
    return run.components["layer"].to_numpy(dtype=np.int64)


def _composition(counts: Int64[np.ndarray, "prompt size part"], seed: int) -> dict[str, np.ndarray]:
    share, marginal = means(shares(counts), seed), means(shares(added(counts)), seed)
    return {
        "share": share.mean,
        "low": share.low,
        "high": share.high,
        "prompts": share.prompts,
        **marginal.columns("marginal"),
        "marginal_prompts": marginal.prompts,
    }
