"""Hidden states of the traces, against the full model's by layer and against each other by size.

By layer: the stream of the trace of each size against the full model's, as `corpus/hidden.py`
measures it. By size: the state of the last token behind the final norm, in the trace of every size
against that of every other. Cosine and distance compare two sizes prompt by prompt. Linear CKA and
information imbalance compare two sets of points, one a prompt: whether two sizes arrange the
prompts alike. The released code of s-Trace has these matrices for cosine, distance, CKA and
information imbalance.

Sources: s-Trace (arXiv 2605.27033), section "phases"; Kornblith et al., Similarity of neural
network representations revisited, 2019 (linear CKA); Song et al., Feature selection via dependence
maximization, 2012 (its estimator without bias); Glielmo et al., Ranking the information content of
distance measures, 2022 (imbalance).
"""

# pandas' types are wider than what it returns here.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import rankdata

from strace_lens.corpus.analyses.arrays import divide, frame_of
from strace_lens.corpus.hidden import path
from strace_lens.corpus.run_folder import PATH, Run
from strace_lens.measures.intervals import means

POINTS = 1000
"""Prompts that CKA and imbalance take at the most; their work and memory grow with its square."""

EQUAL = 1e-6
"""Two states are the same point if their distance is below this share of the longest state.

Prompts that share a mask of no edges differ by rounding alone, which must not be ranked.
"""

States = Float[np.ndarray, "prompt size d_model"]
Matrix = Float[np.ndarray, "size size"]


def geometry_by_layer(run: Run, *, seed: int = 0) -> pd.DataFrame:
    """Means over prompts of the geometry at each size and layer.

    Returns:
        Columns `size`, `layer`; `cosine`, `l2`, `cka`, `velocity`, `curvature` (radians) and
        `velocity_ratio`, the mean of the trace's velocity over the full model's, each with `_low`,
        `_high` (NaN for fewer than two prompts) and `_prompts`, those that have a value: CKA has
        none in the last layer, curvature none in the first and where a step is zero, as in traces
        with few edges; `full_velocity` and `full_curvature`, means of the full model; `prompts`.
        No row where the sweep left geometry out.
    """
    values = {name: array.astype(np.float64) for name, array in run.geometry.items()}
    values["velocity_ratio"] = divide(values["velocity"], run.path["velocity"][:, None])
    columns: dict[str, np.ndarray] = {}
    for name, of_layer in values.items():
        found = means(of_layer, seed)
        columns |= {**found.columns(name), f"{name}_prompts": found.prompts}
    for name in PATH:
        full = means(run.path[name].astype(np.float64), seed).mean
        columns[f"full_{name}"] = np.tile(full, (len(run.grid), 1))
    prompts, _, layers = values["cosine"].shape
    columns["prompts"] = np.full(columns["cosine"].shape, prompts)
    return frame_of(run.grid, {"layer": range(layers)}, columns)


def state_matrices(run: Run, *, seed: int = 0) -> pd.DataFrame:
    """How alike the final states of the traces of any two sizes are.

    Returns:
        One row for each measure and ordered pair of sizes. Columns `measure`, `size_a`, `size_b`,
        `value`, `prompts`. Measures are

        - `cosine`: mean over prompts; 0 where a state is zero.
        - `l2`: mean distance over prompts.
        - `cka`: linear CKA of the two sets of points. With fewer prompts than the model is wide,
          it is high for any two sets.
        - `cka_debiased`: the same from the unbiased estimate of HSIC, which is about 0 for sets
          that have nothing to do with each other; NaN for fewer than four prompts.
        - `information_imbalance`: from `size_a` to `size_b`, 2/N times the mean rank, among the
          distances of `size_b`, of each point's nearest neighbour of `size_a`. About 0 where the
          neighbours of `size_a` are those of `size_b`, about 1 where they say nothing of them. It
          has a direction. Ties share their mean rank, so that a set of equal points says nothing.

        CKA is NaN where a set has a single point. No row where the sweep left hidden states out.
    """
    columns = ["measure", "size_a", "size_b", "value", "prompts"]
    if not run.final_states.shape[-1]:
        return pd.DataFrame(columns=columns)
    states = run.final_states.astype(np.float64)
    points = _drawn(states, seed)
    frames = []
    for measure, matrix in MEASURES.items():
        used = points if measure in _OF_SETS else states
        frames.append(
            pd.DataFrame(
                {
                    "measure": measure,
                    "size_a": np.repeat(run.grid, len(run.grid)),
                    "size_b": np.tile(run.grid, len(run.grid)),
                    "value": matrix(used).reshape(-1),
                    "prompts": len(used),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def state_curvature(run: Run, *, seed: int = 0) -> pd.DataFrame:
    """The path of the final state from the smallest size of the grid to the largest.

    Returns:
        One row a size, the smallest apart. Columns `size`; `step`, the mean length of the step from
        the size before, and `curvature`, the mean angle in radians between it and the step before,
        0 straight on and pi straight back, each with `_low`, `_high` (NaN for fewer than two
        prompts) and `_prompts`, those that have a value: there is no angle where one of the steps
        is zero, as between traces that differ in no output, and none at the second size; `prompts`.
        No row where the sweep left hidden states out, or measured a single size.
    """
    ends = [f"{m}{end}" for m in ("step", "curvature") for end in ("", "_low", "_high", "_prompts")]
    if not run.final_states.shape[-1] or len(run.grid) < 2:
        return pd.DataFrame(columns=["size", *ends, "prompts"])
    states = torch.from_numpy(run.final_states.astype(np.float64))
    step, angle = (values.numpy() for values in path(states))
    still = step <= EQUAL * states.norm(dim=-1).max(1, keepdim=True).values.numpy()
    angle[still] = np.nan
    angle[:, 1:][still[:, :-1]] = np.nan
    columns: dict[str, np.ndarray] = {}
    for name, values in (("step", step), ("curvature", angle)):
        found = means(values, seed)
        columns |= {**found.columns(name), f"{name}_prompts": found.prompts}
    return pd.DataFrame({"size": run.grid[1:], **columns, "prompts": len(states)})


def _drawn(states: States, seed: int) -> Float[np.ndarray, "point size d_model"]:
    """At most `POINTS` of the prompts, in their order."""
    if len(states) <= POINTS:
        return states
    chosen = np.random.default_rng(seed).choice(len(states), POINTS, replace=False)
    return states[np.sort(chosen)]


def _cosine(states: States) -> Matrix:
    lengths = np.linalg.norm(states, axis=-1, keepdims=True)
    unit = np.divide(states, lengths, out=np.zeros_like(states), where=lengths > 0)
    return np.mean([one @ one.T for one in unit], axis=0)


def _l2(states: States) -> Matrix:
    sizes = range(states.shape[1])
    apart = [np.linalg.norm(states - states[:, [a]], axis=-1).mean(0) for a in sizes]
    return np.stack(apart)


def _cka(states: States) -> Matrix:
    """Cosine of the centred Gram matrices of any two sizes."""
    centred = _centred(states)
    return _cosines(np.stack([(one @ one.T).reshape(-1) for one in centred]))


def _cka_debiased(states: States) -> Matrix:
    """Cosine of Gram matrices without their diagonals, centred so that HSIC has no bias."""
    count, sizes = states.shape[:2]
    if count < 4:
        return np.full((sizes, sizes), np.nan)
    grams = []
    for one in _centred(states):
        gram = one @ one.T
        np.fill_diagonal(gram, 0.0)
        rows = gram.sum(1) / (count - 2)
        gram -= rows[:, None] + rows[None] - rows.sum() / (count - 1)
        np.fill_diagonal(gram, 0.0)
        grams.append(gram.reshape(-1))
    return _cosines(np.stack(grams))


def _centred(states: States) -> Float[np.ndarray, "size prompt d_model"]:
    """Centred points of each size; zero where all are one point."""
    sets = states.swapaxes(0, 1)
    centred = sets - sets.mean(1, keepdims=True)
    spread = np.linalg.norm(centred, axis=-1).max(1)
    longest = np.linalg.norm(sets, axis=-1).max(1)
    centred[spread <= EQUAL * longest] = 0.0
    return centred


def _cosines(vectors: Float[np.ndarray, "size entry"]) -> Matrix:
    lengths = np.linalg.norm(vectors, axis=1)
    scale = np.outer(lengths, lengths)
    out = np.full(scale.shape, np.nan)
    return np.divide(vectors @ vectors.T, scale, out=out, where=scale > 0)


def _information_imbalance(states: States) -> Matrix:
    count, sizes = states.shape[:2]
    if count < 2:
        return np.full((sizes, sizes), np.nan)
    distances = [_distances(one) for one in states.swapaxes(0, 1)]
    nearest = [_nearest(distance) for distance in distances]
    found = np.empty((sizes, sizes))
    for b, distance in enumerate(distances):
        # The distance of a point to itself is infinite, and so of the last rank, which none takes.
        ranks = rankdata(distance, axis=1)
        found[:, b] = [2 / count**2 * ranks[of, near] @ share for of, near, share in nearest]
    return found


def _nearest(distance: Float[np.ndarray, "prompt prompt"]) -> tuple[np.ndarray, ...]:
    """Each point with its nearest neighbours: both their numbers, and one over how many it has."""
    ties = distance == distance.min(1, keepdims=True)
    of, near = ties.nonzero()
    return of, near, 1 / ties.sum(1)[of]


def _distances(points: Float[np.ndarray, "prompt d_model"]) -> Float[np.ndarray, "prompt prompt"]:
    """Distances of points; zero between points that are the same, infinite from each to itself."""
    longest = np.linalg.norm(points, axis=1).max()
    centred = points - points.mean(0)
    squares = (centred**2).sum(1)
    # In float64 the difference of squares is wrong by far less than what counts as equal.
    apart = np.sqrt(np.maximum(0.0, squares[:, None] + squares - 2 * centred @ centred.T))
    apart[apart <= EQUAL * longest] = 0.0
    np.fill_diagonal(apart, np.inf)
    return apart


MEASURES: dict[str, Callable[[States], Matrix]] = {
    "cosine": _cosine,
    "l2": _l2,
    "cka": _cka,
    "cka_debiased": _cka_debiased,
    "information_imbalance": _information_imbalance,
}
"""Measures of two sizes by name; each gives a matrix of the first size by the second."""

_OF_SETS = ("cka", "cka_debiased", "information_imbalance")
