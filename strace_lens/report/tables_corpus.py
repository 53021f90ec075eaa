"""The analyses of sweeps as small tables of text, for a terminal and a page."""

# pandas' types are wider than what it returns here.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from strace_lens.corpus.analyses.arrays import kept_kinds
from strace_lens.corpus.run_folder import Run
from strace_lens.measures.intervals import interval, interval_text, row_text

SHOWN_SIZES = (0.001, 0.01, 0.1, 0.2, 0.4)
NUCLEI = (0.01, 0.5, 0.9, 0.99)


def corpus_sections(
    runs: Sequence[Run], tables: Mapping[str, pd.DataFrame]
) -> dict[str, pd.DataFrame]:
    """Short tables by title; one that has nothing to show is left out.

    Args:
        runs: of `read_run`.
        tables: of `analyse`, for the same runs.
    """
    sections = {
        "Runs, and 95 % bootstrap intervals over prompts": _runs(runs),
        "Phase boundaries of the mean curve": _boundaries(tables["corpus_boundaries"]),
        "Smallest relative size that is enough: median and quartiles over prompts": _needed(
            tables["size_needed"]
        ),
        "Head subgraph and tail refinement": _head_and_tail(
            tables["head_and_tail_means"], [run.name for run in runs if kept_kinds(run)]
        ),
        "Share of the trace's edges by size": _kinds(tables["kinds_by_size"]),
        "Spearman correlation of density": _correlations(tables["density_correlations"]),
        "The parts of density: Spearman correlation": _parts(tables["part_correlations"]),
        "Density by label": _labels(tables["density_by_label"]),
        "TV of the trace to shallow statistics by size; the full model's in the last column": (
            _shallow(tables["shallow"], tables["shallow_full_model"])
        ),
        "Components in at least 90 % of the prompts' traces, by size": _core(tables["core"]),
    }
    if "between_runs" in tables:
        sections["Density between runs, prompts that both have"] = _between(tables["between_runs"])
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


def _boundaries(table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (run, quantity), one in table.groupby(["run", "quantity"], sort=False):
        (row,) = one.to_dict("records")
        rows.append(
            {
                "run": run,
                "quantity": str(quantity).replace("_", " "),
                "value": interval_text(row["value"], row["low"], row["high"]),
                "found in": "-" if math.isnan(row["found"]) else f"{row['found']:.0%} of resamples",
            }
        )
    return pd.DataFrame(rows)


def _needed(table: pd.DataFrame) -> pd.DataFrame:
    shown = table[(table["what"] != "nucleus") | table["level"].isin(NUCLEI)]
    cells = [
        {
            "run": row["run"],
            "for": row["what"].replace("_", " ")
            + ("" if math.isnan(row["level"]) else f" {row['level']:g}"),
            "rule": row["rule"],
            "size": f"{_size(row['median'])} [{_size(row['q1'])}, {_size(row['q3'])}]",
            "never": row["never"],
            "prompts": row["prompts"],
        }
        for row in shown.to_dict("records")
    ]
    return pd.DataFrame(cells)


def _size(size: float) -> str:
    """A size, or that so large a share of the prompts never gets there."""
    return "never" if math.isnan(size) else f"{size:.3g}"


def _head_and_tail(table: pd.DataFrame, keeping: Sequence[str]) -> pd.DataFrame:
    """Of runs that keep nothing, what is told of ablatable edges is told of all and left out."""
    return pd.DataFrame(
        {
            "run": row["run"],
            "quantity": str(row["quantity"]).replace("_", " "),
            "mean": row_text(row),
            "prompts": row["prompts"],
        }
        for row in table.to_dict("records")
        if row["run"] in keeping or "ablatable" not in row["quantity"]
    )


def _at_sizes(table: pd.DataFrame) -> pd.DataFrame:
    near = np.isclose(table["size"].to_numpy()[:, None], SHOWN_SIZES, rtol=1e-9, atol=0)
    return table[near.any(1)]


def _kinds(table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (run, kind), one in _at_sizes(table).groupby(["run", "kind"], sort=False):
        cells = {
            f"s = {row['size']:g}": interval_text(row["share"], row["low"], row["high"], "{:.0%}")
            for row in one.to_dict("records")
        }
        rows.append({"run": run, "kind": kind, **cells})
    return pd.DataFrame(rows)


def _correlations(table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "run": row["run"],
            "with": row["what"],
            "given": row["given"] or "-",
            "rho": interval_text(row["rho"], row["low"], row["high"], "{:.2f}"),
            "p": "-" if math.isnan(row["p"]) else f"{row['p']:.2g}",
            "prompts": row["prompts"],
        }
        for row in table.to_dict("records")
    )


def _parts(table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "run": row["run"],
            "part": row["part"].replace("_", " "),
            "with": row["what"],
            "rho": interval_text(row["rho"], row["low"], row["high"], "{:.2f}"),
            "p": "-" if math.isnan(row["p"]) else f"{row['p']:.2g}",
            "prompts": row["prompts"],
        }
        for row in table.to_dict("records")
    )


def _labels(table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "run": row["run"],
            "label": row["label"],
            "value": row["value"],
            "density": row_text(row),
            "prompts": row["prompts"],
            "Kruskal-Wallis p": "-" if math.isnan(row["p"]) else f"{row['p']:.2g}",
        }
        for row in table.to_dict("records")
    )


def _shallow(table: pd.DataFrame, full: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (run, target), one in _at_sizes(table).groupby(["run", "target"], sort=False):
        cells = {f"s = {row['size']:g}": row_text(row, "tv") for row in _named(one, "tv")}
        own = full[(full["run"] == run) & (full["target"] == target)]
        model = [row_text(row, "tv") for row in _named(own, "tv")]
        rows.append({"run": run, "target": target, **cells, "full model": (model or ["-"])[0]})
    return pd.DataFrame(rows)


def _named(table: pd.DataFrame, column: str) -> list[dict[str, Any]]:
    """Rows whose interval is named after its column, as `row_text` reads it."""
    ends = {"low": f"{column}_low", "high": f"{column}_high"}
    return [
        {str(k): v for k, v in r.items()} for r in table.rename(columns=ends).to_dict("records")
    ]


def _core(table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (run, kind), one in _at_sizes(table).groupby(["run", "kind"], sort=False):
        cells = {
            f"s = {row['size']:g}": f"{row['core']} of {row['components']}"
            for row in one.to_dict("records")
        }
        rows.append({"run": run, "kind": kind, **cells})
    return pd.DataFrame(rows)


def _between(table: pd.DataFrame) -> pd.DataFrame:
    pairs = table[table["a"] < table["b"]]
    return pd.DataFrame(
        {
            "runs": f"{row['a']}, {row['b']}",
            "rho": interval_text(row["rho"], row["low"], row["high"], "{:.2f}"),
            "mean difference": interval_text(
                row["mean_difference"], row["difference_low"], row["difference_high"]
            ),
            "prompts": row["prompts"],
        }
        for row in pairs.to_dict("records")
    )
