"""`--dry-run` of `sweep` and `compare`: what they cost and run, before any weight is read."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from rich.table import Table

from strace_lens.circuits.discover.methods import METHODS
from strace_lens.corpus.plan import SweepPlan
from strace_lens.density.cost import as_text
from strace_lens.model.skeleton import Skeleton
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


def print_comparison_plan(
    task: str,
    model: Skeleton | None,
    pairs: str,
    methods: Collection[str],
    options: Mapping[str, Mapping[str, Any]],
    as_json: bool,
) -> None:
    """Print what a comparison runs.

    Args:
        task: its name.
        model: what the configuration says; None for a task that brings its own model.
        pairs: how many, in words.
        methods: keys of `METHODS`.
        options: those given to each method, by its name.
        as_json: print an object instead of a table.
    """
    default = {n for n in methods if not options.get(n) and not METHODS[n].large_options}
    passes = {name: METHODS[name].passes if name in default else None for name in methods}
    if as_json:
        facts = None if model is None else {"name": model.name, "bytes": model.weights_bytes}
        print(json.dumps({"task": task, "model": facts, "pairs": pairs, "passes": passes}))
        return
    own = "the model that the task brings"
    of = f"{model.name}, {as_text(model.weights_bytes)} of weights" if model else own
    print(f"{task} on {of}\npairs: {pairs}\n\npasses a pair          forward  backward")
    for name, known in passes.items():
        ahead, back = ("?", "?") if known is None else map(str, known)
        print(f"{name:<21} {ahead:>8} {back:>9}")
    print()
    if None in passes.values():
        print("?: depends on the graph, the task or the options of the method")
    print(
        "Every circuit is then evaluated by forward passes. Seconds and peak memory "
        "are\nknown only once the model is loaded."
    )


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
