"""Every analysis of one or more runs, as tables by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import pandas as pd

from strace_lens.corpus.analyses import (
    between,
    composition,
    curves,
    density,
    estimators,
    layer_phases,
    sizes,
    states,
)
from strace_lens.corpus.analyses.arrays import named
from strace_lens.corpus.analyses.claims import claims
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
    """Every analysis of each run, and comparisons of several runs.

    Args:
        runs: of `read_run`; of different names.
        seed: of every bootstrap.
        progress: called before each analysis (`utils.progress`); a bar if not given.

    Returns:
        A table for each of `ANALYSES`, with the name of the run as first column `run`, and
        `claims`, the paper's claims tested on all of them. With several runs also `between_runs`,
        and `shared_curves` and `shared_boundaries` over the prompts that all of them have. With
        runs of `controls="all"` also the tables of `estimators.estimator_tables`.

    Raises:
        ValueError: no runs, runs of one name, or several runs without a shared prompt.
    """
    if not runs:
        raise ValueError("no runs to analyse; name at least one folder of a sweep")
    tables: dict[str, dict[str, pd.DataFrame]] = {name: {} for name in ANALYSES}
    together: dict[str, pd.DataFrame] = {}
    with reporting(progress, "analysing", len(runs) * len(ANALYSES) + 1) as advance:
        if len(runs) > 1:
            advance(0, "runs beside each other")
            curves_shared, boundaries_shared = between.side_by_side(runs, seed=seed)
            together = {
                "between_runs": between.between_runs(runs, seed=seed),
                "shared_curves": curves_shared,
                "shared_boundaries": boundaries_shared,
            }
        controlled = [run for run in runs if len(run.controls)]
        if controlled:
            advance(0, "estimators and their controls")
            together |= estimators.estimator_tables(controlled, seed=seed)
        for run in runs:
            for name, analysis in ANALYSES.items():
                advance(1, f"{run.name}: {name.replace('_', ' ')}")
                draws = "seed" in inspect.signature(analysis).parameters
                tables[name][run.name] = analysis(run, seed=seed) if draws else analysis(run)
        advance(1, "the paper's claims")
        together[CLAIMS] = claims(runs, seed=seed)
    return {name: named(frames) for name, frames in tables.items()} | together
