"""Estimators and their controls, as figures of a page and as small tables of text."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping

import pandas as pd

from strace_lens.corpus.analyses.estimators import PHASE_SIZES
from strace_lens.measures.intervals import row_text
from strace_lens.plot.corpus.estimators import (
    plot_compute,
    plot_depth_curves,
    plot_fidelity,
    plot_phase_ends,
)

ESTIMATOR_FIGURES = {
    "fidelity": (
        plot_fidelity,
        ("estimator_curves",),
        "Total variation by relative size. Above, from the model's own output. Below, the control: "
        "every estimator is aimed at the output of another prompt; one that fits nothing cannot be "
        "aimed, and its own trace is compared with that output. Where a line falls below, the "
        "estimator has found a subgraph that gives an answer the model does not give.",
    ),
    "phase-ends": (
        plot_phase_ends,
        ("estimator_phases",),
        "Bars: the construction phase, the steepest stretch of a prompt's curve. Circles: the size "
        "from which on the head error stays under a tenth of the head's mass. Squares: the same of "
        "the tail error, and no sooner than the head. Geometric means over the prompts that have "
        "the phase.",
    ),
    "depth-curves": (
        plot_depth_curves,
        ("estimator_curves", "estimator_phases"),
        "Relative depth of the edges of the trace of each size, which compares estimators at equal "
        "sizes; dotted: the whole graph, towards which every trace goes as it grows. Sizes at "
        "which a prompt's trace has no such edge are left out.",
    ),
    "compute": (
        plot_compute,
        ("estimator_curves",),
        "Left: multiply-adds that a sparse run of the trace would need, over those of the full "
        "pass. Right: mean total variation at the mean compute share of the same size, so that "
        "estimators are compared by what their traces cost to run.",
    ),
}
"""Figures of a page: how they are drawn, from which tables, and what is seen."""


def estimator_sections(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Small tables of text by title, a run a row; none without the controls of estimators.

    Args:
        tables: of `analyse`.
    """
    if "estimator_table" not in tables:
        return {}
    return _comparison(tables["estimator_table"]) | _phases(tables["estimator_phases"])


def _comparison(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    sections = {}
    for title, columns in _COMPARISON.items():
        frame = pd.DataFrame({"run": table["run"]})
        for pattern, shown in columns.items():
            for column in fnmatch.filter(table.columns, pattern):
                at = column.removeprefix(pattern.removesuffix("*"))
                frame[f"{shown}{at}"] = _cells(table, column)
        sections[title] = frame
    return sections


def _cells(table: pd.DataFrame, column: str) -> list[str]:
    shown = {"forward": "{:,.0f}", "backward": "{:,.0f}", "seeds": "{}"}.get(column, "{:.3f}")
    if f"{column}_low" not in table:
        return ["-" if math.isnan(value) else shown.format(value) for value in table[column]]
    return [row_text(row, column, shown) for row in table.to_dict("records")]


def _phases(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    by_name = table.set_index(["quantity", "run"])
    names = table["run"].unique().tolist()
    sections = {}
    for title, (shown, columns) in _PHASES.items():
        mean = "vs_greedy" if title == _VERSUS else "mean"
        frame = pd.DataFrame({"run": names})
        for head, quantity in columns.items():
            if quantity in by_name.index:
                rows = by_name.loc[quantity].reindex(names)
                frame[head] = (
                    [row_text(row, mean, shown) for row in rows.to_dict("records")]
                    if shown
                    else [f"{count}" for count in rows["prompts"]]
                )
        if len(frame.columns) > 1:
            sections[title] = frame
    return sections


_COMPARISON = {
    "Estimators, less is better: density, and size from which top-1 is right": {
        "density": "density",
        "density_vs_greedy": "less greedy's",
        "top1_size": "top-1 size",
        "top1_ratio": "over greedy's",
    },
    "TV to the full output, by relative size": {"tv_*": "TV "},
    "Rows of passes that a trace is fitted with, and spread of density over seeds": {
        "forward": "forward",
        "backward": "backward",
        "seeds": "seeds",
        "density_sd": "sd of density",
    },
    "Controls: lowest TV to a wrong target up to 0.2; TV on a sibling; change of TV under noise": {
        "wrong_tv_mean": "wrong",
        "wrong_tv_min": "worst prompt",
        "sibling_*": "sibling ",
        "noise_*": "noise ",
    },
    "Edges on a path from token to output, size that connects them, share of the compute": {
        "path_share_mean": "on path",
        "path_share_min": "least",
        "connected_size": "connected",
        "compute_*": "compute ",
    },
}
"""Columns of each table and how they are headed; a star stands for every size."""

_VERSUS = "Compared with greedy, paired by prompt: sizes over greedy's, others less greedy's"
_PHASES: dict[str, tuple[str, dict[str, str]]] = {
    "In how many prompts each phase was found": (
        "",
        {
            "construction": "construction_start",
            "refinement": "refinement_pace",
            "head subgraph": "head_size",
            "tail refinement": "tail_size",
        },
    ),
    "Along the sizes: construction, and how much TV falls per tenfold size in it and after it": (
        "{:.3g}",
        {
            "from s": "construction_start",
            "to s": "construction_stop",
            "TV there": "construction_tv",
            "fall in it": "construction_pace",
            "fall after": "refinement_pace",
        },
    ),
    "Where head and tail are restored; relative depth of their edges, 0 (first layer) to 1": (
        "{:.3g}",
        {
            "head at s": "head_size",
            "tail at s": "tail_size",
            "head depth": "head_depth",
            "tail depth": "tail_depth",
            "head less tail": "depth_gap",
        },
    ),
    "Depth of attention and MLP edges alone; of the whole graph": (
        "{:.3g}",
        {
            "head depth": "head_block_depth",
            "tail depth": "tail_block_depth",
            "head less tail": "block_depth_gap",
            "graph depth": "graph_block_depth",
        },
    ),
    "Shares of the edges by size; the rest is MLP": (
        "{:.0%}",
        {
            f"{kind} {s:g}": f"{kind}_{s:g}"
            for kind in ("residual", "attention")
            for s in PHASE_SIZES
        },
    ),
    "Depth at equal sizes: all edges; attention and MLP edges alone": (
        "{:.2f}",
        {
            f"{head} {s:g}": f"{quantity}_{s:g}"
            for quantity, head in (("depth", "all"), ("block_depth", "attn, MLP"))
            for s in PHASE_SIZES
        },
    ),
    _VERSUS: (
        "{:.2f}",
        {
            "construction to s": "construction_stop",
            "head at s": "head_size",
            "head depth": "head_depth",
            "head less tail": "depth_gap",
            "attention 0.05": "attention_0.05",
        },
    ),
}
"""Format and columns (heading, quantity) of each table; without a format, prompts are counted."""
