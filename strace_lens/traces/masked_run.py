"""Masked forward passes: rows of any prompt and mask, batched to a memory budget.

The rows of curves are refined round by round: every curve adds the sizes that it needs, and the
rows that all curves ask for in a round share passes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.measures import distributions as measures
from strace_lens.measures.sizes import sizes_to_add
from strace_lens.model.architecture import Architecture, Model, device_of
from strace_lens.model.forward import MEMORY_BUDGET, Hook, even_chunks, last_logits, rows_per_pass
from strace_lens.model.prompts import pad_right
from strace_lens.model.sparse import kept_mlps
from strace_lens.traces.curve_rows import CurveRows, with_sizes
from strace_lens.traces.masks import kept_in_stream, mask_hooks
from strace_lens.traces.rows import MaskRows
from strace_lens.traces.trace import Trace
from strace_lens.utils.progress import Advance, no_progress

Watch = Callable[[Sequence[MaskRows]], Sequence[Hook]]
"""Hooks for a pass over some rows; passes come in order, and so do their rows."""


def masked_logits(
    model: Model,
    architecture: Architecture,
    groups: Sequence[MaskRows],
    *,
    hooks: Sequence[Hook] = (),
    watch: Watch | None = None,
    memory_budget: int = MEMORY_BUDGET,
    advance: Advance = no_progress,
    allow_other_model: bool = False,
) -> Float[Tensor, "row vocab"]:
    """Logits at the last token of every row, in order.

    They stay on the model's device, where they are measured; on the CPU if that device has no
    float64 (mps), which the measures need.

    Args:
        model: the model.
        architecture: of the same model.
        groups: rows to run; prompts may differ in length. Those that padding would change
            (`Architecture.padding_class`) run in passes of their own.
        hooks: run before the masks, as one that adds noise to the embeddings.
        watch: gives the hooks of each pass that run after the masks, which read what these leave.
        memory_budget: bytes that one forward pass may take; sets the rows of a pass.
        advance: called with the number of rows after each pass.
        allow_other_model: accept replacements that were made with other weights.

    Raises:
        ValueError: no rows, or a replacement that was made with other weights.
    """
    if not groups:
        raise ValueError("no rows to run; give at least one group")
    for group in groups:
        group.replacement.expect_model(model, allow_other_model=allow_other_model)
    device = device_of(model)
    groups = [group.on(device) for group in groups]
    done = []
    for batch in _passes(architecture, groups, memory_budget):
        tokens = pad_right([g.tokens for g in batch for _ in range(len(g))])
        lengths = torch.tensor([len(g.tokens) for g in batch for _ in range(len(g))])
        kept = kept_in_stream(batch)
        all_hooks = [*hooks, *mask_hooks(model, architecture, batch, kept)]
        if watch is not None:
            all_hooks += watch(batch)
        # Where an MLP needs more than its tokens, nothing is said and all run whole.
        with kept_mlps(model, kept[1] if architecture.pointwise_mlps else kept[1][:0]):
            done.append(last_logits(model, architecture, tokens, lengths, all_hooks))
        advance(len(tokens))
    logits = torch.cat(done)
    return logits.cpu() if device.type == "mps" else logits


def passes(
    architecture: Architecture, lengths: Sequence[int], memory_budget: int = MEMORY_BUDGET
) -> int:
    """Number of forward passes that rows of these prompt lengths need, in this order."""
    return len(_chunks(architecture, lengths, memory_budget))


def _passes(
    architecture: Architecture, groups: Sequence[MaskRows], memory_budget: int
) -> list[list[MaskRows]]:
    """Cut the groups into batches of rows that fit the budget, in order."""
    lengths = [len(g.tokens) for g in groups for _ in range(len(g))]
    batches = []
    for chunk in _chunks(architecture, lengths, memory_budget):
        batch, first = [], 0
        for group in groups:
            which = slice(max(chunk.start - first, 0), min(chunk.stop - first, len(group)))
            if which.start < which.stop:
                batch.append(group.rows(which))
            first += len(group)
        batches.append(batch)
    return batches


def _chunks(architecture: Architecture, lengths: Sequence[int], memory_budget: int) -> list[slice]:
    """Rows of each pass: neighbours whose lengths may share one, as many as fit the budget."""
    chunks, first = [], 0
    for _, same in itertools.groupby(lengths, architecture.padding_class):
        there = list(same)
        at_once = rows_per_pass(architecture, max(there), memory_budget)
        chunks += [
            slice(first + chunk.start, first + chunk.stop)
            for chunk in even_chunks(len(there), at_once)
        ]
        first += len(there)
    return chunks


def run_plans(
    model: Model,
    architecture: Architecture,
    traces: Sequence[Trace],
    plans: Sequence[CurveRows],
    clean: Sequence[Float[Tensor, " vocab"]],
    *,
    head: float,
    refine: int,
    watch: Watch | None = None,
    memory_budget: int = MEMORY_BUDGET,
    advance: Advance = no_progress,
    allow_other_model: bool = False,
) -> tuple[list[CurveRows], list[Float[Tensor, "_ vocab"]]]:
    """Run the rows of curves, then those of the sizes that `sizes_to_add` asks for in rounds.

    A round runs what all curves ask for in shared passes. What is added to one curve does not
    depend on the others.

    Args:
        model: the model.
        architecture: of the same model.
        traces: what is measured.
        plans: the rows of each trace (`curve_rows`).
        clean: what the model puts out without masks, for each trace.
        head: p of the head of the distribution.
        refine: how many sizes are added to a curve at the most.
        watch: as for `masked_logits`, of the rows of `plans` alone.
        memory_budget: bytes that one forward pass may take.
        advance: called with the number of rows after each pass.
        allow_other_model: accept replacements that were made with other weights.

    Returns:
        The plans with the sizes added, and the outputs of their rows.

    Raises:
        ValueError: a negative number of sizes to add, or a replacement that was made with other
            weights.
    """
    if refine < 0:
        raise ValueError(f"refine must be at least 0; got {refine}")
    outputs = masked_logits(
        model,
        architecture,
        [group for rows in plans for group in rows.groups],
        watch=watch,
        memory_budget=memory_budget,
        advance=advance,
        allow_other_model=allow_other_model,
    )
    logits = list(outputs.split([len(rows) for rows in plans]))
    plans = list(plans)
    if not refine:
        return plans, logits
    full = [one.to(outputs.device).double().log_softmax(-1)[None] for one in clean]
    masses = [float(measures.head_mass(one, head)[0]) for one in full]
    tables = [
        _errors(one, outputs[plan.trace], plan.sizes, head)
        for one, outputs, plan in zip(full, logits, plans, strict=True)
    ]
    while True:
        asked = [
            sizes_to_add(table, mass, trace.edge_count, refine - int(plan.refined.sum()))
            for table, mass, trace, plan in zip(tables, masses, traces, plans, strict=True)
        ]
        if not any(asked):
            return plans, logits
        grown = [
            with_sizes(plan, architecture, trace, sizes) if sizes else plan
            for plan, trace, sizes in zip(plans, traces, asked, strict=True)
        ]
        fresh = [new.groups[len(old.groups) :] for new, old in zip(grown, plans, strict=True)]
        groups = [group for of_trace in fresh for group in of_trace]
        if groups:
            outputs = masked_logits(
                model,
                architecture,
                groups,
                memory_budget=memory_budget,
                advance=advance,
                allow_other_model=allow_other_model,
            )
            counts = [sum(len(group) for group in of_trace) for of_trace in fresh]
            logits = [
                torch.cat([old, new])
                for old, new in zip(logits, outputs.split(counts), strict=True)
            ]
        for i, sizes in enumerate(asked):
            if sizes:
                rows = grown[i].trace[[grown[i].sizes.index(size) for size in sizes]]
                new = _errors(full[i], logits[i][rows], sizes, head)
                tables[i] = pd.concat([tables[i], new]).sort_values("size", ignore_index=True)
        plans = grown


def _errors(
    full: Float[Tensor, "1 vocab"],
    logits: Float[Tensor, "size vocab"],
    sizes: Sequence[float],
    head: float,
) -> pd.DataFrame:
    """What decides where a curve is refined: its errors at some sizes."""
    in_head, in_tail = measures.head_tail_error(full, logits.double().log_softmax(-1), head)
    return pd.DataFrame(
        {
            "size": [float(s) for s in sizes],
            "tv": (in_head + in_tail).tolist(),
            "head_error": in_head.tolist(),
            "tail_error": in_tail.tolist(),
        }
    )
