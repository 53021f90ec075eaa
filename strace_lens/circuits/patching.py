"""Edge patching: many circuits in one forward pass, by hooks that rewrite what destinations read.

Destination d of a row reads `stream + sum_s cut[d, s] * (replacement[s] - output[s])`, with the
stream and the outputs of the patched run itself. The differences of all sources that are cut
anywhere lie in one buffer, so what every destination of a block reads is one batched product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from strace_lens.circuits.outputs import Outputs, read_logits
from strace_lens.circuits.wiring import (
    INPUTS,
    Input,
    Wiring,
    head_writer,
    input_projection,
    keep_hooks,
    mlp_input_hooks,
    stream_point,
)
from strace_lens.model.architecture import Model
from strace_lens.model.forward import Hook

# ------------------------------------------------------------------ the buffer of changes

# What sources would carry less what they carry lies in one buffer, which every later destination
# reads. With gradients a buffer that is written again could not be differentiated, and a block for
# each source would make a destination's sum hundreds of small products. So writing and reading are
# two functions with backward passes of their own, over a second buffer of gradients: a slot is read
# by destinations that run after it was written, so its gradient is whole when its writer's turn
# comes.


class PatchBuffer:
    """Replacement less output of the sources that are cut, filled in order as a run goes.

    Attributes:
        cut: share of each edge that is replaced, by token position or one for all.
        sources: numbers of the sources that have a slot, rising.
        count: slots filled.
    """

    def __init__(
        self,
        cut: Float[Tensor, "row _ destination source"],
        sources: list[int],
        like: Float[Tensor, "row pos d_model"],
        *,
        gradient: bool,
    ) -> None:
        self.cut, self.sources, self.count = cut, sources, 0
        rows, tokens, width = like.shape
        # One slot more than sources: see `read`.
        self.buffer = like.new_empty(rows, tokens, len(sources) + 1, width)
        self.gradient = torch.zeros_like(self.buffer) if gradient else None
        self._scratch = like.new_empty(0)
        # Depends on every slot written, so that autograd runs their readers first, then them.
        self._written = like.new_zeros(())

    def add(self, sources: list[int], block: Float[Tensor, "row pos new d_model"]) -> None:
        """Fill the slots of some sources.

        Raises:
            RuntimeError: other sources are next: the model ran out of the graph's order.
        """
        new = slice(self.count, self.count + block.shape[2])
        if self.sources[new] != sources:
            raise RuntimeError(f"source {sources[0]} has run out of the graph's order")
        if self.gradient is None:
            self.buffer[:, :, new] = block
        else:
            buffers = (self.buffer, self.gradient)
            self._written = self._written + _Write.apply(block, buffers, new)
        self.count = new.stop

    def read(
        self, destinations: Int[Tensor, " destination"], stream: Float[Tensor, "row pos d_model"]
    ) -> Float[Tensor, "row pos destination d_model"]:
        """What these destinations read: the stream with their edges replaced.

        Without gradients what is returned holds only until the next call.
        """
        cut = self.cut[:, :, destinations, : self.count]
        if self.gradient is not None:
            buffers = (self.buffer, self.gradient)
            return stream[:, :, None] + _Read.apply(cut, self._written, buffers, self.count)
        # The stream stands in the next free slot, with weight 1, so no sum is taken afterwards.
        self.buffer[:, :, self.count] = stream
        weights = torch.cat([cut, cut.new_ones(*cut.shape[:3], 1)], -1)
        filled = self.buffer[:, :, : self.count + 1]
        shape = (*stream.shape[:2], len(destinations), stream.shape[-1])
        size = math.prod(shape)
        if self._scratch.numel() < size:  # fresh memory costs as much as the product
            self._scratch = stream.new_empty(size)
        return torch.matmul(weights, filled, out=self._scratch[:size].view(shape))


# The functions below hold the two buffers and not the `PatchBuffer`, which holds what they return:
# a cycle through autograd's graph is never collected.
_Buffers = tuple[Tensor, Tensor]


class _Write(torch.autograd.Function):
    """Fill a slot; returns a zero that stands for it."""

    @staticmethod
    def forward(ctx: Any, block: Tensor, buffers: _Buffers, slot: slice) -> Tensor:
        ctx.gradient, ctx.slot = buffers[1], slot
        buffers[0][:, :, slot] = block
        return block.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, None, None]:
        slot = ctx.gradient[:, :, ctx.slot]
        gradient = slot.clone()
        slot.zero_()  # for a second backward pass over the same run
        return gradient, None, None


class _Read(torch.autograd.Function):
    """`cut @ buffer` over the slots filled so far."""

    @staticmethod
    def forward(ctx: Any, cut: Tensor, written: Tensor, buffers: _Buffers, count: int) -> Tensor:
        ctx.save_for_backward(cut)
        ctx.buffers, ctx.count = buffers, count
        return cut @ buffers[0][:, :, :count]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (cut,), (gradient,) = ctx.saved_tensors, gradients
        values, sums = (buffer[:, :, : ctx.count] for buffer in ctx.buffers)
        sums += cut.transpose(-1, -2) @ gradient
        of_cut = gradient @ values.transpose(-1, -2)
        if cut.shape[1] == 1:
            of_cut = of_cut.sum(1, keepdim=True)
        return of_cut, gradient.new_zeros(()), None, None


# ------------------------------------------------------------------ the hooks of a pass


@dataclass(frozen=True, eq=False)
class _Pass:
    """What the hooks of one patched pass share.

    Attributes:
        model, wiring, replaced, tokens: as for `patch_hooks`.
        buffer: of all sources that are cut.
        reads, writes: which destinations and sources any row cuts.
    """

    model: Model
    wiring: Wiring
    replaced: Outputs
    tokens: int
    buffer: PatchBuffer
    reads: Bool[Tensor, " destination"]
    writes: Bool[Tensor, " source"]


def patch_hooks(
    model: Model,
    wiring: Wiring,
    cut: Float[Tensor, "row destination source *pos"],
    replaced: Outputs,
    tokens: int,
    *,
    gradient: bool = False,
) -> list[Hook]:
    """Hooks that replace, in each row, the share `cut` of every edge by its replacement.

    Args:
        model: the model; on a HookedTransformer inside `mlp_input_hooks`.
        wiring: of the same model.
        cut: 0 keeps an edge, 1 ablates it; differentiable. What is no edge must be 0.
        replaced: of the same rows.
        tokens: width of the rows.
        gradient: let gradients pass through the run even where `cut` asks for none.
    """
    by_position = cut[:, None] if cut.ndim == 3 else cut.permute(0, 3, 1, 2)
    used = (by_position.detach() != 0).flatten(0, 1).any(0)
    if cut.requires_grad:  # an edge that is kept whole has a gradient all the same
        used = used | wiring.graph.exists.to(cut.device)
    reads, writes = used.any(1), used.any(0)
    active = writes.nonzero()[:, 0]
    if not len(active):
        return []
    by_position = by_position[..., active].to(replaced.embed.dtype)
    buffer = PatchBuffer(
        by_position,
        active.tolist(),
        replaced.embed[:, :tokens],
        gradient=gradient or cut.requires_grad,
    )
    this = _Pass(model, wiring, replaced, tokens, buffer, reads, writes)
    hooks = [hook for layer in range(wiring.graph.layers) for hook in _block_hooks(this, layer)]
    if bool(reads[-1]):
        logits = torch.tensor([wiring.graph.destinations - 1], device=active.device)

        def patch_stream(value: Tensor, hook: Any) -> Tensor:
            return buffer.read(logits, value)[:, :, 0].clone()

        hooks.append((f"blocks.{wiring.graph.layers - 1}.hook_resid_post", patch_stream))
    return hooks


def _block_hooks(this: _Pass, layer: int) -> list[Hook]:
    """Hooks of one block, in the order in which the block runs."""
    block, wiring, graph = f"blocks.{layer}.", this.wiring, this.wiring.graph
    streams: dict[str, Tensor] = {}

    def add(source: int, replacement: Tensor) -> Callable[..., None]:
        def hook(value: Tensor, hook: Any) -> None:
            change = replacement - value
            if wiring.centred:
                change = change - change.mean(-1, keepdim=True)
            this.buffer.add([source], change[:, :, None])

        return hook

    hooks = keep_hooks([block + "hook_resid_pre"], streams, detach=False)
    if layer == 0 and bool(this.writes[0]):
        hooks.append((block + "hook_resid_pre", add(0, this.replaced.embed)))
    hooks += _patch_heads(this, layer, streams)
    hooks += _collect_heads(this, layer)
    if not graph.mlp:
        return hooks
    hooks += keep_hooks([stream_point(wiring, layer)], streams, detach=False)
    if bool(this.reads[graph.inputs_of(layer)["mlp"]]):
        hooks.append((block + wiring.mlp_point, _patch_mlp(this, layer, streams)))
    mlp = graph.heads_of(layer).stop
    if bool(this.writes[mlp]):
        hooks.append((block + "hook_mlp_out", add(mlp, this.replaced.mlp[layer])))
    return hooks


def _patch_heads(this: _Pass, layer: int, streams: dict[str, Tensor]) -> list[Hook]:
    """Hooks that work q, k and v of the cut heads out of what each of them reads."""
    wiring, norm = this.wiring, this.wiring.attention_norms[layer]
    inputs_of = wiring.graph.inputs_of(layer)
    cut = {kind: this.reads[inputs_of[kind]].nonzero()[:, 0] for kind in INPUTS}
    places = torch.cat([inputs_of[kind].start + cut[kind] for kind in INPUTS])
    own: dict[Input, Tensor] = {}

    def work_out() -> None:
        """All at once, in the first of the hooks: one product reads the buffer once."""
        read = streams[f"blocks.{layer}.hook_resid_pre"]
        if norm is not None and wiring.centred:  # the differences are centred already
            read = norm.centre(read)
        read = this.buffer.read(places, read)
        if norm is not None and not wiring.centred:
            read = norm.centre(read)
        sizes = [len(cut[kind]) for kind in INPUTS]
        scales = [None] * 3 if norm is None else norm.scale(read).split(sizes, dim=2)
        for kind, part, scale in zip(INPUTS, read.split(sizes, dim=2), scales, strict=True):
            weight, offset = input_projection(this.model, wiring, layer, kind, this.tokens)
            if len(cut[kind]) < len(weight):
                weight, offset = weight[cut[kind]], offset[:, cut[kind]]
            # The weight takes no scale, so the quotient is taken where it is narrow.
            inputs = torch.einsum("rphm,hme->rphe", part, weight)
            inputs = inputs if scale is None else inputs / scale
            own[kind] = inputs + offset

    def patch(kind: Input) -> Callable[..., Tensor]:
        def hook(value: Tensor, hook: Any) -> Tensor:
            if not own:
                work_out()
            inputs, heads = own.pop(kind).to(value.dtype), cut[kind]
            if inputs.numel() == value.numel():
                return inputs.reshape(value.shape)
            by_head = value.reshape(*value.shape[:2], -1, inputs.shape[-1])
            return by_head.index_copy(2, heads, inputs).reshape(value.shape)

        return hook

    kinds: list[Input] = [kind for kind in INPUTS if len(cut[kind])]
    return [(f"blocks.{layer}.attn.hook_{kind}", patch(kind)) for kind in kinds]


def _collect_heads(this: _Pass, layer: int) -> list[Hook]:
    """Hooks that add what the cut heads of a block have written."""
    block, graph = f"blocks.{layer}.", this.wiring.graph
    numbers = graph.heads_of(layer)
    heads = this.writes[numbers].nonzero()[:, 0]
    places = (numbers.start + heads).tolist()
    kept: list[Tensor] = []

    def add(z: Tensor) -> None:
        by_head = z.reshape(*z.shape[:2], graph.heads, -1)
        change = this.replaced.z[layer] - by_head
        weight = head_writer(this.model, this.wiring, layer)
        if len(heads) < graph.heads:
            change, weight = change[:, :, heads], weight[heads]
        if this.wiring.centred:
            weight = weight - weight.mean(-1, keepdim=True)
        this.buffer.add(places, torch.einsum("rphe,hem->rphm", change, weight))

    def over_scale(value: Tensor, hook: Any) -> None:
        z = kept.pop()
        add((z.reshape(*z.shape[:2], -1) / value).to(z.dtype))

    if not places:
        return []
    if not this.wiring.architecture.post_norm:
        return [(block + "attn.hook_z", lambda value, hook: add(value))]
    return [
        (block + "attn.hook_z", lambda value, hook: kept.append(value)),
        (block + "ln1_post.hook_scale", over_scale),
    ]


def _patch_mlp(this: _Pass, layer: int, streams: dict[str, Tensor]) -> Callable[..., Tensor]:
    """A hook that hands an MLP what it reads, normed where the hook point is behind the norm."""
    norm, place = this.wiring.mlp_norms[layer], this.wiring.graph.inputs_of(layer)["mlp"].start

    def patch(value: Tensor, hook: Any) -> Tensor:
        mlp = torch.tensor([place], device=value.device)
        read = this.buffer.read(mlp, streams[stream_point(this.wiring, layer)])[:, :, 0]
        read = read.clone() if norm is None else norm(read)
        return read.reshape(value.shape).to(value.dtype)

    return patch


def patched_logits(
    model: Model,
    wiring: Wiring,
    tokens: Int[Tensor, "row pos"],
    lengths: Int[Tensor, " row"],
    cut: Float[Tensor, "row destination source *pos"],
    replaced: Outputs,
    *,
    every_position: bool = False,
) -> Float[Tensor, "row read vocab"]:
    """Logits of one forward pass in which each row has its own edges ablated.

    Differentiable in `cut` where that asks for gradients. `read` is the last token of each row, or
    every position.

    Raises:
        FloatingPointError: a logit is NaN or infinite.
    """
    hooks = patch_hooks(model, wiring, cut, replaced, tokens.shape[1])
    read: dict[str, bool] = {"every_position": every_position, "gradient": cut.requires_grad}
    with mlp_input_hooks(model, wiring):
        return read_logits(model, wiring.architecture, tokens, lengths, hooks, **read)
