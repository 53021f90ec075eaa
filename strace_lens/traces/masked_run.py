"""Masked forward passes: rows of any prompt and mask, batched to a memory budget.

The rows of curves are refined round by round: every curve adds the sizes that it needs, and the
rows that all curves ask for in a round share passes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.measures import distributions as measures
from strace_lens.measures.sizes import sizes_to_add
from strace_lens.model.architecture import Architecture, Model, device_of
from strace_lens.model.forward import Hook, byte_budget, even_chunks, last_logits, rows_per_pass
from strace_lens.model.prompts import pad_right
from strace_lens.model.sparse import has_hooks, kept_mlps
from strace_lens.traces.curve_rows import CurveRows, with_sizes
from strace_lens.traces.masks import kept_in_stream, mask_hooks
from strace_lens.traces.row_tree import RowTree, row_tree
from strace_lens.traces.rows import MaskRows
from strace_lens.traces.trace import Trace
from strace_lens.utils.progress import Advance, no_progress

WORTHWHILE = 0.95
"""Share of rows that run in a tree of rows above which all of them run whole."""

Watch = Callable[[Sequence[MaskRows]], Sequence[Hook]]
"""Hooks for a pass over some rows; passes come in order, and so do their rows."""


def masked_logits(
    model: Model,
    architecture: Architecture,
    groups: Sequence[MaskRows],
    *,
    hooks: Sequence[Hook] = (),
    watch: Watch | None = None,
    memory_budget: int | None = None,
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
        memory_budget: bytes that one forward pass may take, which sets the rows of a pass; by the
            device unless given (`byte_budget`).
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
    every = [len(group.tokens) for group in groups for _ in range(len(group))]
    done = []
    for chunk in _chunks(architecture, every, byte_budget(memory_budget, device)):
        batch = _rows_of(groups, chunk)
        tokens = pad_right([g.tokens for g in batch for _ in range(len(g))])
        lengths = torch.tensor(every[chunk])
        tree = None if hooks or watch else _tree(model, architecture, batch)
        kept = kept_in_stream(batch, tree)
        all_hooks = [*hooks, *mask_hooks(model, architecture, batch, kept, tree)]
        if watch is not None:
            all_hooks += watch(batch)
        # Where an MLP needs more than its tokens, nothing is said and all run whole.
        with kept_mlps(model, kept[1] if architecture.pointwise_mlps else kept[1][:0]):
            if tree is None:
                done.append(last_logits(model, architecture, tokens, lengths, all_hooks))
            else:
                logits = last_logits(model, architecture, tokens[:1], hooks=all_hooks)
                done.append(logits[tree.output])
        advance(len(tokens))
    logits = torch.cat(done)
    return logits.cpu() if device.type == "mps" else logits


def _tree(model: Model, architecture: Architecture, batch: Sequence[MaskRows]) -> RowTree | None:
    """The tree of the rows of a pass, where it saves work; None where every row is to run.

    On a GPU the masks would have to be brought here to be compared.
    """
    if device_of(model).type != "cpu" or not architecture.rows_can_branch or has_hooks(model):
        return None
    if any(not torch.equal(group.tokens, batch[0].tokens) for group in batch):
        return None
    tree = row_tree(batch)
    return tree if tree.share < WORTHWHILE else None


def embedding_noise(tokens: int, d_model: int, *, share: float = 0.1, seed: int = 0) -> Hook:
    """A hook that adds Gaussian noise to the embedding of every token, the same in every row.

    Args:
        tokens: of the prompt; rows must all be of this length.
        d_model: width of the residual stream.
        share: root mean square of the noise's norm, over the norm of the token's embedding.
        seed: of the noise.

    Returns:
        A hook for `last_logits` and `masked_logits`, at `blocks.0.hook_resid_pre`.

    Raises:
        ValueError: a share that is negative or not finite.
    """
    if not 0 <= share < math.inf:
        raise ValueError(f"the share of noise must be finite and not negative; got {share}")
    generator = torch.Generator().manual_seed(seed)
    noise = share / math.sqrt(d_model) * torch.randn(tokens, d_model, generator=generator)

    def add_noise(
        embedding: Float[Tensor, "row pos d_model"], hook: Any
    ) -> Float[Tensor, "row pos d_model"]:
        return embedding + embedding.norm(dim=-1, keepdim=True) * noise.to(embedding)

    return "blocks.0.hook_resid_pre", add_noise


def passes(architecture: Architecture, lengths: Sequence[int], memory_budget: int) -> int:
    """Number of forward passes that rows of these prompt lengths need, in this order."""
    return len(_chunks(architecture, lengths, memory_budget))


def _chunks(architecture: Architecture, lengths: Sequence[int], memory_budget: int) -> list[slice]:
    """Rows of each pass: neighbours whose lengths may share one, as many as fit the budget."""
    chunks, first = [], 0
    for _, same in itertools.groupby(lengths, architecture.padding_class):
        there = list(same)
        at_once = rows_per_pass(architecture, max(there), memory_budget)
        for chunk in even_chunks(len(there), at_once):
            chunks.append(slice(first + chunk.start, first + chunk.stop))
        first += len(there)
    return chunks


def _rows_of(groups: Sequence[MaskRows], chunk: slice) -> list[MaskRows]:
    """The groups' rows of one pass."""
    batch, first = [], 0
    for group in groups:
        which = slice(max(chunk.start - first, 0), min(chunk.stop - first, len(group)))
        if which.start < which.stop:
            batch.append(group.rows(which))
        first += len(group)
    return batch


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
    memory_budget: int | None = None,
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
        memory_budget: bytes that one forward pass may take; by the device unless given
            (`byte_budget`).
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

    def run(parts: Sequence[Sequence[MaskRows]], watch: Watch | None) -> list[Tensor]:
        """Outputs of some rows of each curve, all in shared passes."""
        outputs = masked_logits(
            model,
            architecture,
            [group for part in parts for group in part],
            watch=watch,
            memory_budget=memory_budget,
            advance=advance,
            allow_other_model=allow_other_model,
        )
        return list(outputs.split([sum(len(group) for group in part) for part in parts]))

    plans, logits = list(plans), run([plan.groups for plan in plans], watch)
    if not refine:
        return plans, logits
    full = [one.to(logits[0].device).double().log_softmax(-1)[None] for one in clean]
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
        if any(fresh):
            found = run(fresh, None)
            logits = [torch.cat(pair) for pair in zip(logits, found, strict=True)]
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
    columns = {"tv": in_head + in_tail, "head_error": in_head, "tail_error": in_tail}
    return pd.DataFrame({"size": sizes, **{name: x.tolist() for name, x in columns.items()}})
