"""What the traces of a corpus are made of at each size, and how evenly they use components.

Source: s-Trace (arXiv 2605.27033), section "phases" (composition, Lorenz curves); Gini: Gini
(1912). Each prompt counts once in a share: it is the mean over prompts of the prompts' own shares.
The use of components is the mean number of their edges, for which long prompts count more; kinds
are kept apart, since a head has an edge for each pair of tokens, an MLP or a sublayer's sum one for
each token.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int64

from strace_lens.corpus.analyses.arrays import added, divide, edges_by, frame_of, layer_of, shares
from strace_lens.corpus.run_folder import Run
from strace_lens.measures.intervals import TAILS, means, weights
from strace_lens.utils.choices import KINDS

QUARTERS = 4

CORE = 0.9
"""The share of prompts whose traces must hold a component of the core."""


def kinds_by_size(run: Run, *, seed: int = 0) -> pd.DataFrame:
    """Share of residual, attention and MLP edges at each size.

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


def lorenz(run: Run) -> pd.DataFrame:
    """Lorenz curves: what share of the edges the least used components have.

    Returns:
        Columns `size`, `kind`, `components` (share of the kind's components, from the least used)
        and `use` (their share of the kind's edges): from 0, 0 to 1, 1. No rows for a size at which
        no trace has an edge of the kind.
    """
    edges = run.usage.mean(0)
    frames = []
    for kind, of in _kinds(run):
        rising = np.sort(edges[:, of], axis=1)
        curves = np.pad(np.cumsum(rising, axis=1), ((0, 0), (1, 0)))
        use = divide(curves, curves[:, -1:])
        along = {"components": np.linspace(0, 1, use.shape[1]).tolist()}
        frames.append(frame_of(run.grid, along, {"use": use}).assign(kind=kind))
    found = pd.concat(frames).dropna().sort_values("size", kind="stable", ignore_index=True)
    return found.reindex(columns=["size", "kind", "components", "use"])


def gini(run: Run, *, seed: int = 0, resamples: int = 1000) -> pd.DataFrame:
    """Gini coefficient of the mean edges of a kind's components: 0 where all have as many.

    Its interval is the middle 95 % of bootstrap resamples of the prompts, moved so that their mean
    is the value itself: fewer distinct prompts use components less evenly, so resamples lie above
    it.

    Returns:
        Columns `size`, `kind`, `gini`, `low`, `high` (NaN for fewer than two prompts), and `graph`,
        the Gini coefficient of the prompts' whole graphs, which is not 0 since the last layer has
        fewer edges. NaN where there is no edge of the kind.
    """
    kinds = _kinds(run)
    drawn = weights(len(run.prompts), resamples, seed)
    found = np.full((len(run.grid), len(kinds), 4), np.nan)
    for k, (_, of) in enumerate(kinds):
        found[:, k, 3] = gini_of(run.reachable[:, of].mean(0))
        for s in range(len(run.grid)):
            here = run.usage[:, s, of].astype(np.float64)
            value = float(gini_of(here.mean(0)))
            found[s, k, 0] = value
            if len(here) > 1 and here.any():
                found[s, k, 1:3] = _around(value, gini_of(drawn @ here))
    names = ("gini", "low", "high", "graph")
    columns = {name: found[..., i] for i, name in enumerate(names)}
    return frame_of(run.grid, {"kind": [kind for kind, _ in kinds]}, columns)


def gini_of(
    values: Float[np.ndarray, "*rest component"] | Int64[np.ndarray, "*rest component"],
) -> Float[np.ndarray, "*rest"]:
    """Gini coefficients along the last axis; NaN where all values are 0."""
    count = values.shape[-1]
    ranks = 2 * np.arange(1, count + 1) - count - 1
    above = np.asarray(np.sort(values, axis=-1) @ ranks)
    return divide(above, np.asarray(count * values.sum(-1)))


def core(run: Run) -> pd.DataFrame:
    """How many components nearly all prompts use: those that `CORE` of the traces have an edge of.

    Returns:
        Columns `size`, `kind`; `core`, how many of the kind's `components`; `share` of them.
    """
    least = math.ceil(CORE * len(run.usage) * (1 - 1e-12))
    shared = (run.usage > 0).sum(0) >= least
    kinds = _kinds(run)
    counts = np.stack([shared[:, of].sum(1) for _, of in kinds], 1)
    totals = np.broadcast_to([int(of.sum()) for _, of in kinds], counts.shape)
    columns = {"core": counts, "components": totals, "share": counts / totals}
    return frame_of(run.grid, {"kind": [kind for kind, _ in kinds]}, columns)


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


def _kinds(run: Run) -> list[tuple[str, Bool[np.ndarray, " component"]]]:
    """The kinds that the model has, with their components."""
    of = run.components["kind"].to_numpy(dtype=str)
    return [(kind, of == kind) for kind in KINDS if (of == kind).any()]


def _around(value: float, resampled: Float[np.ndarray, " resample"]) -> Float[np.ndarray, " 2"]:
    """The middle of resamples about the value; a resample without edges has none."""
    moved = np.nanquantile(resampled, TAILS) - np.nanmean(resampled) + value
    return np.clip(moved, 0, 1)
