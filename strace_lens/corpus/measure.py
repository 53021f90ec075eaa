"""A batch of prompts measured: traced, run at every size in shared passes, a row for each size."""

from __future__ import annotations

import gc
import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strace_lens.corpus.batches import Batch, Item
from strace_lens.corpus.estimator_controls import measure_controls
from strace_lens.corpus.hidden import ActivationRecorder, Geometry, path, stream_of
from strace_lens.corpus.parts import CONTROLS, PATH, Row
from strace_lens.corpus.setting import Setting
from strace_lens.density.curve import curve_of
from strace_lens.measures import distributions as measures
from strace_lens.model.architecture import Model, device_of
from strace_lens.model.checks import architecture_of
from strace_lens.model.hold import verb
from strace_lens.model.predictions import token_texts
from strace_lens.traces.ablation import replacement
from strace_lens.traces.curve_rows import CurveRows, curve_rows
from strace_lens.traces.estimators import estimate
from strace_lens.traces.graph import TokenGraph, token_graph
from strace_lens.traces.masked_run import run_plans
from strace_lens.traces.trace import Trace, edges_by_size
from strace_lens.utils.errors import FixableError
from strace_lens.utils.progress import no_progress

HALVINGS = 4
"""How often the memory budget is halved for a prompt that does not fit on its own."""

_TEXTS = (
    *("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory"),
    *("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
)
"""In messages of a plain RuntimeError, of torch's CPU allocator and of its libraries."""


class PromptMemoryError(FixableError, RuntimeError):
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
    gc.collect()  # the error is gone by now, and with it the frames that hold tensors
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(items) > 1:
        size = len(items) // 2 if out_of_memory else 1
        parts = [items[i : i + size] for i in range(0, len(items), size)]
        return [row for part in parts for row in _tried(model, setting, part, halvings)]
    (item,) = items
    if not out_of_memory:
        return [_failed(item, reason)]
    if halvings == 0:
        raise PromptMemoryError(
            f"prompt {item.number} ({item.length} tokens) does not fit in memory ({reason}); "
            "what is done is kept: run the sweep again where there is more, or leave it out"
        )
    # Half the memory for each pass: fewer rows, the same results.
    given = setting.options.on(device_of(model))
    half = {
        "memory_budget": max(1, given.pass_bytes // 2),
        "gradient_budget": max(1, given.gradient_budget // 2),
    }
    smaller = replace(setting, options=replace(given, **half))
    return _tried(model, smaller, items, halvings - 1)


def _failed(item: Item, reason: str) -> Row:
    return _given(item) | {"error": " ".join(reason.split())}


def _measured(model: Model, setting: Setting, items: Sequence[Item]) -> list[Row]:
    architecture, options = architecture_of(model), setting.options
    graphs = [token_graph(model, item.prompt) for item in items if item.prompt is not None]
    swaps = [replacement(model, graph.prompt, options.ablation) for graph in graphs]
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
    plans = [
        curve_rows(
            architecture,
            trace,
            options.sizes,
            controls=options.size_controls,
            replacement=swap,
            seed=options.seed,
            keep=options.keep,
        )
        for trace, swap in zip(traces, swaps, strict=True)
    ]
    recorder = None
    if options.hidden:
        recorder = ActivationRecorder(
            architecture, [stream_of(graph) for graph in graphs], _watched(plans)
        )
    grown, logits = run_plans(
        model,
        architecture,
        traces,
        plans,
        [graph.activations.logits.cpu() for graph in graphs],
        head=options.head,
        refine=options.refine,
        watch=None if recorder is None else recorder.hooks,
        memory_budget=options.memory_budget,
    )
    seen = [None] * len(items) if recorder is None else _per_trace(recorder.geometry(), plans)
    found: list[Row] = []
    for item, graph, swap, trace, plan, outputs, geometry in zip(
        items, graphs, swaps, traces, grown, logits, seen, strict=True
    ):
        rows = _rows(model, setting, item, graph, trace, plan, outputs, geometry)
        if options.controls == "all":
            on_grid = [row for row in rows if not row["refined"]]
            controls = measure_controls(model, options, item, graph, trace, swap, on_grid)
            for row, values in zip(on_grid, controls, strict=True):
                row[CONTROLS] = values
        found += rows
    return found


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
    parts = zip(*(value.split(own) for value in geometry), strict=True)
    return [
        Geometry(*(part[plan.trace] for part in of_trace))
        for of_trace, plan in zip(parts, plans, strict=True)
    ]


def _rows(
    model: Model,
    setting: Setting,
    item: Item,
    graph: TokenGraph,
    trace: Trace,
    plan: CurveRows,
    logits: Float[Tensor, "row vocab"],
    geometry: Geometry | None,
) -> list[Row]:
    """A row for each size, those of the grid with the geometry of the hidden states."""
    options, clean = setting.options, graph.activations.logits.cpu()
    curve = curve_of(
        trace=trace,
        clean=clean,
        logits=logits,
        rows=plan,
        token_text=token_texts(model),
        head=options.head,
        seed=options.seed,
    )
    outputs = torch.cat([clean[None], logits[plan.trace].cpu()]).double().log_softmax(-1)
    shallow = _shallow(setting, outputs)
    counts = component_counts(trace, [*curve.table["edges"].tolist(), trace.edges]).tolist()
    about: Row = {
        **_given(item),
        "tokens": trace.shape.tokens,
        "graph_edges": trace.edges,
        "entropy": curve.entropy,
        "head_mass": curve.head_mass,
        "density": curve.density,
        "logit_gap": curve.logit_gap,
        "loss": math.nan if item.next_id is None else float(-outputs[0, item.next_id]),
        "full_top": _pairs(curve.top),
        "reachable": counts[-1],
        **{f"full_{name}": values[0] for name, values in shallow.items()},
    }
    if geometry is not None:
        lines = path(stream_of(graph)[None, :, -1].float().cpu())
        about |= {f"full_{name}": line[0].tolist() for name, line in zip(PATH, lines, strict=True)}
    on_grid = (~plan.refined).cumsum(0) - 1
    rows = []
    for i, values in enumerate(curve.table.to_dict("records")):
        row = about | {str(name): value for name, value in values.items()}
        row |= {"top": _pairs(curve.tops[i]), "usage": counts[i]}
        row |= {name: values[i + 1] for name, values in shallow.items()}
        if geometry is not None and not row["refined"]:
            here = int(on_grid[i])
            row |= {name: value[here].tolist() for name, value in geometry._asdict().items()}
        rows.append(row)
    return rows


def _given(item: Item) -> Row:
    row: Row = {
        "prompt": item.number,
        "text": item.text,
        "sha256": hashlib.sha256(item.text.encode()).hexdigest(),
        "next": item.next,
        **{f"label_{name}": str(value) for name, value in item.labels.items()},
    }
    if item.original is not None and item.prompt is not None:
        row["corrupted"] = item.prompt.text
    return row


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

    Components are those of `run_folder.components_frame`: the heads, the sublayers and the MLP of
    each layer in turn.
    """
    ranks, parts = trace.ranks, []
    for layer in range(trace.shape.layers):
        parts += [*ranks.attention[layer], *ranks.residual[layer]]
        parts += [ranks.mlp[layer]] if trace.shape.mlp else []
    return edges_by_size(parts, edges)
