"""A comparison of discovery methods as tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable

import pandas as pd
from rich.console import Console

from strace_lens.comparison.comparison import LEAST_FOR_LEVEL, Comparison, rankings_drawn
from strace_lens.report.tables import frame_table, wide_console

_NAMED = 8


def print_comparison(comparison: Comparison) -> None:
    """Print the table of methods, what it stands on, and the edges that each method misses."""
    console = wide_console()
    _say(console, comparison_facts(comparison))
    _say(console, [f"warning: {line}" for line in comparison.warnings])
    console.print(frame_table("", comparison_cells(comparison)))
    _say(console, [_AREAS[comparison.metadata.get("ranking", "mib")], *_LEGEND, *comparison.notes])
    if comparison.truth is not None:
        _say(console, truth_lines(comparison))


def comparison_facts(comparison: Comparison) -> list[str]:
    """What the table stands on: model, task, pairs, metric, ablation, the control."""
    c = comparison
    right = "" if c.accuracy is None else f", right on {c.accuracy:.0%}"
    pairs = f"{c.pairs} pairs seen by the methods, circuits evaluated on "
    pairs += f"{c.evaluated_pairs} others" if c.held_out else "the same"
    dropped = f", {c.dropped} dropped as misaligned" if c.dropped else ""
    gap = max(result.faithfulness.full_gap for result in c.results)
    draws = len(c.random_cmd)
    level = "at most 1 in 20 does" if draws >= LEAST_FOR_LEVEL else "none does"
    control = "" if draws == 1 else f"; a method beats random if {level} as well"
    return [
        f"{c.model} on {c.task}: {c.metric} {c.metric_clean:.3g} clean, "
        f"{c.metric_corrupted:.3g} corrupted{right}",
        f"{pairs}{dropped}; {c.ablation} ablation; {c.graph.edges:,} edges; largest gap of the "
        f"full circuit to the untouched model {gap:.1e}",
        f"{rankings_drawn(draws)}{control}; memory above what was held before, measured {c.memory}",
    ]


def comparison_cells(comparison: Comparison) -> pd.DataFrame:
    """The table of methods as text, one row a method; columns of the truth only where known."""
    table, cells = comparison.table, pd.DataFrame()
    for column, (heading, show) in _COLUMNS.items():
        if column in ("auroc", "precision") and comparison.truth is None:
            continue
        cells[heading] = [show(value) for value in table[column]]
    return cells


def truth_lines(comparison: Comparison) -> list[str]:
    """How many edges the truth has, and which of them each method misses."""
    if comparison.truth is None:
        return []
    count = len(comparison.truth)
    lines = [f"true edges under {comparison.ablation} ablation ({comparison.truth_name}): {count}"]
    for result in comparison.results:
        left = len(result.missed) - _NAMED
        named = ", ".join(result.missed[:_NAMED]) + (f" and {left} more" if left > 0 else "")
        misses = f"misses {len(result.missed)}: {named}" if result.missed else "misses none"
        lines.append(f"  {result.method} {misses}")
    return lines


def _say(console: Console, lines: list[str]) -> None:
    for line in lines:
        console.print(line, soft_wrap=True)


def _number(form: str) -> Callable[[float | None], str]:
    return lambda x: "-" if x is None or math.isnan(x) else f"{x:{form}}"


def _yes(beats: bool | None) -> str:
    return "-" if beats is None else "yes" if beats else "no"


_COLUMNS: dict[str, tuple[str, Callable[..., str]]] = {
    "method": ("method", str),
    "forwards": ("fwd", _number(",.4g")),
    "backwards": ("bwd", _number(",.4g")),
    "seconds": ("s", _number(",.1f")),
    "peak_mb": ("MB", _number(",.0f")),
    "cpr": ("CPR", _number(".3f")),
    "cmd": ("CMD", _number(".3f")),
    "edges_at_85": ("edges", _number(",.0f")),
    "completeness": ("complement", _number(".3f")),
    "minimality": ("minimal", _number(".0%")),
    "auroc": ("AUROC", _number(".3f")),
    "precision": ("precision", _number(".0%")),
    "beats_random": ("> random", _yes),
}
"""Heading and form of each column."""

_AREAS = {
    "mib": "CPR: area under faithfulness over sizes, edges ranked by sign; CMD: area between "
    "faithfulness and 1, edges ranked by magnitude, as for all that follows.",
    "signed": "CPR: area under faithfulness over sizes; CMD: area between it and 1; edges are "
    "ranked by sign.",
    "absolute": "CPR: area under faithfulness over sizes; CMD: area between it and 1; edges are "
    "ranked by magnitude.",
}
"""What the areas are, by ranking."""

_LEGEND = [
    "fwd, bwd: forward and backward passes over all pairs seen; s: seconds; MB: peak memory.",
    "edges: fewest with 85 % faithfulness, the method's circuit. complement: faithfulness of all "
    "other edges (completeness; near 0 is complete).",
    "minimal: share of the circuit's edges, of a sample, whose loss costs 1 % of faithfulness.",
]
