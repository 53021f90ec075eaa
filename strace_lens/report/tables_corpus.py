"""The analyses of sweeps as small tables of text, for a terminal and a page."""

# pandas' types are wider than what it returns here.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from strace_lens.corpus.analyses.arrays import kept_kinds
from strace_lens.corpus.run_folder import Run
from strace_lens.measures.intervals import interval, interval_text
from strace_lens.report.estimators import estimator_sections

SHOWN_SIZES = (0.001, 0.01, 0.1, 0.2, 0.4)
NUCLEI = (0.01, 0.5, 0.9, 0.99)

Cell = Callable[[Mapping[Any, Any]], object]
"""What is shown of a row."""


def corpus_sections(
    runs: Sequence[Run], tables: Mapping[str, pd.DataFrame]
) -> dict[str, pd.DataFrame]:
    """Short tables by title; one that has nothing to show is left out.

    Args:
        runs: of `read_run`.
        tables: of `analyse`, for the same runs.
    """
    boundaries, needed = tables["corpus_boundaries"], tables["size_needed"]
    halves, keeping = tables["head_and_tail_means"], [run.name for run in runs if kept_kinds(run)]
    # Of runs that keep nothing, what is said of ablatable edges is said of all and left out.
    own = ~halves["quantity"].str.contains("ablatable") | halves["run"].isin(keeping)
    correlation = {"rho": _estimate("rho", shown="{:.2f}"), "p": _p, "prompts": "prompts"}
    sections = {
        "Runs, and 95 % bootstrap intervals over prompts": _runs(runs),
        "Phase boundaries of the mean curve": _shown(
            boundaries,
            {
                "run": "run",
                "quantity": _words("quantity"),
                "value": _estimate("value"),
                "found in": lambda row: (
                    "-" if math.isnan(row["found"]) else f"{row['found']:.0%} of resamples"
                ),
            },
        ),
        "Smallest relative size that is enough: median and quartiles over prompts": _shown(
            needed[(needed["what"] != "nucleus") | needed["level"].isin(NUCLEI)],
            {
                "run": "run",
                "for": _asked,
                "rule": "rule",
                "size": lambda row: (
                    f"{_size(row['median'])} [{_size(row['q1'])}, {_size(row['q3'])}]"
                ),
                "never": "never",
                "prompts": "prompts",
            },
        ),
        "Head subgraph and tail refinement": _shown(
            halves[own],
            {
                "run": "run",
                "quantity": _words("quantity"),
                "mean": _estimate("mean"),
                "prompts": "prompts",
            },
        ),
        "Share of the trace's edges by size": _by_size(
            tables["kinds_by_size"], "kind", _estimate("share", shown="{:.0%}")
        ),
        "Spearman correlation of density": _shown(
            tables["density_correlations"],
            {"run": "run", "with": "what", "given": lambda row: row["given"] or "-", **correlation},
        ),
        "The parts of density: Spearman correlation": _shown(
            tables["part_correlations"],
            {"run": "run", "part": _words("part"), "with": "what", **correlation},
        ),
        "Density by label": _shown(
            tables["density_by_label"],
            {
                **{name: name for name in ("run", "label", "value")},
                "density": _estimate("mean"),
                "prompts": "prompts",
                "Kruskal-Wallis p": _p,
            },
        ),
        "TV of the trace to shallow statistics by size; the full model's in the last column": (
            _shallow(tables["shallow"], tables["shallow_full_model"])
        ),
        "Components in at least 90 % of the prompts' traces, by size": _by_size(
            tables["core"], "kind", lambda row: f"{row['core']} of {row['components']}"
        ),
    }
    sections |= estimator_sections(tables)
    if "between_runs" in tables:
        pairs = tables["between_runs"]
        sections["Density between runs, prompts that both have"] = _shown(
            pairs[pairs["a"] < pairs["b"]],
            {
                "runs": lambda row: f"{row['a']}, {row['b']}",
                "rho": _estimate("rho", shown="{:.2f}"),
                "mean difference": _estimate(
                    "mean_difference", "difference_low", "difference_high"
                ),
                "prompts": "prompts",
            },
        )
    return {title: frame for title, frame in sections.items() if len(frame)}


def _runs(runs: Sequence[Run]) -> pd.DataFrame:
    rows = []
    for run in runs:
        means = {}
        for name in ("density", "entropy", "tokens"):
            values = run.prompts[name].to_numpy(dtype=np.float64)
            low, high = interval(values)
            means[name] = interval_text(float(values.mean()), float(low), float(high))
        rows.append(
            {
                "run": run.name,
                "model": run.model,
                "estimator": run.manifest["options"].get("estimator", ""),
                "prompts": len(run.prompts),
                "failed": len(run.failures),
                **means,
            }
        )
    return pd.DataFrame(rows)


def _shown(table: pd.DataFrame, columns: Mapping[str, str | Cell]) -> pd.DataFrame:
    """A table with a column for each title: one of the given table, or made row by row."""
    rows = table.to_dict("records")
    return pd.DataFrame(
        {
            title: [row[cell] if isinstance(cell, str) else cell(row) for row in rows]
            for title, cell in columns.items()
        }
    )


def _by_size(table: pd.DataFrame, part: str, cell: Cell) -> pd.DataFrame:
    """A row for each run and part, with a cell for each of `SHOWN_SIZES` that was measured."""
    near = np.isclose(table["size"].to_numpy()[:, None], SHOWN_SIZES, rtol=1e-9, atol=0)
    rows = []
    for (run, of), one in table[near.any(1)].groupby(["run", part], sort=False):
        cells = {f"s = {row['size']:g}": cell(row) for row in one.to_dict("records")}
        rows.append({"run": run, part: of, **cells})
    return pd.DataFrame(rows)


def _shallow(table: pd.DataFrame, full: pd.DataFrame) -> pd.DataFrame:
    text = _estimate("tv")
    own = {(row["run"], row["target"]): text(row) for row in full.to_dict("records")}
    shown = _by_size(table, "target", text)
    if len(shown):
        keys = zip(shown["run"], shown["target"], strict=True)
        shown["full model"] = [own.get(key, "-") for key in keys]
    return shown


def _estimate(value: str, low: str = "low", high: str = "high", shown: str = "{:.3g}") -> Cell:
    """A value with its interval."""
    return lambda row: interval_text(row[value], row[low], row[high], shown)


def _words(column: str) -> Cell:
    return lambda row: str(row[column]).replace("_", " ")


def _p(row: Mapping[Any, Any]) -> str:
    return "-" if math.isnan(row["p"]) else f"{row['p']:.2g}"


def _asked(row: Mapping[Any, Any]) -> str:
    """What a size is needed for, and the level if there is one."""
    what = row["what"].replace("_", " ")
    return what if math.isnan(row["level"]) else f"{what} {row['level']:g}"


def _size(size: float) -> str:
    """A size, or that so large a share of the prompts never gets there."""
    return "never" if math.isnan(size) else f"{size:.3g}"
