"""All analyses of one or more runs, as tables by name, and comparisons over shared prompts."""

# pandas' types are wider than what it returns here.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product

import numpy as np
import pandas as pd

from strace_lens.corpus.analyses import (
    composition,
    curves,
    density,
    estimators,
    layer_phases,
    sizes,
    states,
)
from strace_lens.corpus.analyses.arrays import named, refuse_same_names
from strace_lens.corpus.analyses.claims import claims
from strace_lens.corpus.analyses.density import agreement
from strace_lens.corpus.run_folder import Run
from strace_lens.utils.progress import Progress, reporting

Analysis = Callable[..., pd.DataFrame]

ANALYSES: dict[str, Analysis] = {
    "prompts": sizes.per_prompt,
    "mean_curves": curves.mean_curves,
    "corpus_boundaries": sizes.corpus_boundaries,
    "prompt_boundaries": sizes.prompt_boundaries,
    "size_needed": sizes.size_needed,
    "kinds_by_size": composition.kinds_by_size,
    "quarters_by_size": composition.quarters_by_size,
    "phase_diagram": layer_phases.phase_diagram,
    "head_and_tail": layer_phases.head_and_tail,
    "head_and_tail_means": layer_phases.head_and_tail_means,
    "lorenz": composition.lorenz,
    "gini": composition.gini,
    "core": composition.core,
    "density_correlations": density.density_correlations,
    "density_by_label": density.density_by_label,
    "density_parts": density.density_parts,
    "part_correlations": density.part_correlations,
    "shallow": curves.shallow,
    "shallow_full_model": curves.shallow_full_model,
    "nearest": curves.nearest,
    "geometry_by_layer": states.geometry_by_layer,
    "state_matrices": states.state_matrices,
    "state_curvature": states.state_curvature,
    "growth": density.growth,
    "growth_lines": density.growth_lines,
}
"""What is asked of each run, by the name of its table."""

CLAIMS = "claims"
"""The table of the paper's claims, of all runs together."""


def analyse(
    runs: Sequence[Run],
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, pd.DataFrame]:
    """Run every analysis of each run, and compare the runs if there are several.

    Args:
        runs: runs that `read_run` returned, with different names.
        seed: seed of every bootstrap.
        progress: called before each analysis (`utils.progress`); by default a progress bar.

    Returns:
        A table for each of `ANALYSES`, with the name of the run in the first column, `run`, and
        `claims`, the paper's claims tested on all of them. With several runs also `between_runs`,
        and `shared_curves` and `shared_boundaries` over the prompts that all of them have. For
        runs with `controls="all"` also the tables of `estimators.estimator_tables`.

    Raises:
        ValueError: no runs, runs with the same name, or several runs without a shared prompt.

    Example:
        >>> tables = sl.analyse([sl.read_run("runs/first")])
        >>> tables["head_and_tail_means"].set_index("quantity").loc["head_size", "mean"]
    """
    if not runs:
        raise ValueError("no runs to analyse; name at least one folder of a sweep")
    tables: dict[str, dict[str, pd.DataFrame]] = {name: {} for name in ANALYSES}
    together: dict[str, pd.DataFrame] = {}
    with reporting(progress, "analysing", len(runs) * len(ANALYSES) + 1) as advance:
        if len(runs) > 1:
            advance(0, "runs beside each other")
            together = {"between_runs": between_runs(runs, seed=seed)}
        controlled = [run for run in runs if len(run.controls)]
        if controlled:
            advance(0, "estimators and their controls")
            together |= estimators.estimator_tables(controlled, seed=seed)
        for run in runs:
            for name, analysis in ANALYSES.items():
                advance(1, f"{run.name}: {name.replace('_', ' ')}")
                draws = "seed" in inspect.signature(analysis).parameters
                tables[name][run.name] = analysis(run, seed=seed) if draws else analysis(run)
        if len(runs) > 1:
            both = side_by_side(runs, seed=seed, own=tables)
            together["shared_curves"], together["shared_boundaries"] = both
        advance(1, "the paper's claims")
        together[CLAIMS] = claims(runs, seed=seed)
    return {name: named(frames) for name, frames in tables.items()} | together


def between_runs(runs: Sequence[Run], *, seed: int = 0, resamples: int = 2000) -> pd.DataFrame:
    """How per-prompt density agrees between runs: rank correlation and mean difference.

    Prompts are matched by the hash of their text, and those that only one of two runs has are left
    out of that pair. A text that a run holds twice counts once, by the first.

    Returns:
        One row for each ordered pair of runs, each with itself included. Columns `a`, `b`,
        `prompts` (shared), `rho` (Spearman's) with `low` and `high`, `mean_difference` (density in
        `a` less that in `b`) with `difference_low` and `difference_high`: NaN for a single prompt.
        `rho` is NaN for fewer than four prompts, and where a run's density is constant.

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
    own: Mapping[str, Mapping[str, pd.DataFrame]] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`mean_curves` and `corpus_boundaries` of each run, over the prompts that all of them have.

    Args:
        runs: of different names.
        seed: of every bootstrap.
        own: these two tables of each run over all of its prompts, by table and run, with the same
            seed; they are taken for a run that has no other prompts. Computed if not given.

    Raises:
        ValueError: two runs of one name, or no prompt that all runs have.
    """
    on_shared = on_shared_prompts(runs)

    def tables(name: str, analysis: Analysis) -> pd.DataFrame:
        known = (own or {}).get(name, {})
        frames = {}
        for run, shared in zip(runs, on_shared, strict=True):
            taken = shared is run and run.name in known
            frames[run.name] = known[run.name] if taken else analysis(shared, seed=seed)
        return named(frames)

    return (
        tables("mean_curves", curves.mean_curves),
        tables("corpus_boundaries", sizes.corpus_boundaries),
    )


def on_shared_prompts(runs: Sequence[Run]) -> list[Run]:
    """The runs, each with only the prompts that all of them have, in the order of the first run.

    Prompts keep their numbers. A draw of prompts is then the same prompts in every run, and a run
    that has just these prompts in this order is itself returned: whatever is drawn from it is the
    same as without the others.

    Raises:
        ValueError: two runs of one name, or no prompt that all runs have.
    """
    _check(runs)
    everywhere = set.intersection(*(set(run.prompts["sha256"]) for run in runs))
    texts = [text for text in runs[0].prompts["sha256"].unique() if text in everywhere]
    if not texts:
        names = ", ".join(run.name for run in runs)
        raise ValueError(f"no prompt is in all of {names}; compare fewer runs at a time")
    return [_only(run, texts) for run in runs]


def _only(run: Run, texts: list[str]) -> Run:
    """A run with the prompts of these texts, in this order."""
    firsts = run.prompts.reset_index().drop_duplicates("sha256").set_index("sha256").loc[texts]
    places = firsts["index"].to_numpy()
    if np.array_equal(places, np.arange(len(run.prompts))):
        return run
    order = {number: place for place, number in enumerate(firsts["prompt"])}

    def rows(frame: pd.DataFrame) -> pd.DataFrame:
        kept = frame[frame["prompt"].isin(order)]
        return kept.sort_values("prompt", key=lambda p: p.map(order), kind="stable").reset_index(
            drop=True
        )

    return dataclasses.replace(
        run,
        prompts=run.prompts.iloc[places].reset_index(drop=True),
        sizes=rows(run.sizes),
        refined=rows(run.refined),
        usage=run.usage[places],
        reachable=run.reachable[places],
        geometry={name: values[places] for name, values in run.geometry.items()},
        path={name: values[places] for name, values in run.path.items()},
        final_states=run.final_states[places],
    )


def _check(runs: Sequence[Run]) -> None:
    if not runs:
        raise ValueError("no run to compare; pass at least one")
    refuse_same_names(runs)
    for a, b in combinations(runs, 2):
        if not set(a.prompts["sha256"]) & set(b.prompts["sha256"]):
            raise ValueError(
                f"{a.name} and {b.name} share no prompt; sweep both over the same prompts"
            )
