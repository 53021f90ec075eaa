"""A batch of prompts measured: traced, run at every size in shared passes, a row for each size."""

from __future__ import annotations

import gc
import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from strace_lens.corpus.batches import Batch, Item
from strace_lens.corpus.estimator_controls import measure_controls
from strace_lens.corpus.hidden import ActivationRecorder, CleanRun, Geometry, clean_run, path
from strace_lens.corpus.parts import CONTROLS, Row, merged
from strace_lens.corpus.setting import Options, Setting
from strace_lens.density.curve import TEXTS, DensityCurve, curve_of, curve_plans
from strace_lens.measures import distributions as measures
from strace_lens.model.architecture import Model
from strace_lens.model.checks import architecture_of
from strace_lens.model.hold import verb
from strace_lens.model.predictions import token_texts
from strace_lens.traces.ablation import Replacement, replacement
from strace_lens.traces.curve_rows import CurveRows
from strace_lens.traces.estimators import estimate
from strace_lens.traces.graph import TokenGraph, token_graph
from strace_lens.traces.masked_run import run_plans
from strace_lens.traces.trace import Trace, edges_by_size
from strace_lens.utils.progress import no_progress

HALVINGS = 4
"""How often the memory budget is halved for a prompt that does not fit on its own."""

_TEXTS = (
    *("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory"),
    *("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
)
"""In messages of a plain RuntimeError, of torch's CPU allocator and of its libraries."""


class PromptMemoryError(RuntimeError):
    """A prompt that does not fit in memory even on its own."""


@verb
def measure_batch(model: Model, setting: Setting, batch: Batch) -> list[Row]:
    """The rows of a batch, a row a prompt and size, prompts in the order of the batch.

    Where memory runs out, the halves of the batch are measured one after the other, and a prompt on
    its own in passes of fewer rows. Where the batch fails otherwise, its prompts are measured one
    by one, and one that fails alone is a row with the reason.

    Raises:
        PromptMemoryError: a prompt does not fit in memory on its own.
    """
    items = [item for item in batch.items if item.error is None]
    refused = [_failed(item, str(item.error)) for item in batch.items if item.error is not None]
    return [*refused, *_tried(model, setting, items, HALVINGS)]


def is_memory_error(error: BaseException) -> bool:
    """Whether an error says that memory has run out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


def _tried(model: Model, setting: Setting, items: Sequence[Item], halvings: int) -> list[Row]:
    if not items:
        return []
    try:
        return _measured(model, setting, items)
    except Exception as error:  # whatever it is, the other prompts of the run go on
        reason, out_of_memory = f"{type(error).__name__}: {error}", is_memory_error(error)
    _free_memory()  # the error is gone by now, and with it the frames that hold tensors
    if len(items) > 1:
        size = len(items) // 2 if out_of_memory else 1
        parts = [items[i : i + size] for i in range(0, len(items), size)]
        return [row for part in parts for row in _tried(model, setting, part, halvings)]
    (item,) = items
    if not out_of_memory:
        return [_failed(item, reason)]
    if halvings == 0:
        tokens = 0 if item.prompt is None else len(item.prompt.ids)
        raise PromptMemoryError(
            f"prompt {item.number} ({tokens} tokens) does not fit in memory ({reason}); "
            "what is done is kept: run the sweep again where there is more, or leave it out"
        )
    return _tried(model, _smaller(setting), items, halvings - 1)


def _free_memory() -> None:
    """Give back what an attempt that failed has left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _smaller(setting: Setting) -> Setting:
    """The same setting with half the memory for each pass: fewer rows, the same results."""
    options = setting.options
    half = {
        name: max(1, getattr(options, name) // 2) for name in ("memory_budget", "gradient_budget")
    }
    return replace(setting, options=replace(options, **half))


def _failed(item: Item, reason: str) -> Row:
    return merged(_given(item), {"error": " ".join(reason.split())})


def _measured(model: Model, setting: Setting, items: Sequence[Item]) -> list[Row]:
    architecture, options = architecture_of(model), setting.options
    prompts = [item.prompt for item in items if item.prompt is not None]
    graphs = [token_graph(model, prompt) for prompt in prompts]
    cleans = [clean_run(graph) for graph in graphs]
    swaps = [replacement(model, prompt, options.ablation) for prompt in prompts]
    traces = [
        estimate(
            model,
            graph,
            options.estimator,
            keep=options.keep,
            replacement=swap,
            seed=options.seed,
            memory_budget=options.gradient_budget,
            progress=no_progress,
        )
        for graph, swap in zip(graphs, swaps, strict=True)
    ]
    plans = curve_plans(
        architecture,
        traces,
        options.sizes,
        controls=options.size_controls,
        keep=options.keep,
        replacements=swaps,
        seed=options.seed,
    )
    recorder = ActivationRecorder(architecture, cleans, _watched(plans)) if options.hidden else None
    grown, logits = run_plans(
        model,
        architecture,
        traces,
        plans,
        [clean.logits for clean in cleans],
        head=options.head,
        refine=options.refine,
        watch=None if recorder is None else recorder.hooks,
        memory_budget=options.memory_budget,
    )
    seen = [None] * len(items) if recorder is None else _per_trace(recorder.geometry(), plans)
    found: list[Row] = []
    for item, graph, swap, clean, trace, plan, outputs, geometry in zip(
        items, graphs, swaps, cleans, traces, grown, logits, seen, strict=True
    ):
        rows = _rows(model, setting, item, clean, trace, plan, outputs, geometry)
        if options.controls == "all":
            rows = _with_controls(model, options, item, graph, swap, trace, rows)
        found += rows
    return found


def _with_controls(
    model: Model,
    options: Options,
    item: Item,
    graph: TokenGraph,
    swap: Replacement,
    trace: Trace,
    rows: Sequence[Row],
) -> list[Row]:
    """The rows of a prompt, those of the grid with what the controls of its estimator give."""
    assert item.wrong is not None
    own = pd.DataFrame(
        [{"tv": row["tv"], "top1": row["top1"]} for row in rows if not row["refined"]]
    )
    controls = iter(
        measure_controls(
            model,
            options,
            graph,
            trace,
            swap,
            own,
            wrong=item.wrong,
            sibling=item.sibling,
            noise_seed=item.number,
        )
    )
    return [row if row["refined"] else merged(row, {CONTROLS: next(controls)}) for row in rows]


def _watched(plans: Sequence[CurveRows]) -> list[int]:
    """For every row of the run the number of its trace; -1 for a control's."""
    numbers = []
    for number, plan in enumerate(plans):
        own = len(plan.groups[0])  # the trace's own rows come first
        numbers += [number] * own + [-1] * (len(plan) - own)
    return numbers


def _per_trace(geometry: Geometry, plans: Sequence[CurveRows]) -> list[Geometry]:
    """The geometry of each trace at each size of the grid."""
    own = [len(plan.groups[0]) for plan in plans]
    parts = [value.split(own) for value in vars(geometry).values()]
    return [
        Geometry(*(part[plan.trace] for part in of_trace))
        for of_trace, plan in zip(zip(*parts, strict=True), plans, strict=True)
    ]


def _rows(
    model: Model,
    setting: Setting,
    item: Item,
    clean: CleanRun,
    trace: Trace,
    plan: CurveRows,
    logits: Float[Tensor, "row vocab"],
    geometry: Geometry | None,
) -> list[Row]:
    options = setting.options
    curve = curve_of(
        trace=trace,
        clean=clean.logits,
        logits=logits,
        rows=plan,
        token_text=token_texts(model),
        head=options.head,
        seed=options.seed,
    )
    own = logits[plan.trace].cpu()
    outputs = torch.cat([clean.logits[None], own]).double().log_softmax(-1)
    shallow = _shallow(setting, outputs)
    table = curve.table.drop(columns=TEXTS).to_dict("records")
    counts = component_counts(trace, [*curve.table["edges"].tolist(), trace.edges]).tolist()
    about = merged(
        _given(item),
        _of_prompt(curve, clean, outputs[0], item),
        {f"full_{name}": values[0] for name, values in shallow.items()},
        {"reachable": counts[-1]},
    )
    states = {} if geometry is None else vars(geometry)
    on_grid = (~plan.refined).cumsum(0) - 1
    if geometry is not None:
        velocity, curvature = path(clean.states[None, :, -1].float().cpu())
        walked = {"full_velocity": velocity[0].tolist(), "full_curvature": curvature[0].tolist()}
        about = merged(about, walked)
    return [
        merged(
            about,
            {str(name): value for name, value in row.items()},
            {"top": _pairs(top)},
            {name: values[i + 1] for name, values in shallow.items()},
            {"usage": counts[i]},
            {}
            if row["refined"]
            else {name: values[on_grid[i]].tolist() for name, values in states.items()},
        )
        for i, (row, top) in enumerate(zip(table, curve.table["top"], strict=True))
    ]


def _given(item: Item) -> Row:
    return merged(
        {
            "prompt": item.number,
            "text": item.text,
            "sha256": hashlib.sha256(item.text.encode()).hexdigest(),
            "next": item.next,
        },
        {} if item.original is None or item.prompt is None else {"corrupted": item.prompt.text},
        {f"label_{name}": str(value) for name, value in item.labels.items()},
    )


def _of_prompt(
    curve: DensityCurve, clean: CleanRun, log_probs: Float[Tensor, " vocab"], item: Item
) -> Row:
    return {
        "tokens": curve.trace.shape.tokens,
        "graph_edges": curve.trace.edges,
        "entropy": curve.entropy,
        "head_mass": curve.head_mass,
        "density": curve.density,
        "logit_gap": curve.logit_gap,
        "loss": math.nan if item.next_id is None else float(-log_probs[item.next_id]),
        "full_top": _pairs(curve.top),
    }


def _pairs(top: Sequence[tuple[str, float]]) -> list[dict[str, object]]:
    return [{"token": token, "p": probability} for token, probability in top]


def _shallow(setting: Setting, outputs: Float[Tensor, "row vocab"]) -> dict[str, list[float]]:
    """TV of each output to the unigram distribution and to the model's output without context."""
    targets = {"unigram_tv": setting.unigram, "no_context_tv": setting.no_context}
    return {
        name: [math.nan] * len(outputs)
        if target is None
        else measures.total_variation(target.cpu().log()[None], outputs).tolist()
        for name, target in targets.items()
    }


def component_counts(trace: Trace, edges: Sequence[int]) -> Int[Tensor, "size component"]:
    """How many edges of each component the first k edges of a trace have.

    Components are the heads, the joins of the residual stream and the MLP of each layer in turn
    (`run_folder.components_frame`).
    """
    ranks, parts = trace.ranks, []
    for layer in range(trace.shape.layers):
        parts += [*ranks.attention[layer], *ranks.residual[layer]]
        parts += [ranks.mlp[layer]] if trace.shape.mlp else []
    return edges_by_size(parts, edges)
