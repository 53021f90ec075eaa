"""What is read off a trial of estimators, in sentences: every number comes from its tables."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from strace_lens.corpus.trials.phases import SHOWN_SIZES
from strace_lens.corpus.trials.table import BASELINE
from strace_lens.measures.intervals import row_text

Row = dict[str, Any]
_EQUAL = 0.05  # where the depths of estimators are compared


def read_fidelity(table: pd.DataFrame) -> list[str]:
    """Density of each estimator, beside greedy's.

    Args:
        table: of `estimator_table`, as in all of these but where phases are read.
    """
    lines = []
    for row in table.to_dict("records"):
        text = f"{row['estimator']}: density {row_text(row, 'density', '{:.3f}')}"
        if row["estimator"] != BASELINE and not math.isnan(row["density_vs_greedy"]):
            text += f", {row_text(row, 'density_vs_greedy', '{:+.3f}')} beside greedy's"
        lines.append(f"{text}; top-1 right from s = {row['top1_size']:.3g} on.")
    return lines


def read_controls(table: pd.DataFrame) -> list[str]:
    """How near each estimator comes to a wrong target, and how its traces do elsewhere."""
    lines = []
    for row in table.to_dict("records"):
        text = (
            f"{row['estimator']}: aimed at a wrong target, lowest TV at sizes up to 0.2 is "
            f"{row['wrong_tv_mean']:.2f}, on the worst prompt {row['wrong_tv_min']:.2f}"
        )
        for name, said in _ELSEWHERE.items():
            if not math.isnan(row.get(name, math.nan)):
                text += f"; {said.format(row[name])} at s = 0.1"
        lines.append(f"{text}.")
    return lines


_ELSEWHERE = {
    "sibling_0.1": "on a sibling prompt TV is {:.2f}",
    "noise_0.1": "noise on the embeddings moves TV by {:.2f}",
}


def read_phases(table: pd.DataFrame) -> list[str]:
    """In how many prompts of each estimator construction and refinement are found, and where.

    Args:
        table: of `phase_table`.
    """
    lines = []
    for name, found in _quantities(table).items():
        start, stop = found["construction_start"], found["construction_stop"]
        if not start["prompts"]:
            lines.append(f"{name}: no prompt has a construction phase.")
            continue
        lines.append(
            f"{name}: construction in {_share(found, start)}, from s = {row_text(start)} "
            f"to {row_text(stop)}, where TV is {row_text(found['construction_tv'])}; "
            f"refinement after it in {_share(found, found['refinement_pace'])}. As the size grows "
            f"tenfold, TV falls by {row_text(found['construction_pace'])} in construction and by "
            f"{row_text(found['refinement_pace'])} after it."
        )
    return lines


def read_depth(table: pd.DataFrame) -> list[str]:
    """Whether the head subgraph of each estimator is early: beside the graph, and the refinement.

    Early and late are said where the interval says so.

    Args:
        table: of `phase_table`.
    """
    lines = []
    for name, found in _quantities(table).items():
        head, gap = found["head_size"], found["block_depth_gap"]
        if not head["prompts"]:
            lines.append(f"{name}: no prompt has its head restored at a measured size.")
            continue
        depth, graph = found["head_block_depth"], found["graph_block_depth"]["mean"]
        text = (
            f"{name}: head subgraph complete at s = {row_text(head)} in {_share(found, head)}; "
            f"depth of its edges {row_text(found['head_depth'])}, without the residual ones "
            f"{row_text(depth)}"
            f"{_verdict(depth, graph, 'the whole graph')} ({graph:.3g})"
        )
        if gap["prompts"]:
            text += (
                f"; head less refinement, residual edges left out, {row_text(gap)} in "
                f"{_share(found, gap)}{_verdict(gap, 0.0, 'the refinement')}"
            )
        lines.append(f"{text}.{_at_equal_size(name, found)}")
    return lines


def _at_equal_size(name: str, found: dict[str, Row]) -> str:
    row = found.get(f"block_depth_{_EQUAL:g}")
    if row is None or not row["prompts"]:
        return ""
    text = f" At s = {_EQUAL:g}, residual edges left out, depth {row_text(row)}"
    if name != BASELINE and not math.isnan(row["vs_greedy"]):
        text += f", {row_text(row, 'vs_greedy', '{:+.3f}')} beside greedy's"
    return f"{text}."


def read_kinds(table: pd.DataFrame) -> list[str]:
    """Shares of attention and of residual edges of each estimator by size.

    Args:
        table: of `phase_table`.
    """
    lines = []
    for name, found in _quantities(table).items():
        shown = [s for s in SHOWN_SIZES if f"attention_{s:g}" in found]
        parts = [
            f"{kind} {', '.join(row_text(found[f'{kind}_{s:g}'], shown='{:.0%}') for s in shown)}"
            for kind in ("residual", "attention", "mlp")
        ]
        if shown:
            sizes = ", ".join(f"{s:g}" for s in shown)
            lines.append(f"{name}, at s = {sizes}: {'; '.join(parts).replace('mlp', 'MLP')}.")
    return lines


def read_compute(table: pd.DataFrame) -> list[str]:
    """Compute share of each estimator by size, beside the TV."""
    lines = []
    for row in table.to_dict("records"):
        parts = [
            f"{row[f'compute_{s:g}']:.2f} at s = {s:g} (TV {row[f'tv_{s:g}']:.2f})"
            for s in SHOWN_SIZES
            if f"compute_{s:g}" in row and f"tv_{s:g}" in row
        ]
        if parts:
            lines.append(f"{row['estimator']}: compute share {', '.join(parts)}.")
    return lines


def _quantities(table: pd.DataFrame) -> dict[str, dict[str, Row]]:
    """Rows of a phase table by estimator and quantity."""
    found: dict[str, dict[str, Row]] = {}
    for row in table.to_dict("records"):
        found.setdefault(str(row["estimator"]), {})[str(row["quantity"])] = dict(row)
    return found


def _share(found: dict[str, Row], row: Row) -> str:
    """In how many prompts something was found, of all that have anything."""
    total = max(other["prompts"] for other in found.values())
    return f"{row['prompts']} of {total} prompt{'s' * (total != 1)}"


def _verdict(row: Row, level: float, than: str) -> str:
    """Earlier or later, where an interval lies below or above a level; nothing without one."""
    if math.isnan(row["low"]):
        return f", beside {than}"
    if row["high"] < level:
        return f", earlier than {than}"
    if row["low"] > level:
        return f", later than {than}"
    return f", not told apart from {than}"
