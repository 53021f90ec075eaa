"""`strace-lens trace`: one prompt, ranked, measured, drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from strace_lens.cli.common import (
    AllowPickleOption,
    Bar,
    BosOption,
    DeviceMapOption,
    DeviceOption,
    DtypeOption,
    EstimatorOption,
    JsonOption,
    KeepOption,
    MemoryOption,
    ModelOption,
    RefineOption,
    RevisionOption,
    budgets,
    completing,
    load_from_options,
    one_line_errors,
    parse_keep,
    parse_sizes,
    prompt_text,
)
from strace_lens.density.causal import phase_ablation
from strace_lens.density.cost import Plan, as_text, plan
from strace_lens.density.curve import DensityCurve, density_curve
from strace_lens.density.phases import find_phases
from strace_lens.density.ways import WAYS, Way, measure_ways, way_of, ways_summary
from strace_lens.files.results import save
from strace_lens.measures.sizes import REFINE, SIZES
from strace_lens.model.architecture import Model
from strace_lens.model.checks import architecture_of
from strace_lens.model.prompts import tokenize
from strace_lens.report.summary import summarize
from strace_lens.report.tables import print_curve, print_ways
from strace_lens.report.trace import trace_report
from strace_lens.traces.ablation import ABLATIONS, Replacement, replacement
from strace_lens.traces.curve_rows import most_rows
from strace_lens.traces.estimators import estimate, estimator_of, steps
from strace_lens.traces.extract import extract
from strace_lens.traces.graph import TokenGraph, token_graph
from strace_lens.traces.importance import IMPORTANCES, importance_function
from strace_lens.traces.trace import Trace
from strace_lens.utils.disk import read_text, results_folder, write_whole

PAGE = "trace.html"
RESULT = "trace.safetensors"
IMPORTANCE = "l1"
TABLES = ("short", "full")


def trace(
    prompt: Annotated[
        str | None, typer.Argument(help="The text whose next token is traced.")
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="Read the prompt from a file instead.", dir_okay=False)
    ] = None,
    model: ModelOption = "smollm2",
    sizes: Annotated[
        str | None,
        typer.Option(help="Relative sizes, as in 0.001,0.01,0.1. Default: the paper's 27."),
    ] = None,
    refine: RefineOption = REFINE,
    estimator: EstimatorOption = "greedy",
    keep: KeepOption = "none",
    importance: Annotated[
        str,
        typer.Option(
            help=f"What greedy ranks by: {', '.join(IMPORTANCES)}; leverage(k) takes the top k "
            "directions of a node's in-edges.",
            autocompletion=completing(IMPORTANCES),
        ),
    ] = IMPORTANCE,
    ablation: Annotated[
        str,
        typer.Option(
            help="What replaces an ablated edge: zero, mean (over reference text) or resample (its "
            "value on another prompt).",
            autocompletion=completing(ABLATIONS),
        ),
    ] = "zero",
    corrupted: Annotated[
        str | None, typer.Option(help="The second prompt of --ablation resample; it is as long.")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="Text for --ablation mean. Default: a page of text.", dir_okay=False),
    ] = None,
    device: DeviceOption = None,
    device_map: DeviceMapOption = None,
    dtype: DtypeOption = "float32",
    allow_pickle: AllowPickleOption = False,
    revision: RevisionOption = None,
    out: Annotated[Path, typer.Option(help=f"Folder for {PAGE} and {RESULT}.")] = Path("out"),
    seed: Annotated[
        int, typer.Option(help="Seed of the random control and of estimators that draw.")
    ] = 0,
    bos: BosOption = None,
    memory: MemoryOption = None,
    alone: Annotated[
        bool,
        typer.Option(
            "--alone",
            help="Measure this trace only, without the definition, the same with attention left in "
            "place, and a tight trace.",
        ),
    ] = False,
    table: Annotated[
        str,
        typer.Option(
            help="short: about ten sizes of each way in 80 columns; full: every size and column.",
            autocompletion=completing(TABLES),
        ),
    ] = "short",
    as_json: JsonOption = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Estimate passes, bytes and seconds; run nothing."),
    ] = False,
) -> None:
    """Trace one prompt: how much of the model does its next token need?

    All edges of the model's computation graph are ranked. At every size s the first s of them are
    run together with controls, and the page shows where the prediction is constructed and where it
    is refined. The same prompt is also measured with attention edges left in place, as in the
    authors' released evaluation, and with a tighter ranking.

    Example: strace-lens trace "The capital of France is" --keep attention
    """
    files = (PAGE, RESULT)
    folder = nullcontext() if dry_run else results_folder(out, files)
    with one_line_errors(), folder, Bar() as bar:
        text = prompt_text(prompt, prompt_file)
        grid = parse_sizes(sizes) or SIZES
        _check_ranking(estimator, importance)
        _check_table(table)
        kept = parse_keep(keep)
        own = way_of(estimator, kept, importance)
        others = [] if alone else [way for way in WAYS if way != own]
        forward, backward = budgets(memory)
        loaded = load_from_options(
            bar,
            model,
            device=device,
            device_map=device_map,
            dtype=dtype,
            allow_pickle=allow_pickle,
            revision=revision,
        )
        tokens = tokenize(loaded, architecture_of(loaded), text, bos)
        cost = plan(loaded, len(tokens.ids), sizes=grid, refine=refine, memory_budget=forward)
        if dry_run:
            bar.stop()
            more = len(others) * most_rows(grid, controls=False, refine=refine)
            _print_plan(cost, steps(estimator), more, as_json)
            return
        references = None if reference is None else [read_text(reference)]
        swap = replacement(loaded, tokens, ablation, corrupted=corrupted, references=references)
        same = {"replacement": swap, "seed": seed, "memory_budget": forward}
        bar.step("reading the token graph")
        graph = token_graph(loaded, tokens)
        ranked = _ranked(
            loaded,
            graph,
            own,
            importance,
            swap=swap,
            seed=seed,
            memory=(forward, backward),
            bar=bar,
        )
        bar.step("running masks")
        curve = density_curve(
            loaded,
            ranked,
            sizes=grid,
            refine=refine,
            keep=kept,
            progress=bar.tell,
            **same,
        )
        measured = {own: curve}
        if others:
            bar.step("measuring other ways")
            measured |= measure_ways(
                loaded,
                graph,
                others,
                sizes=grid,
                refine=refine,
                gradient_budget=backward,
                progress=bar.tell,
                **same,
            )
        curves = {way: measured[way] for way in dict.fromkeys((*WAYS, own)) if way in measured}
        _finish(loaded, curves, own, same, out, "json" if as_json else table, bar)


def _check_table(table: str) -> None:
    if table not in TABLES:
        raise ValueError(f"unknown table {table!r}; choose from {', '.join(TABLES)}")


def _check_ranking(estimator: str, importance: str) -> None:
    estimator_of(estimator)
    importance_function(importance)
    if estimator != "greedy" and importance != IMPORTANCE:
        raise ValueError(
            f"--importance {importance} is for --estimator greedy; {estimator} scores edges itself"
        )


def _ranked(
    model: Model,
    graph: TokenGraph,
    way: Way,
    importance: str,
    *,
    swap: Replacement,
    seed: int,
    memory: tuple[int, int],
    bar: Bar,
) -> Trace:
    """Rank the edges of a graph within the bytes of a forward and of a backward pass."""
    forward, backward = memory
    if way.estimator == "greedy":
        return extract(graph, importance, seed=seed, memory_budget=forward)
    bar.step(f"ranking: {way.estimator}")
    return estimate(
        model,
        graph,
        way.estimator,
        keep=way.keep,
        replacement=swap,
        seed=seed,
        memory_budget=backward,
        progress=bar.tell,
    )


def _finish(
    model: Model,
    curves: Mapping[Way, DensityCurve],
    own: Way,
    same: dict[str, Any],
    out: Path,
    printed: str,
    bar: Bar,
) -> None:
    """Find the phases, ablate them, write page and files, and print a table or JSON."""
    bar.step("ablating the phases")
    ablated = {way: phase_ablation(model, curve, **same) for way, curve in curves.items()}
    bar.step("drawing")
    curve, phases = curves[own], find_phases(curves[own])
    page = trace_report(curve, phases, ablated[own], ways=curves, ablations=ablated)
    write_whole(out / PAGE, page.encode())
    save(curve, out / RESULT)
    for way, other in curves.items():
        if way != own:
            save(other, out / f"trace-{way.name}.safetensors")
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


def _print_plan(cost: Plan, fitting_steps: int, more: int, as_json: bool) -> None:
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
