"""Edge patching: many circuits in one forward pass, by hooks that rewrite what destinations read.

Destination d of a row reads `stream + sum_s cut[d, s] * (replacement[s] - output[s])`, with the
stream and the outputs of the patched run itself. The same is the stream of a run in which every
edge is ablated, `+ sum_s (1 - cut[d, s]) * (output[s] - replacement[s])`; where few edges are kept,
this sum is the shorter one, and what no kept path joins to the logits need not run at all. Either
way the changes of all sources lie in one buffer, so what every destination of a block reads is one
batched product.

The blocks below the first destination at which a row differs from a run that is known do not run.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from strace_lens.circuits.graph import ComponentGraph
from strace_lens.circuits.live import live_parts
from strace_lens.circuits.outputs import Outputs, Streams, read_logits
from strace_lens.circuits.patch_buffer import PatchBuffer
from strace_lens.circuits.patch_hooks import KnownRun, Pass, hooks_of
from strace_lens.circuits.wiring import INPUTS, Wiring, mlp_input_hooks
from strace_lens.model.architecture import Model
from strace_lens.model.forward import Hook
from strace_lens.model.sparse import kept_mlps, skipped_blocks, zero_projections


class PatchPlan(NamedTuple):
    """How one patched pass runs.

    Attributes:
        hooks: that rewrite what destinations read.
        skipped: layers of the blocks that do not run.
        free: projections of attention that are overwritten or not read, by layer and name.
        mlps: tokens that need each layer's MLP; None where all do.
        from_replaced: what is read are the streams of the replaced run with changes added, so the
            run's own streams mean nothing.
    """

    hooks: list[Hook]
    skipped: list[int]
    free: list[tuple[int, str]]
    mlps: Bool[Tensor, "layer row pos"] | None
    from_replaced: bool


# ------------------------------------------------------------------ what a pass has to do


def plan_pass(
    model: Model,
    wiring: Wiring,
    cut: Float[Tensor, "row destination source *pos"],
    replaced: Outputs,
    tokens: int,
    *,
    streams: Streams | None = None,
    is_run: bool = False,
    differs: Bool[Tensor, "row pos"] | None = None,
    known: KnownRun | None = None,
    from_replaced: bool | None = None,
    gradient: bool = False,
) -> PatchPlan:
    """What has to run, and hooks that replace, in each row, the share `cut` of every edge.

    Args:
        model: the model.
        wiring: of the same model.
        cut: 0 keeps an edge, 1 ablates it; differentiable. What is no edge must be 0.
        replaced: what ablated edges carry, of the same rows.
        tokens: width of the rows.
        streams: those of a run in which every edge is ablated, where they are known.
        is_run: `replaced` is what every source wrote in one run of the model.
        differs: tokens at which that run may differ from the patched one, and that are read.
        known: a run of the same rows whose first blocks need not run again.
        from_replaced: add what is kept to the replaced streams, where they and a known run are
            given; unless told, where that has the smaller sums.
        gradient: let gradients pass through the run even where `cut` asks for none.
    """
    graph = wiring.graph
    by_position = cut[:, None] if cut.ndim == 3 else cut.permute(0, 3, 1, 2)
    used = (by_position.detach() != 0).any(1)
    if not bool(used.any()) and not cut.requires_grad:
        return PatchPlan([], [], [], None, from_replaced=False)
    share, base, mlps, live, some = by_position, None, None, None, None
    if streams is not None and known is not None and not cut.requires_grad:
        exists = graph.exists.to(cut.device)
        kept = exists * (1 - by_position)
        live = live_parts(graph, (kept != 0).any(1), differ=not is_run)
        if from_replaced is None:
            kept_slots, cut_slots = (
                float(x.any(0).any(0).sum() + x.sum() / x.numel()) for x in (live.edges, used)
            )
            from_replaced = known.streams is None or kept_slots < cut_slots
        if from_replaced:
            share, base, used = kept * live.edges[:, None], streams, live.edges
    reads, writes = used.any(0).any(1), used.any(0).any(0)
    if cut.requires_grad:  # an edge that is kept whole has a gradient all the same
        exists = graph.exists.to(cut.device)
        reads, writes = reads | exists.any(1), writes | exists.any(0)
    can_skip, first = wiring.block_outputs is not None, 0
    if can_skip:
        first = _first_difference(graph, cut, known, from_replaced=base is not None)
    skipped: list[int] = list(range(first))
    if base is not None:
        assert live is not None
        reads = _reads_of(graph, writes)
        sources = live.sources[:, 1:].view(len(cut), graph.layers, -1)
        if can_skip:  # but for the last block, which runs the hook at which the logits read
            idle = ~sources.any(2).any(0)[: graph.layers - 1]
            skipped = sorted({*skipped, *idle.nonzero()[:, 0].tolist()})
        if graph.mlp and wiring.architecture.pointwise_mlps:
            mlps = sources[:, :, -1].T[:, :, None].expand(-1, -1, tokens)
            some = differs.to(mlps.device) if differs is not None and is_run else None
            mlps = mlps if some is None else mlps & some
    active = writes.nonzero()[:, 0]
    share = share[..., active].to(replaced.embed.dtype)
    like, gradient = replaced.embed[:, :tokens], gradient or cut.requires_grad
    buffer = PatchBuffer(share, active.tolist(), like, gradient=gradient)
    at_once = known is not None
    this = Pass(model, wiring, replaced, base, tokens, buffer, reads, writes, some, at_once)
    hooks = hooks_of(this, known, first, set(skipped))
    free = _free_projections(this, first) if wiring.zero_projections else []
    return PatchPlan(hooks, skipped, free, mlps, base is not None)


def _free_projections(this: Pass, first: int) -> list[tuple[int, str]]:
    """Projections whose values hooks overwrite in every head, or that change no stream read."""
    graph = this.wiring.graph
    layers = range(first, graph.layers)
    if this.base is not None:
        return [(layer, name) for layer in layers for name in (*INPUTS, "o")]
    reads = this.reads.tolist()
    return [(n, kind) for n in layers for kind in INPUTS if all(reads[graph.inputs_of(n)[kind]])]


def _first_difference(
    graph: ComponentGraph,
    cut: Float[Tensor, "row destination source *pos"],
    known: KnownRun | None,
    *,
    from_replaced: bool,
) -> int:
    """First block that any row needs to run; blocks before it are as in the known run."""
    if known is None or cut.requires_grad or (known.streams is None and not from_replaced):
        return 0
    other = known.cut if known.cut.ndim + 1 >= cut.ndim else known.cut[..., None]
    mine = cut if cut.ndim >= known.cut.ndim + 1 else cut[..., None]
    differs = (mine != other).flatten(2).any(2).any(0)
    layer = graph.destination_layers.to(cut.device)[differs]
    return int(layer.min().clamp_max(graph.layers - 1)) if len(layer) else graph.layers - 1


def _reads_of(
    graph: ComponentGraph, writes: Bool[Tensor, " source"]
) -> Bool[Tensor, " destination"]:
    """Every destination that feeds some sources, and the logits."""
    reads = (graph.feeds.to(writes.device) & writes).any(1)
    reads[-1] = True
    return reads


# ------------------------------------------------------------------ a pass


def run_plan(
    model: Model,
    wiring: Wiring,
    tokens: Int[Tensor, "row pos"],
    lengths: Int[Tensor, " row"],
    plan: PatchPlan,
    hooks: Sequence[Hook] = (),
    *,
    every_position: bool = False,
    gradient: bool = False,
) -> Float[Tensor, "row read vocab"]:
    """Logits of one forward pass in which each row has its own edges ablated, as planned; once.

    Args:
        model: the model.
        wiring: of the same model.
        tokens, lengths: prompts.
        plan: from `plan_pass`, for these prompts.
        hooks: more of them, behind those that patch.
        every_position: read logits at every position instead of the last token of each row.
        gradient: the pass is differentiated.

    Raises:
        FloatingPointError: a logit is NaN or infinite.
    """
    arch = wiring.architecture
    with ExitStack() as stack:
        stack.enter_context(mlp_input_hooks(model, wiring))
        if plan.skipped:
            assert wiring.block_outputs is not None
            stack.enter_context(skipped_blocks(model, plan.skipped, wiring.block_outputs))
        if plan.mlps is not None:
            stack.enter_context(kept_mlps(model, plan.mlps))
        if plan.free:
            stack.enter_context(zero_projections(model, plan.free))
        every = [*plan.hooks, *hooks]
        return read_logits(
            model, arch, tokens, lengths, every, every_position=every_position, gradient=gradient
        )
