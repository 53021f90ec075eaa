"""Several runs on the same prompts: models, or training checkpoints of one, side by side.

Prompts are matched by the hash of their text. A text that a run holds twice counts once, by the
first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import reduce
from itertools import combinations, product

import numpy as np
import pandas as pd

from strace_lens.corpus.analyses.arrays import named
from strace_lens.corpus.analyses.curves import mean_curves
from strace_lens.corpus.analyses.density import correlation
from strace_lens.corpus.analyses.sizes import corpus_boundaries
from strace_lens.corpus.run_folder import Run
from strace_lens.measures.intervals import draws_of, interval_of


def between_runs(runs: Sequence[Run], *, seed: int = 0, resamples: int = 2000) -> pd.DataFrame:
    """How per-prompt density agrees between runs: rank correlation and mean difference.

    Args:
        runs: with different names; each two share a prompt. Prompts that only one of two has are
            left out of that pair.
        seed: of the bootstrap.
        resamples: how often prompts are drawn.

    Returns:
        One row for each ordered pair of runs, each with itself included. Columns `a`, `b`,
        `prompts` (shared), `rho` (Spearman's) with `low` and `high`, `mean_difference` (density in
        `a` less that in `b`) with `difference_low` and `difference_high`: 95 % percentile bootstrap
        intervals over prompts, NaN for a single one. `rho` is NaN for fewer than four prompts, and
        where a run's density is constant.

    Raises:
        ValueError: two runs of one name, or two that share no prompt.
    """
    _check(runs)
    prompts = {run.name: run.prompts.drop_duplicates("sha256") for run in runs}
    return pd.DataFrame(
        [
            {"a": a, "b": b, **agreement(prompts[a], prompts[b], seed, resamples)}
            for a, b in product(prompts, repeat=2)
        ]
    )


def side_by_side(
    runs: Sequence[Run],
    *,
    seed: int = 0,
    curve_resamples: int = 1000,
    boundary_resamples: int = 200,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mean curves and phase boundaries of each run, over the prompts that all of them have.

    Args:
        runs: with different names.
        seed: of the bootstraps.
        curve_resamples, boundary_resamples: how often prompts are drawn.

    Returns:
        `mean_curves` of all runs and `corpus_boundaries` of all runs, each with the name of the run
        as first column `run`.

    Raises:
        ValueError: two runs of one name, or no prompt that all runs have.
    """
    shared = {run.name: run for run in on_shared_prompts(runs)}
    curves = {
        name: mean_curves(run, seed=seed, resamples=curve_resamples) for name, run in shared.items()
    }
    boundaries = {
        name: corpus_boundaries(run, seed=seed, resamples=boundary_resamples)
        for name, run in shared.items()
    }
    return named(curves), named(boundaries)


def on_shared_prompts(runs: Sequence[Run]) -> list[Run]:
    """The runs, each with only the prompts that all of them have, in the order of their texts.

    Prompts keep their numbers. A draw of prompts is then the same prompts in every run.

    Raises:
        ValueError: two runs of one name, or no prompt that all runs have.
    """
    _check(runs)
    texts = sorted(reduce(set.intersection, (set(run.prompts["sha256"]) for run in runs)))
    if not texts:
        names = ", ".join(run.name for run in runs)
        raise ValueError(f"no prompt is in all of {names}; compare fewer runs at a time")
    return [_only(run, texts) for run in runs]


def _only(run: Run, texts: list[str]) -> Run:
    """A run with the prompts of these texts, in this order."""
    hashes = run.prompts["sha256"].tolist()
    first = {text: place for place, text in reversed(list(enumerate(hashes)))}
    places = np.array([first[text] for text in texts])
    numbers = run.prompts["prompt"].to_numpy()[places]
    return dataclasses.replace(
        run,
        prompts=run.prompts.iloc[places].reset_index(drop=True),
        sizes=_rows(run.sizes, numbers),
        refined=_rows(run.refined, numbers),
        usage=run.usage[places],
        reachable=run.reachable[places],
        geometry=_rows(run.geometry, numbers),
        path=_rows(run.path, numbers),
        final_states=run.final_states[places],
    )


def _rows(frame: pd.DataFrame, prompts: np.ndarray) -> pd.DataFrame:
    """Rows of these prompts, prompt by prompt in this order."""
    places = pd.Series(range(len(prompts)), index=prompts).reindex(frame["prompt"]).to_numpy(float)
    kept = np.flatnonzero(~np.isnan(places))
    return frame.iloc[kept[np.argsort(places[kept], kind="stable")]].reset_index(drop=True)


def _check(runs: Sequence[Run]) -> None:
    if not runs:
        raise ValueError("no run to compare; pass at least one")
    for a, b in combinations(runs, 2):
        if a.name == b.name:
            raise ValueError(f"two runs are named {a.name}; rename one's folder")
        if not set(a.prompts["sha256"]) & set(b.prompts["sha256"]):
            raise ValueError(
                f"{a.name} and {b.name} share no prompt; sweep both over the same prompts"
            )


def agreement(
    a: pd.DataFrame, b: pd.DataFrame, seed: int = 0, resamples: int = 2000
) -> dict[str, float | int]:
    """How the densities of two runs agree over the prompts that both have.

    Args:
        a, b: `Run.prompts` of each, a text once; they share at least one.
        seed: of the bootstrap.
        resamples: how often prompts are drawn.

    Returns:
        The columns of `between_runs` from `prompts` on.
    """
    # Sorted, so that (a, b) and (b, a) draw the same prompts.
    shared = a.merge(b, on="sha256").sort_values("sha256")
    values = shared[["density_x", "density_y"]].to_numpy(dtype=np.float64)
    draws = draws_of(len(values), resamples, seed)
    difference = (values[:, 0] - values[:, 1])[:, None]
    difference_low, difference_high = interval_of(difference, np.mean, draws)
    rho = correlation(values, seed, resamples)
    return {
        "prompts": len(values),
        **{name: rho[name] for name in ("rho", "low", "high")},
        "mean_difference": float(difference.mean()),
        "difference_low": float(difference_low[0]),
        "difference_high": float(difference_high[0]),
    }
