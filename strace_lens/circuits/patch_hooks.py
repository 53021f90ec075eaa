"""The hooks of a patched pass: they rewrite what destinations read and note what sources write."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from strace_lens.circuits.outputs import Outputs, Streams
from strace_lens.circuits.patch_buffer import PatchBuffer
from strace_lens.circuits.wiring import (
    INPUTS,
    Input,
    Wiring,
    head_writer,
    input_projection,
    keep_hooks,
    stream_point,
)
from strace_lens.model.architecture import Model
from strace_lens.model.forward import Hook


class KnownRun(NamedTuple):
    """A run of the same prompts whose first blocks patched rows may share.

    Attributes:
        cut: what it cuts.
        outputs: of its sources.
        streams: that its blocks read; None where the known run was worked out from replaced
            streams, so that it has none of its own.
        pairs: rows of outputs and streams, one for each row of the patched run; all unless given.
    """

    cut: Float[Tensor, "destination source *pos"]
    outputs: Outputs
    streams: Streams | None
    pairs: Int[Tensor, " row"] | slice = slice(None)


@dataclass(frozen=True, eq=False)
class Pass:
    """What the hooks of one patched pass share.

    Attributes:
        model, wiring, tokens: as for `plan_pass`.
        replaced: outputs.
        base: streams to which changes are added, where those are not the run's own.
        buffer: of all sources that have a slot.
        reads, writes: which destinations any row rewrites, and which sources have a slot.
        differs: tokens at which MLPs run; None where all do.
        at_once: a block's MLP reads the earlier blocks with its heads, in one product; the sum is
            then rounded otherwise.
    """

    model: Model
    wiring: Wiring
    replaced: Outputs
    base: Streams | None
    tokens: int
    buffer: PatchBuffer
    reads: Bool[Tensor, " destination"]
    writes: Bool[Tensor, " source"]
    differs: Bool[Tensor, "row pos"] | None
    at_once: bool

    def change(
        self, replacement: Float[Tensor, "row #pos *#d"], own: Float[Tensor, "row pos *d"]
    ) -> Float[Tensor, "row pos *d"]:
        """What a slot holds: replacement less output, or the other way round."""
        return replacement - own if self.base is None else own - replacement


_Shared = list[tuple[Tensor, int]]  # what an MLP reads of the slots filled so far, once worked out


def hooks_of(this: Pass, known: KnownRun | None, first: int, skipped: Container[int]) -> list[Hook]:
    """All hooks of a pass, in the order in which the model runs."""
    graph = this.wiring.graph
    hooks: list[Hook] = []
    if known is not None and (first or this.base is not None):
        _fill(this, known, first)
    if first and this.base is None:
        assert known is not None
        assert known.streams is not None
        stream = known.streams[f"blocks.{first}.hook_resid_pre"][known.pairs]
        hooks.append((f"blocks.{first}.hook_resid_pre", lambda value, hook: stream))
    for layer in range(first, graph.layers):
        hooks += [] if layer in skipped else _block_hooks(this, layer)
    if bool(this.reads[-1]):
        logits = torch.tensor([graph.destinations - 1], device=this.reads.device)
        name = f"blocks.{graph.layers - 1}.hook_resid_post"

        def patch_stream(value: Tensor, hook: Any) -> Tensor:
            stream = value if this.base is None else this.base[name]
            return this.buffer.read(logits, stream)[:, :, 0].clone()

        hooks.append((name, patch_stream))
    return hooks


def _fill(this: Pass, known: KnownRun, first: int) -> None:
    """Fill the slots of the embedding and of the blocks before the first that runs."""
    graph, outputs, index = this.wiring.graph, known.outputs, known.pairs
    if bool(this.writes[0]):
        _add(this, 0, this.replaced.embed, outputs.embed[index])
    for layer in range(first):
        _add_heads(this, layer, outputs.z[layer][index])
        mlp = graph.heads_of(layer).stop
        if graph.mlp and bool(this.writes[mlp]):
            _add(this, mlp, this.replaced.mlp[layer], outputs.mlp[layer][index])


def _add(
    this: Pass,
    source: int,
    replacement: Float[Tensor, "row #pos #d_model"],
    own: Float[Tensor, "row pos d_model"],
) -> None:
    """Fill the slot of the embedding or of an MLP."""
    change = this.change(replacement, own)
    if this.differs is not None:
        change = change * this.differs[..., None]
    if this.wiring.centred:
        change = change - change.mean(-1, keepdim=True)
    this.buffer.add([source], change[:, :, None])


def _add_heads(this: Pass, layer: int, z: Float[Tensor, "row pos head d_head"]) -> None:
    """Fill the slots of a block's heads; a norm after attention is divided out of z."""
    numbers = this.wiring.graph.heads_of(layer)
    heads = this.writes[numbers].nonzero()[:, 0]
    if not len(heads):
        return
    change, weight = (
        this.change(this.replaced.z[layer], z),
        head_writer(this.model, this.wiring, layer),
    )
    if len(heads) < len(weight):
        change, weight = change[:, :, heads], weight[heads]
    if this.wiring.centred:
        weight = weight - weight.mean(-1, keepdim=True)
    places = (numbers.start + heads).tolist()
    this.buffer.add_products(places, change, weight)


def _block_hooks(this: Pass, layer: int) -> list[Hook]:
    """Hooks of one block, in the order in which the block runs."""
    block, wiring, graph = f"blocks.{layer}.", this.wiring, this.wiring.graph
    streams: dict[str, Tensor] = {}
    names = [block + "hook_resid_pre", stream_point(wiring, layer)]
    points = [[], []] if this.base is not None else [[name] for name in names]
    if this.base is not None:
        streams = {name: this.base[name] for name in names}
    shared: _Shared = []
    hooks = keep_hooks(points[0], streams, detach=False)
    if layer == 0 and this.base is None and bool(this.writes[0]):
        embed = this.replaced.embed
        hooks.append((names[0], lambda value, hook: _add(this, 0, embed, value)))
    hooks += _patch_heads(this, layer, streams, shared)
    hooks += _collect_heads(this, layer)
    if not graph.mlp:
        return hooks
    hooks += keep_hooks(points[1], streams, detach=False)
    if bool(this.reads[graph.inputs_of(layer)["mlp"]]):
        hooks.append((block + wiring.mlp_point, _patch_mlp(this, layer, streams, shared)))
    mlp = graph.heads_of(layer).stop
    if bool(this.writes[mlp]):
        replacement = this.replaced.mlp[layer]
        hooks.append(
            (block + "hook_mlp_out", lambda value, hook: _add(this, mlp, replacement, value))
        )
    return hooks


def _patch_heads(this: Pass, layer: int, streams: Streams, shared: _Shared) -> list[Hook]:
    """Hooks that work q, k and v of the cut heads out of what each of them reads.

    What the sources of earlier blocks change for the block's MLP is left in `shared`.
    """
    wiring, norm = this.wiring, this.wiring.attention_norms[layer]
    inputs_of = wiring.graph.inputs_of(layer)
    cut = {kind: this.reads[inputs_of[kind]].nonzero()[:, 0] for kind in INPUTS}
    mlp = inputs_of["mlp"].start + this.reads[inputs_of["mlp"]].nonzero()[:, 0]
    mlp = mlp if this.at_once else mlp[:0]
    places = torch.cat([*(inputs_of[kind].start + cut[kind] for kind in INPUTS), mlp])
    own: dict[Input, Tensor] = {}

    def work_out() -> None:
        """All at once, in the first of the hooks: one product reads the buffer once."""
        read = streams[f"blocks.{layer}.hook_resid_pre"]
        if norm is not None and wiring.centred:  # the differences are centred already
            read = norm.centre(read)
        read = this.buffer.read(places, read, changes=len(mlp))
        if len(mlp):
            shared.append((read[:, :, -1], this.buffer.count))
            read = read[:, :, :-1]
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


def _collect_heads(this: Pass, layer: int) -> list[Hook]:
    """Hooks that add what the cut heads of a block have written."""
    block, graph = f"blocks.{layer}.", this.wiring.graph
    kept: list[Tensor] = []

    def add(value: Tensor, hook: Any) -> None:
        _add_heads(this, layer, value.reshape(*value.shape[:2], graph.heads, -1))

    def over_scale(value: Tensor, hook: Any) -> None:
        z = kept.pop()
        z = (z.reshape(*z.shape[:2], -1) / value).to(z.dtype)
        _add_heads(this, layer, z.reshape(*z.shape[:2], graph.heads, -1))

    if not bool(this.writes[graph.heads_of(layer)].any()):
        return []
    if not this.wiring.architecture.post_norm:
        return [(block + "attn.hook_z", add)]
    return [
        (block + "attn.hook_z", lambda value, hook: kept.append(value)),
        (block + "ln1_post.hook_scale", over_scale),
    ]


def _patch_mlp(this: Pass, layer: int, streams: Streams, shared: _Shared) -> Callable[..., Tensor]:
    """A hook that hands an MLP what it reads, normed where the hook point is behind the norm."""
    norm, place = this.wiring.mlp_norms[layer], this.wiring.graph.inputs_of(layer)["mlp"].start

    def patch(value: Tensor, hook: Any) -> Tensor:
        stream = streams[stream_point(this.wiring, layer)]
        if shared:
            change, first = shared.pop()
            read = stream + change + this.buffer.read_since(place, first)
        else:
            mlp = torch.tensor([place], device=value.device)
            read = this.buffer.read(mlp, stream)[:, :, 0].clone()
        read = read if norm is None else norm(read)
        return read.reshape(value.shape).to(value.dtype)

    return patch
