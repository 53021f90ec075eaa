"""`strace-lens trace`: one prompt, ranked, measured, drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from strace_lens.cli import options as opt
from strace_lens.cli.common import Bar, one_line_errors
from strace_lens.density.causal import phase_ablations
from strace_lens.density.cost import Plan, as_text, plan
from strace_lens.density.curve import DensityCurve, density_curve
from strace_lens.density.phases import find_phases
from strace_lens.density.ways import WAYS, Way, measure_ways, way_of, ways_summary
from strace_lens.files.results import save
from strace_lens.measures.sizes import REFINE, SIZES
from strace_lens.model.architecture import Model, UnsupportedModelError
from strace_lens.model.checks import architecture_of
from strace_lens.model.hold import hold
from strace_lens.model.load import load_model
from strace_lens.model.prompts import tokenize
from strace_lens.model.targets import Target, make_target
from strace_lens.report.summary import summarize
from strace_lens.report.tables import print_curve, print_ways
from strace_lens.report.trace import trace_report
from strace_lens.traces.ablation import replacement
from strace_lens.traces.curve_rows import most_rows
from strace_lens.traces.estimators import estimate, estimator_of, steps
from strace_lens.traces.extract import extract
from strace_lens.traces.graph import TokenGraph, token_graph
from strace_lens.traces.importance import importance_function
from strace_lens.traces.lens import Lens, read_lens
from strace_lens.utils.disk import read_text, results_folder, write_whole

PAGE = "trace.html"
RESULT = "trace.safetensors"
IMPORTANCE = "l1"


def trace_command(
    prompt: Annotated[
        str | None, typer.Argument(help="The text whose next token is traced.")
    ] = None,
    prompt_file: Annotated[
        Path | None, opt.option("Read the prompt from a file instead.", dir_okay=False)
    ] = None,
    model: opt.Model = "smollm2",
    sizes: opt.Sizes = None,
    refine: opt.Refine = REFINE,
    estimator: opt.Estimator = "greedy",
    keep: opt.Keep = "none",
    importance: opt.Importance = IMPORTANCE,
    target: opt.Target = None,
    against: opt.Against = None,
    ablation: opt.Ablation = "zero",
    corrupted: opt.Corrupted = None,
    reference: opt.Reference = None,
    device: opt.Device = None,
    device_map: opt.DeviceMap = None,
    dtype: opt.Dtype = "float32",
    allow_pickle: opt.AllowPickle = False,
    revision: opt.Revision = None,
    out: Annotated[Path, opt.option(f"Folder for {PAGE} and {RESULT}.")] = Path("out"),
    seed: Annotated[int, opt.option("Seed of the random control and of estimators that draw.")] = 0,
    bos: opt.Bos = None,
    memory: opt.Memory = None,
    alone: opt.Alone = False,
    table: opt.Table = "short",
    as_json: opt.Json = False,
    dry_run: Annotated[
        bool, opt.option("Estimate passes, bytes and seconds; run nothing.", "--dry-run")
    ] = False,
) -> None:
    """Trace one prompt: how much of the model does its next token need?

    All edges of the model's computation graph are ranked. At every size s the first s of them are
    run together with controls, and the page shows where the prediction is constructed and where it
    is refined. The same prompt is also measured with attention edges left in place, as in the
    authors' released evaluation, and with a tighter ranking.

    Example: strace-lens trace "The capital of France is" --keep attention
    """
    folder = nullcontext() if dry_run else results_folder(out, (PAGE, RESULT))
    with one_line_errors(), folder, Bar() as bar, ExitStack() as held:
        text = opt.prompt_text(prompt, prompt_file)
        grid = opt.parse_sizes(sizes) or SIZES
        _check_ranking(estimator, importance)
        opt.expect_choice(table, opt.TABLES, "table")
        asked = opt.parse_target(target, against)
        own = way_of(estimator, opt.parse_keep(keep), importance)
        others = [] if alone else [way for way in WAYS if way != own]
        forward, backward = opt.budgets(memory)
        with bar.loading(model, dtype, device or device_map, revision):
            loaded = load_model(
                model,
                device=device,
                device_map=opt.parse_device_map(device_map),
                dtype=dtype,
                allow_pickle=allow_pickle,
                revision=revision,
            )
        held.enter_context(hold(loaded))  # so that it is looked through for changes only once
        architecture = architecture_of(loaded)
        tokens = tokenize(loaded, architecture, text, bos)
        aim = None if asked is None else make_target(loaded, architecture, tokens, asked)
        if dry_run:
            cost = plan(loaded, len(tokens.ids), sizes=grid, refine=refine, memory_budget=forward)
            bar.stop()
            more = len(others) * most_rows(grid, controls=False, refine=refine)
            _print_plan(cost, steps(estimator), more, as_json)
            return
        references = None if reference is None else [read_text(reference)]
        swap = replacement(loaded, tokens, ablation, corrupted=corrupted, references=references)
        same: dict[str, Any] = {"replacement": swap, "seed": seed, "memory_budget": forward}
        measured = {"sizes": grid, "refine": refine, "progress": bar.tell, "target": aim, **same}
        bar.step("reading the token graph")
        graph = token_graph(loaded, tokens)
        bar.step(f"ranking: {estimator}")
        if own.estimator == "greedy":
            ranked = extract(graph, importance, seed=seed, memory_budget=forward)
        else:
            fitted = {**same, "memory_budget": backward, "progress": bar.tell, "target": aim}
            ranked = estimate(loaded, graph, own.estimator, keep=own.keep, **fitted)
        bar.step("running masks")
        curves = {own: density_curve(loaded, ranked, keep=own.keep, **measured)}
        if others:
            bar.step("measuring other ways")
            curves |= measure_ways(loaded, graph, others, gradient_budget=backward, **measured)
        in_order = {way: curves[way] for way in dict.fromkeys((*WAYS, own)) if way in curves}
        bar.step("reading the nodes")
        lens = read_nodes(loaded, graph, aim)
        _finish(loaded, in_order, own, same, lens, out, "json" if as_json else table, bar)


def _check_ranking(estimator: str, importance: str) -> None:
    estimator_of(estimator)
    importance_function(importance)
    if estimator != "greedy" and importance != IMPORTANCE:
        raise ValueError(
            f"--importance {importance} is for --estimator greedy; {estimator} scores edges itself"
        )


def read_nodes(model: Model, graph: TokenGraph, target: Target | None) -> Lens | str:
    """What the page says of each node and head, or why it says nothing."""
    try:
        return read_lens(model, graph, target)
    except UnsupportedModelError as error:
        return f"What nodes and heads promote is not shown: {error}."


def _finish(
    model: Model,
    curves: Mapping[Way, DensityCurve],
    own: Way,
    same: dict[str, Any],
    lens: Lens | str,
    out: Path,
    printed: str,
    bar: Bar,
) -> None:
    """Find the phases, ablate them, write page and files, and print a table or JSON."""
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
