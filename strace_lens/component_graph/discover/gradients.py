"""Gradients of a task's metric in what every destination reads, from one backward pass.

A gradient at q, k or v is pulled back by hand through the head's weights and the block's norm to
the stream that the head reads; a gradient at an MLP's input through its norm. So no split inputs
are needed, and the model keeps its narrow activations only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strace_lens.component_graph.wiring import (
    INPUTS,
    Wiring,
    input_projection,
    mlp_input_hooks,
    stream_point,
)
from strace_lens.model.architecture import Model
from strace_lens.model.forward import Hook, all_logits, last_logits
from strace_lens.model.hold import fixed_weights

AT_ONCE = 64
"""Destinations in one product with all differences, which fewer would read more often."""


@dataclass(frozen=True, eq=False)
class ReadGradients:
    """One forward and backward pass.

    Attributes:
        streams: what the blocks' heads and MLPs read, detached, by hook point.
        gradients: of the summed metric, by hook point.
        logits: at the positions read, detached.
    """

    streams: dict[str, Float[Tensor, "row pos d_model"]]
    gradients: dict[str, Tensor]
    logits: Float[Tensor, "row read vocab"]


def read_gradients(
    model: Model,
    wiring: Wiring,
    tokens: Int[Tensor, "row pos"],
    lengths: Int[Tensor, " row"],
    score: Callable[[Float[Tensor, "row read vocab"]], Float[Tensor, " row"]],
    *,
    hooks: Sequence[Hook] = (),
    every_position: bool = False,
) -> ReadGradients:
    """Run rows forward and backward, keeping the gradient at every destination.

    Args:
        model: its weights are asked for no gradient.
        wiring: of the same model.
        tokens, lengths: rows, padded on the right.
        score: the metric of each row, differentiated as a sum.
        hooks: run before ours, as one that interpolates the embedding.
        every_position: unembed every position.

    Raises:
        UnsupportedModelError: the weights are quantised.
        FloatingPointError: a logit or a gradient is NaN or infinite.
    """
    arch = wiring.architecture
    streams: dict[str, Tensor] = {}
    leaves: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda value, hook: streams.__setitem__(name, value.detach())

    def leaf(name: str) -> Callable[..., Tensor]:
        def hook(value: Tensor, hook: Any) -> Tensor:
            # A hook may be handed a view that is not on the path: what it returns is.
            leaves[name] = value.view_as(value)
            return leaves[name]

        return hook

    def root(value: Tensor, hook: Any) -> Tensor:
        return value.detach().requires_grad_()

    own: list[Hook] = [*hooks, ("blocks.0.hook_resid_pre", root)]
    own += [(name, keep(name)) for name in _streams(wiring)]
    own += [(name, leaf(name)) for name in _reads(wiring)]
    with fixed_weights(model), mlp_input_hooks(model, wiring), torch.enable_grad():
        if every_position:
            logits = all_logits(model, arch, tokens, own, gradient=True)
        else:
            logits = last_logits(model, arch, tokens, lengths, own, gradient=True)[:, None]
        found = torch.autograd.grad(
            score(logits).sum(), list(leaves.values()), allow_unused=True, materialize_grads=True
        )
    gradients = dict(zip(leaves, found, strict=True))
    for name, gradient in gradients.items():
        if not bool(torch.isfinite(gradient).all()):
            raise FloatingPointError(f"{arch.name} gave a NaN or infinite gradient at {name}")
    return ReadGradients(streams, gradients, logits.detach())


def _streams(wiring: Wiring) -> list[str]:
    """Hook points of the streams that destinations read, each once."""
    layers = range(wiring.graph.layers)
    names = [f"blocks.{n}.hook_resid_pre" for n in layers]
    if wiring.graph.mlp:
        names += [stream_point(wiring, n) for n in layers]
    return list(dict.fromkeys(names))


def _reads(wiring: Wiring) -> list[str]:
    """Hook points at which destinations read."""
    names = []
    for layer in range(wiring.graph.layers):
        names += [f"blocks.{layer}.attn.hook_{kind}" for kind in INPUTS]
        names += [f"blocks.{layer}.{wiring.mlp_point}"] * wiring.graph.mlp
    return [*names, f"blocks.{wiring.graph.layers - 1}.hook_resid_post"]


def destination_gradients(
    model: Model, wiring: Wiring, read: ReadGradients
) -> Iterator[tuple[slice, Float[Tensor, "destination row pos d_model"]]]:
    """Gradients in the stream that each destination reads, those of some blocks at a time.

    What is yielded holds only until the next.
    """
    graph = wiring.graph
    per_layer, layers = graph.destinations_per_layer, range(graph.layers)
    at_once = math.ceil(AT_ONCE / per_layer)
    like = read.streams["blocks.0.hook_resid_pre"]
    buffer = like.new_empty(min(at_once, graph.layers) * per_layer + 1, *like.shape)
    for blocks in (layers[n : n + at_once] for n in range(0, graph.layers, at_once)):
        for place, layer in enumerate(blocks):
            own = buffer[place * per_layer : (place + 1) * per_layer]
            _head_gradients(model, wiring, layer, read, own[: per_layer - graph.mlp])
            if graph.mlp:
                own[-1] = _mlp_gradient(wiring, layer, read)
        count = len(blocks) * per_layer
        if blocks[-1] == layers[-1]:
            buffer[count] = read.gradients[f"blocks.{layers[-1]}.hook_resid_post"]
            count += 1
        first = blocks[0] * per_layer
        yield slice(first, first + count), buffer[:count]


def _mlp_gradient(
    wiring: Wiring, layer: int, read: ReadGradients
) -> Float[Tensor, "row pos d_model"]:
    norm, stream = wiring.mlp_norms[layer], read.streams[stream_point(wiring, layer)]
    gradient = read.gradients[f"blocks.{layer}.{wiring.mlp_point}"].reshape(stream.shape)
    if norm is None:
        return gradient
    centred = norm.centre(stream)
    scale = norm.scale(centred)
    gradient = norm.centre(gradient * norm.gain) / scale
    return _off_direction(gradient[None], centred / scale)[0]


def _head_gradients(
    model: Model,
    wiring: Wiring,
    layer: int,
    read: ReadGradients,
    out: Float[Tensor, "destination row pos d_model"],
) -> None:
    stream, norm = read.streams[f"blocks.{layer}.hook_resid_pre"], wiring.attention_norms[layer]
    centred = stream if norm is None else norm.centre(stream)
    scale = None if norm is None else norm.scale(centred)
    first = 0
    for kind in INPUTS:
        weight = input_projection(model, wiring, layer, kind, stream.shape[1]).weight
        if norm is not None and norm.centred:
            weight = weight - weight.mean(1, keepdim=True)
        gradient = read.gradients[f"blocks.{layer}.attn.hook_{kind}"]
        gradient = gradient.reshape(*stream.shape[:2], weight.shape[0], weight.shape[2])
        if scale is not None:  # taken where it is narrow
            gradient = gradient / scale[..., None]
        own = out[first : first + weight.shape[0]].flatten(1, 2)
        torch.bmm(gradient.flatten(0, 1).transpose(0, 1), weight.transpose(1, 2), out=own)
        first += weight.shape[0]
    if scale is not None:
        _off_direction(out, centred / scale)


def _off_direction(
    gradient: Float[Tensor, "destination row pos d_model"],
    unit: Float[Tensor, "row pos d_model"],
) -> Float[Tensor, "destination row pos d_model"]:
    """Take from a gradient, in place, its part along the stream: a norm's last step backwards.

    With n = x / scale, the Jacobian of n is (1 - n n^T / d_model) / scale. Gain, centring and the
    division are done already, which commute with it.
    """
    along = torch.linalg.vecdot(gradient, unit)[..., None] / unit.shape[-1]
    return gradient.addcmul_(along, unit, value=-1)
