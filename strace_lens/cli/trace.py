"""`strace-lens trace`: one prompt, ranked, measured, drawn."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from strace_lens.cli import options as opt
from strace_lens.cli.common import Bar, one_line_errors
from strace_lens.utils.choices import (
    ABLATIONS,
    DTYPES,
    REFINE,
    SIZES,
    estimator_name,
    parse_importance,
)
from strace_lens.utils.disk import read_text, results_folder

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
    seed: Annotated[int, opt.option("Seed of the random control and of random estimators.")] = 0,
    bos: opt.Bos = None,
    memory: opt.Memory = None,
    alone: opt.Alone = False,
    table: opt.Table = "short",
    as_json: opt.Json = False,
    dry_run: Annotated[
        bool, opt.option("Estimate passes, memory and time; run nothing.", "--dry-run")
    ] = False,
) -> None:
    """Trace one prompt: how much of the model does its next token need?

    All edges of the model's computation graph are ranked. At every size s the model is run with
    only the first fraction s of them, and with controls; the page shows where the prediction is
    constructed and where it is refined. The same prompt is also measured with attention edges left
    in place, as in the authors' released evaluation, and with a tighter ranking.

    Example: strace-lens trace "The capital of France is" --keep attention
    """
    folder = nullcontext() if dry_run else results_folder(out, (PAGE, RESULT))
    with one_line_errors(), folder, Bar() as bar, ExitStack() as held:
        text = opt.prompt_text(prompt, prompt_file)
        grid = opt.parse_sizes(sizes) or SIZES
        _check_ranking(estimator, importance)
        opt.expect_choice(table, opt.TABLES, "table")
        asked = opt.parse_target(target, against)
        kept = opt.parse_keep(keep)
        placed = opt.parse_device_map(device_map)
        opt.expect_choice(dtype, DTYPES, "dtype")
        opt.expect_choice(ablation, ABLATIONS, "ablation")
        forward, backward = opt.budgets(memory)
        with bar.importing():
            from strace_lens.cli.trace_results import finish, measure, print_plan, read_nodes
            from strace_lens.density.cost import plan
            from strace_lens.density.ways import WAYS, way_of
            from strace_lens.model.checks import architecture_of
            from strace_lens.model.hold import hold
            from strace_lens.model.load import load_model
            from strace_lens.model.prompts import tokenize
            from strace_lens.model.targets import make_target
            from strace_lens.traces.ablation import replacement
            from strace_lens.traces.curve_rows import most_rows
            from strace_lens.traces.estimators import steps
            from strace_lens.traces.graph import token_graph
        own = way_of(estimator, kept, importance)
        others = [] if alone else [way for way in WAYS if way != own]
        with bar.loading(model, dtype, device or device_map, revision):
            loaded = load_model(
                model,
                device=device,
                device_map=placed,
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
            print_plan(cost, steps(estimator), more, as_json)
            return
        references = None if reference is None else [read_text(reference)]
        swap = replacement(loaded, tokens, ablation, corrupted=corrupted, references=references)
        same: dict[str, Any] = {"replacement": swap, "seed": seed, "memory_budget": forward}
        measured = {"sizes": grid, "refine": refine, "progress": bar.tell, "target": aim, **same}
        bar.step("reading the token graph")
        graph = token_graph(loaded, tokens)
        curves = measure(loaded, graph, own, others, importance, measured, backward, bar)
        in_order = {way: curves[way] for way in dict.fromkeys((*WAYS, own)) if way in curves}
        bar.step("reading the nodes")
        lens = read_nodes(loaded, graph, aim)
        finish(loaded, in_order, own, same, lens, out, "json" if as_json else table, bar)


def _check_ranking(estimator: str, importance: str) -> None:
    estimator_name(estimator)
    parse_importance(importance)
    if estimator != "greedy" and importance != IMPORTANCE:
        raise ValueError(
            f"--importance {importance} is for --estimator greedy; {estimator} scores edges itself"
        )
