"""Masked forward passes: rows of any prompt and mask, batched to a memory budget.

The rows of curves are refined round by round: every curve adds the sizes that it needs, and the
rows that all curves ask for in a round share passes.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from strace_lens.measures import distributions as measures
from strace_lens.measures.sizes import sizes_to_add
from strace_lens.model.architecture import Architecture, Model, device_of
from strace_lens.model.forward import Hook, byte_budget, even_chunks, last_logits, rows_per_pass
from strace_lens.model.prompts import pad_right
from strace_lens.model.sparse import Places, has_hooks, kept_mlps, run_at
from strace_lens.traces.curve_rows import CurveRows, with_sizes
from strace_lens.traces.live import live_parts, places
from strace_lens.traces.masks import kept_in_stream, mask_hooks
from strace_lens.traces.row_tree import RowTree, row_tree
from strace_lens.traces.rows import MaskedRows, MaskRows, SubsetRows
from strace_lens.traces.trace import Trace
from strace_lens.utils.progress import Advance, no_progress

WORTHWHILE = 0.95
"""Share of rows that run in a tree of rows above which all of them run whole."""

SHARED_ROWS = 8
"""Controls of one prompt in a pass from which on an untouched row beside them pays."""

Watch = Callable[[Sequence[MaskRows]], tuple[Sequence[Hook], Bool[Tensor, " row"]]]
"""Hooks for a pass over some rows, and which of these they read, at any token.

Passes come in order, and so do their rows.
"""


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
    # On a GPU the masks would have to be brought here to be compared.
    sparse = device.type == "cpu" and not hooks and not has_hooks(model)
    for chunk in _chunks(architecture, every, byte_budget(memory_budget, device)):
        batch = _rows_of(groups, chunk)
        rows = sum(len(group) for group in batch)
        watching, watched = [], torch.zeros(rows, dtype=torch.bool)
        if watch is not None:
            watching, watched = watch(batch)
        beside, references = _untouched(batch) if sparse else ([], [])
        batch = [*batch, *beside]
        tree = _tree(architecture, batch) if sparse and watch is None else None
        kept = kept_in_stream(batch, tree)
        all_hooks = [*hooks, *mask_hooks(model, architecture, batch, kept, tree), *watching]
        tokens = pad_right([g.tokens for g in batch for _ in range(len(g))])
        lengths = torch.tensor([len(g.tokens) for g in batch for _ in range(len(g))])
        with contextlib.ExitStack() as stack:
            if sparse:
                where = _places(architecture, batch, watched, references, tree)
                stack.enter_context(run_at(model, where))
            elif architecture.pointwise_mlps:
                stack.enter_context(kept_mlps(model, kept[1]))
            if tree is None:
                logits = last_logits(model, architecture, tokens, lengths, all_hooks)
            else:
                logits = last_logits(model, architecture, tokens[:1], hooks=all_hooks)
                logits = logits[tree.places[-1]]
        done.append(logits[:rows])
        advance(rows)
    logits = torch.cat(done)
    return logits.cpu() if device.type == "mps" else logits


def _tree(architecture: Architecture, batch: Sequence[MaskRows]) -> RowTree | None:
    """The tree of the rows of a pass, where it saves work; None where every row is to run."""
    if not architecture.rows_can_branch:
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


def _untouched(batch: Sequence[MaskRows]) -> tuple[list[MaskedRows], list[int | None]]:
    """Rows to run beside a pass, and for each of its groups and of them the row that it shares.

    The controls of small traces are as the untouched run but for a few nodes. A trace itself is
    nowhere so until it holds nearly all edges.
    """
    rows = sum(len(group) for group in batch)
    controls = [isinstance(g, SubsetRows) or g.start is not None for g in batch]
    prompts = [tuple(g.tokens.tolist()) for g in batch]
    count: Counter[tuple[int, ...]] = Counter()
    for group, ids, control in zip(batch, prompts, controls, strict=True):
        count[ids] += len(group) * control
    row_of = {ids: rows + i for i, ids in enumerate(i for i in count if count[i] >= SHARED_ROWS)}
    beside = [_whole(batch[prompts.index(ids)]) for ids in row_of]
    pairs = zip(prompts, controls, strict=True)
    shared = [row_of.get(ids) if control else None for ids, control in pairs]
    return beside, [*shared, *row_of.values()]


def _whole(group: MaskRows) -> MaskedRows:
    """One row of the same prompt that ablates nothing."""
    stop = torch.ones(1, dtype=torch.int32)
    return MaskedRows(group.tokens, group.shape, group.shape.full(0, torch.int32), None, stop)


def _places(
    architecture: Architecture,
    batch: Sequence[MaskRows],
    watched: Bool[Tensor, " row"],
    references: Sequence[int | None],
    tree: RowTree | None,
) -> dict[tuple[int, str], Places]:
    """Where the parts of the model run in a pass, its untouched rows at the end included."""
    beside = sum(len(group) for group in batch) - len(watched)
    watched = torch.nn.functional.pad(watched, (0, beside), value=True)
    live = [
        live_parts(architecture, group, read, share_clean=reference is not None)
        for group, read, reference in zip(
            batch, watched.split([len(group) for group in batch]), references, strict=True
        )
    ]
    found = places(live, references, tree)
    if not architecture.pointwise_mlps:  # an MLP that needs more than its tokens
        found = {name: where for name, where in found.items() if name[1] != "mlp"}
    return found


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
