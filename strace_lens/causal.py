"""The causal check of the layer phases: do early layers build the head, late ones refine the tail?

The paper shows which layers the edges of a phase lie in; here those edges are taken away. Source:
s-Trace (arXiv 2605.27033), claims 2 and 3.
"""

from __future__ import annotations

import math

import pandas as pd
import torch

from strace_lens import measures
from strace_lens.ablation import ZERO, Replacement
from strace_lens.architecture import Model
from strace_lens.contract import architecture_of
from strace_lens.density import DensityCurve
from strace_lens.hold import verb
from strace_lens.phases import LayerPhase, find_phases
from strace_lens.run import MEMORY_BUDGET, last_logits
from strace_lens.token_graph.edges import EdgeTensors
from strace_lens.token_graph.masked_run import masked_logits
from strace_lens.token_graph.rows import MaskedRows
from strace_lens.token_graph.trace import Trace

_DRAWS = 5


@verb
def phase_ablation(
    model: Model,
    curve: DensityCurve,
    *,
    replacement: Replacement = ZERO,
    seed: int = 0,
    memory_budget: int = MEMORY_BUDGET,
    allow_other_model: bool = False,
) -> pd.DataFrame:
    """Do early layers build the head and late layers refine the tail? Ablate each part and see.

    From the trace at the end of refinement, ablates the edges of the early half of the layers that
    the refinement added, then those of the late half, then the early and late halves of the head
    subgraph. Beside each stands the mean of five draws of as many edges of the same trace.

    Args:
        model: the model that the trace was extracted from.
        curve: of the trace.
        replacement: what an ablated edge carries.
        seed: of the draws.
        memory_budget: bytes that one forward pass may take.
        allow_other_model: accept a trace that was made with other weights, as of another
            checkpoint; its graph must still have the shape of this model's.

    Returns:
        One row an ablation: `ablated`, `edges`, `tv`, `head_error`, `tail_error`,
        `random_head_error`, `random_tail_error`; the first row ablates nothing. Empty where the
        curve has no head subgraph or tail refinement.

    Raises:
        ValueError: a trace of another model or of other weights.
    """
    curve.trace.expect_model(model, allow_other_model=allow_other_model)
    phases = find_phases(curve)
    columns = ["ablated", "edges", "tv", "head_error", "tail_error"]
    columns += ["random_head_error", "random_tail_error"]
    if phases.head is None or phases.tail is None:
        return pd.DataFrame(columns=columns)
    trace, architecture = curve.trace, architecture_of(model)
    end = phases.tail.last
    whole = trace.ranks.map(lambda r: r < end)
    parts = _halves(trace, phases.head, phases.tail)
    generator = torch.Generator().manual_seed(seed)
    edges = {name: sum(int(p.sum()) for p in part) for name, part in parts.items()}
    masks = [whole]
    for name, part in parts.items():
        masks.append(EdgeTensors(*(w & ~p for w, p in zip(whole, part, strict=True))))
        masks += [_without_random(trace, whole, edges[name], generator) for _ in range(_DRAWS)]
    groups = [_mask_rows(trace, kept, replacement) for kept in masks]
    logits = masked_logits(model, architecture, groups, memory_budget=memory_budget)
    untouched = last_logits(model, architecture, trace.prompt.tensor[None]).cpu()
    full, ours = untouched.double().log_softmax(-1), logits.double().log_softmax(-1)
    head, tail = measures.head_tail_error(full, ours, curve.head)
    nothing = [float(head[0] + tail[0]), float(head[0]), float(tail[0]), math.nan, math.nan]
    rows: list[list[object]] = [["nothing", 0, *nothing]]
    for name, h, t in zip(
        parts, head[1:].split(1 + _DRAWS), tail[1:].split(1 + _DRAWS), strict=True
    ):
        own = [float(h[0] + t[0]), float(h[0]), float(t[0])]
        rows.append([name, edges[name], *own, float(h[1:].mean()), float(t[1:].mean())])
    return pd.DataFrame(rows, columns=columns)


def _halves(trace: Trace, head: LayerPhase, tail: LayerPhase) -> dict[str, EdgeTensors]:
    """Edges of the refinement and of the head subgraph, in the early and late half of layers."""
    early = trace.shape.layer_of().map(lambda layer: layer < trace.shape.layers // 2)
    parts = {}
    for what, phase in (("refinement", tail), ("head", head)):
        inside = trace.ranks.map(lambda r, p=phase: (r >= p.first) & (r < p.last))
        for half, flip in (("early", False), ("late", True)):
            parts[f"{what}, {half} layers"] = EdgeTensors(
                *(i & (e ^ flip) for i, e in zip(inside, early, strict=True))
            )
    return parts


def _without_random(
    trace: Trace, kept: EdgeTensors, count: int, generator: torch.Generator
) -> EdgeTensors:
    flat = kept.flat()
    chosen = flat.nonzero().flatten()
    flat[chosen[torch.randperm(len(chosen), generator=generator)[:count]]] = False
    return trace.shape.split(flat)


def _mask_rows(trace: Trace, kept: EdgeTensors, replacement: Replacement) -> MaskedRows:
    """One row that keeps the edges marked: rank 0 is kept, rank 1 is not."""
    return MaskedRows(
        tokens=trace.prompt.tensor,
        shape=trace.shape,
        ranks=kept.map(lambda k: (~k).to(torch.int8)),
        start=torch.zeros(1, dtype=torch.int32),
        stop=torch.ones(1, dtype=torch.int32),
        replacement=replacement,
    )
