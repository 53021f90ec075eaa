"""`--dry-run` of `sweep` and `compare`: what they cost and run, before any weight is read."""

from __future__ import annotations

import json
import re

from rich.table import Table

from strace_lens.comparison.plan import ComparisonPlan
from strace_lens.corpus.plan import SweepPlan
from strace_lens.density.cost import as_text
from strace_lens.report.tables import wide_console


def stated_lengths(prompts: str) -> list[int] | None:
    """Return the tokens of each prompt for a text like 5000x50, or None for a source of prompts."""
    found = re.fullmatch(r"(\d+)x(\d+)", prompts)
    return None if found is None else int(found[1]) * [int(found[2])]


def duration(seconds: float) -> str:
    """Return seconds in a suitable unit."""
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} seconds"


def print_comparison_plan(plan: ComparisonPlan, as_json: bool) -> None:
    """Print the cost of a comparison."""
    if as_json:
        print(json.dumps(plan.to_dict(), allow_nan=False))
        return
    console = wide_console()
    dropped = f", {plan.dropped} that do not align left out" if plan.dropped else ""
    console.print(
        f"{plan.task} on {plan.model} in {plan.dtype}: {plan.pairs} pairs that the methods see, "
        f"{plan.evaluated_pairs} for the evaluation{dropped}, the longest of {plan.longest} "
        f"tokens; {plan.edges:,} edges",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False)
    for head in ("method", "forward", "backward", "time", "circuits", "time of evaluation"):
        table.add_column(head, justify="left" if head == "method" else "right")
    for method in plan.methods:
        if method.skipped:
            table.add_row(method.method, "skipped")
            continue
        passes = (method.forwards, method.backwards)
        table.add_row(
            method.method,
            *("?" if count is None else f"{count:,.4g}" for count in passes),
            "?" if method.seconds is None else duration(method.seconds),
            f"{method.circuits:,}",
            duration(method.evaluation_seconds),
        )
    console.print(table)
    lines = [
        f"about {duration(plan.seconds)} ({plan.speed}), besides loading and drawing",
        f"{as_text(plan.weights_bytes)} of weights, and in addition about "
        f"{as_text(plan.peak_bytes)} at once",
        "forward, backward: passes for each pair, at the least",
    ]
    if any(method.seconds is None and not method.skipped for method in plan.methods):
        lines.append("?: a method of your own, whose passes are not known and not counted")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_plan(plan: SweepPlan, as_json: bool) -> None:
    """Print the cost of a sweep."""
    if as_json:
        print(json.dumps(plan.to_dict(), allow_nan=False))
        return
    console = wide_console()
    console.print(
        f"{plan.model} in {plan.dtype}: {plan.prompts:,} prompts of {plan.tokens:,} tokens, the "
        f"longest of {plan.longest:,}",
        markup=False,
    )
    table = Table(box=None, pad_edge=False)
    heads = ("estimator", "keep", "rows", "passes", "forward", "backward", "FLOP", "time", "disk")
    for head in heads:
        table.add_column(head, justify="left" if head in heads[:2] else "right")
    for run in plan.combinations:
        counts = (run.rows, run.passes, run.forward, run.backward)
        table.add_row(
            run.estimator,
            "+".join(run.keep) or "none",
            *(f"{count:,}" for count in counts),
            f"{run.flops:.2e}",
            duration(run.seconds),
            as_text(run.disk_bytes),
        )
    console.print(table)
    shared = f", shared by {plan.workers} workers" if plan.workers > 1 else ""
    gradient = f", {as_text(plan.gradient_bytes)} with gradients" if plan.gradient_bytes else ""
    lines = [
        f"at most {plan.flops:.2e} FLOP, about {duration(plan.seconds)}{shared} "
        f"({plan.speed}), {as_text(plan.disk_bytes)} on disk",
        f"{as_text(plan.weights_bytes)} of weights, and in addition at most "
        f"{as_text(plan.peak_bytes)} at once, of which {as_text(plan.pass_bytes)} a forward pass"
        f"{gradient}",
        *(f"assumed: {sentence}" for sentence in plan.assumptions),
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
