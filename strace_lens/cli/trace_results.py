"""What `strace-lens trace` makes from a token graph: curves, the page, files, printed tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from strace_lens.cli.common import Bar
from strace_lens.cli.trace import PAGE, RESULT
from strace_lens.density.causal import phase_ablations
from strace_lens.density.cost import Plan, as_text
from strace_lens.density.curve import DensityCurve, density_curve
from strace_lens.density.phases import find_phases
from strace_lens.density.ways import Way, measure_ways, ways_summary
from strace_lens.files.results import save
from strace_lens.model.architecture import Model, UnsupportedModelError
from strace_lens.model.targets import Target
from strace_lens.report.summary import summarize
from strace_lens.report.tables import print_curve, print_ways
from strace_lens.report.trace import trace_report
from strace_lens.traces.estimators import estimate
from strace_lens.traces.extract import extract
from strace_lens.traces.graph import TokenGraph
from strace_lens.traces.lens import Lens, read_lens
from strace_lens.utils.disk import write_whole


def measure(
    model: Model,
    graph: TokenGraph,
    own: Way,
    others: Sequence[Way],
    importance: str,
    measured: dict[str, Any],
    gradient_budget: int,
    bar: Bar,
) -> dict[Way, DensityCurve]:
    """Rank and measure a prompt in the way that the options name, and then in others.

    Args:
        model: the model.
        graph: the token graph of the prompt.
        own: the way that the options name.
        others: the ways it is compared with.
        importance: the importance by which greedy ranks in the way `own`.
        measured: keyword arguments of `density_curve`.
        gradient_budget: bytes of a pass with gradients.
        bar: the progress bar.
    """
    bar.step(f"ranking: {own.estimator}")
    if own.estimator == "greedy":
        seeded = {name: measured[name] for name in ("seed", "memory_budget")}
        ranked = extract(graph, importance, **seeded)
    else:
        known = {name: measured[name] for name in ("replacement", "seed", "progress", "target")}
        ranked = estimate(
            model, graph, own.estimator, keep=own.keep, memory_budget=gradient_budget, **known
        )
    bar.step("running masks")
    curves = {own: density_curve(model, ranked, keep=own.keep, **measured)}
    if others:
        bar.step("measuring other ways")
        curves |= measure_ways(model, graph, others, gradient_budget=gradient_budget, **measured)
    return curves


def read_nodes(model: Model, graph: TokenGraph, target: Target | None) -> Lens | str:
    """Return what each node and head promotes, or a sentence that says why it is not shown."""
    try:
        return read_lens(model, graph, target)
    except UnsupportedModelError as error:
        return f"What nodes and heads promote is not shown: {error}."


def finish(
    model: Model,
    curves: Mapping[Way, DensityCurve],
    own: Way,
    same: dict[str, Any],
    lens: Lens | str,
    out: Path,
    printed: str,
    bar: Bar,
) -> None:
    """Find the phases, ablate them, write the page and files, and print a table or JSON."""
    bar.step("ablating the phases")
    tables = phase_ablations(model, list(curves.values()), **same)
    ablated = dict(zip(curves, tables, strict=True))
    bar.step("drawing")
    curve, phases = curves[own], find_phases(curves[own])
    page = trace_report(curve, phases, ablated[own], ways=curves, ablations=ablated, lens=lens)
    write_whole(out / PAGE, page.encode())
    for way, each in curves.items():
        save(each, out / (RESULT if way == own else f"trace-{way.name}.safetensors"))
    bar.stop()
    if printed == "json":
        summary = summarize(curve, phases, ablated[own]) | {"ways": ways_summary(curves)}
        print(json.dumps(summary, allow_nan=False))
        return
    if printed == "full":
        print_curve(curve, phases, ablated[own])
    if printed == "short" or len(curves) > 1:
        print_ways(curves)
    print(f"wrote {out / PAGE} and {out / RESULT}")


def print_plan(cost: Plan, fitting_steps: int, more: int, as_json: bool) -> None:
    """Print the cost of a trace, the steps of fitting and the rows of other ways."""
    if as_json:
        fields = {
            **vars(cost),
            "over_budget": cost.over_budget,
            "fitting_steps": fitting_steps,
            "rows_of_other_ways": more,
        }
        print(json.dumps(fields))
        return
    before = f"after {fitting_steps} steps of fitting: " if fitting_steps else ""
    print(
        f"{before}{cost.rows} rows in {cost.passes} forward passes, "
        f"at most {as_text(cost.bytes)} each, about {cost.seconds:.1f} seconds"
    )
    if more:
        print(f"other ways add at most {more} rows; --alone leaves them out")
    print(
        f"at most {as_text(cost.peak_bytes)} at once in addition to the weights, of which "
        f"{as_text(cost.graph_bytes)} token graph and {as_text(cost.trace_bytes)} trace"
    )
    if cost.over_budget:
        print(cost.over_budget)
