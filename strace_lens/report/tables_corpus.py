"""The analyses of sweeps as small tables of text, for a terminal and a page."""

# pandas' types are wider than what it returns here.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from strace_lens.corpus.analyses.arrays import kept_kinds
from strace_lens.corpus.analyses.estimators import PHASE_SIZES
from strace_lens.corpus.run_folder import Run
from strace_lens.measures.intervals import interval, interval_text, row_text
from strace_lens.report.tables import cell

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
    correlation = {"rho": _estimate("rho", "{:.2f}"), "p": _p, "prompts": "prompts"}
    sections = {
        "Runs, and 95 % bootstrap intervals over prompts": _runs(runs),
        "Phase boundaries of the mean curve": _shown(
            boundaries,
            {
                "run": "run",
                "quantity": _words("quantity"),
                "value": _estimate("value"),
                "found in": lambda row: cell(row["found"], "{:.0%} of resamples"),
            },
        ),
        "Smallest relative size that is enough: median and quartiles over prompts": _shown(
            needed[(needed["what"] != "nucleus") | needed["level"].isin(NUCLEI)],
            {
                "run": "run",
                "for": _asked,
                "rule": "rule",
                "size": lambda row: (
                    f"{_size(row, 'median')} [{_size(row, 'q1')}, {_size(row, 'q3')}]"
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
            tables["kinds_by_size"], "kind", _estimate("share", "{:.0%}")
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
        **estimator_sections(tables),
    }
    if "between_runs" in tables:
        pairs = tables["between_runs"]
        sections["Density between runs, prompts that both have"] = _shown(
            pairs[pairs["a"] < pairs["b"]],
            {
                "runs": lambda row: f"{row['a']}, {row['b']}",
                "rho": _estimate("rho", "{:.2f}"),
                "mean difference": lambda row: interval_text(
                    row["mean_difference"], row["difference_low"], row["difference_high"]
                ),
                "prompts": "prompts",
            },
        )
    return {title: frame for title, frame in sections.items() if len(frame)}


def _runs(runs: Sequence[Run]) -> pd.DataFrame:
    rows = []
    for run in runs:
        row = {
            "run": run.name,
            "model": run.model,
            "estimator": run.manifest["options"].get("estimator", ""),
            "prompts": len(run.prompts),
            "failed": len(run.failures),
        }
        for name in ("density", "entropy", "tokens"):
            values = run.prompts[name].to_numpy(dtype=np.float64)
            low, high = interval(values)
            row[name] = interval_text(float(values.mean()), float(low), float(high))
        rows.append(row)
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


def _estimate(value: str, shown: str = "{:.3g}") -> Cell:
    """A value with its interval, whose ends are `low` and `high`."""
    return lambda row: interval_text(row[value], row["low"], row["high"], shown)


def _words(column: str) -> Cell:
    return lambda row: str(row[column]).replace("_", " ")


def _p(row: Mapping[Any, Any]) -> str:
    return cell(row["p"], "{:.2g}")


def _asked(row: Mapping[Any, Any]) -> str:
    """What a size is needed for, and the level if there is one."""
    level = "" if pd.isna(row["level"]) else f" {row['level']:g}"
    return row["what"].replace("_", " ") + level


def _size(row: Mapping[Any, Any], quantile: str) -> str:
    """A size, or that so large a share of the prompts never gets there."""
    return "never" if pd.isna(row[quantile]) else f"{row[quantile]:.3g}"


def estimator_sections(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Small tables of text by title, a run a row; none without the controls of estimators.

    Args:
        tables: of `analyse`.
    """
    if "estimator_table" not in tables:
        return {}
    table, phases = tables["estimator_table"], tables["estimator_phases"]
    sections = {}
    for title, columns in _COMPARISON.items():
        sections[title] = frame = pd.DataFrame({"run": table["run"]})
        for pattern, shown in columns.items():
            for column in fnmatch.filter(table.columns, pattern):
                at = column.removeprefix(pattern.removesuffix("*"))
                frame[f"{shown}{at}"] = _column(table, column, _COUNTS.get(column, "{:.3f}"))
    names = phases["run"].unique().tolist()
    for title, (shown, columns) in _PHASES.items():
        column = {_FOUND: "prompts", _VERSUS: "vs_greedy"}.get(title, "mean")
        frame = pd.DataFrame({"run": names})
        for head, quantity in columns.items():
            rows = phases[phases["quantity"] == quantity]
            if len(rows):
                frame[head] = _column(rows.set_index("run").reindex(names), column, shown)
        if len(frame.columns) > 1:
            sections[title] = frame
    return sections


def _column(table: pd.DataFrame, column: str, shown: str) -> list[str]:
    """A column as text, with its intervals if it has any."""
    if column != "mean" and f"{column}_low" not in table:
        return [cell(value, shown) for value in table[column].tolist()]
    return [row_text(row, column, shown) for row in table.to_dict("records")]


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

_COUNTS = {"forward": "{:,.0f}", "backward": "{:,.0f}", "seeds": "{}"}
_FOUND = "In how many prompts each phase was found"
_VERSUS = "Compared with greedy, paired by prompt: sizes over greedy's, others less greedy's"
_PHASES: dict[str, tuple[str, dict[str, str]]] = {
    _FOUND: (
        "{}",
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
"""Format and columns (heading, quantity) of each table."""
