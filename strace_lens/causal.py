"""The causal check of the layer phases: do early layers build the head, late ones refine the tail?

The paper shows which layers the edges of a phase lie in; here those edges are taken away. Source:
s-Trace (arXiv 2605.27033), claims 2 and 3.
"""

from __future__ import annotations

import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from strace_lens import measures
from strace_lens.ablation import ZERO, Replacement
from strace_lens.architecture import Model
from strace_lens.contract import architecture_of
from strace_lens.density import DensityCurve
from strace_lens.phases import LayerPhase, find_phases
from strace_lens.run import MEMORY_BUDGET, last_logits
from strace_lens.token_graph.edges import EdgeTensors
from strace_lens.token_graph.masked_run import masked_logits
from strace_lens.token_graph.masks import MaskedRows
from strace_lens.token_graph.trace import Trace

_DRAWS = 5


def phase_ablation(
    model: Model,
    curve: DensityCurve,
    *,
    replacement: Replacement = ZERO,
    seed: int = 0,
    memory_budget: int = MEMORY_BUDGET,
) -> pd.DataFrame:
    """Do early layers build the head and late layers refine the tail? Ablate each part and see.

    From the trace at the end of refinement, ablates the edges of the early half of the layers that
    the refinement added, then those of the late half, then the early and late halves of the head
    subgraph. Beside each stands the mean of five draws of as many edges of the same trace.

    Returns:
        One row an ablation: `ablated`, `edges`, `tv`, `head_error`, `tail_error`,
        `random_head_error`, `random_tail_error`; the first row ablates nothing. Empty where the
            curve has no head subgraph or tail refinement.
    """
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
    names, masks = ["nothing"], [whole]
    for name, part in parts.items():
        names.append(name)
        masks.append(EdgeTensors(*(w & ~p for w, p in zip(whole, part, strict=True))))
        count = sum(int(p.sum()) for p in part)
        masks += [_without_random(whole, count, generator) for _ in range(_DRAWS)]
    groups = [_mask_rows(trace, kept, replacement) for kept in masks]
    logits = masked_logits(model, architecture, groups, memory_budget=memory_budget)
    untouched = last_logits(model, architecture, trace.prompt.tensor[None]).cpu()
    full, ours = untouched.double().log_softmax(-1), logits.double().log_softmax(-1)
    head, tail = measures.head_tail_error(full, ours, curve.head)
    rows, at = [], 0
    for name in names:
        drawn = slice(at + 1, at + 1 + (0 if name == "nothing" else _DRAWS))
        edges = 0 if name == "nothing" else sum(int(p.sum()) for p in parts[name])
        own = [name, edges, float(head[at] + tail[at]), float(head[at]), float(tail[at])]
        rows.append([*own, float(head[drawn].mean()), float(tail[drawn].mean())])
        at = max(drawn.stop, at + 1)
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


def _without_random(kept: EdgeTensors, count: int, generator: torch.Generator) -> EdgeTensors:
    flats = kept.flat().clone()
    chosen = flats.nonzero().flatten()
    flats[chosen[torch.randperm(len(chosen), generator=generator)[:count]]] = False
    sizes = [k.numel() for k in kept]
    parts: list[Bool[Tensor, " edge"]] = list(flats.split(sizes))
    return EdgeTensors(*(p.view_as(k) for p, k in zip(parts, kept, strict=True)))


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
