"""The gradient of a metric in what each destination of the component graph reads.

A gradient at q, k or v is pulled back by hand through the head's weights and the block's norm to
the stream that the head reads, and a gradient at an MLP's input through its norm. So no split
inputs are needed, and the model keeps its narrow activations only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strace_lens.circuits.outputs import read_logits
from strace_lens.circuits.wiring import (
    INPUTS,
    Wiring,
    input_projection,
    keep_hooks,
    mlp_input_hooks,
    read_points,
    stream_point,
    stream_points,
)
from strace_lens.model.architecture import Model, UnsupportedModelError
from strace_lens.model.forward import Hook
from strace_lens.model.hold import fixed_weights
from strace_lens.model.norms import Norm

AT_ONCE = 64
"""Destinations in one product with all differences, which fewer would read more often."""

Values = dict[str, Tensor]
"""What hook points carry, or its gradients, by name."""


def read_gradients(
    model: Model,
    wiring: Wiring,
    tokens: Int[Tensor, "row pos"],
    lengths: Int[Tensor, " row"],
    score: Callable[[Float[Tensor, "row read vocab"]], Float[Tensor, " row"]],
    *,
    hooks: Sequence[Hook] = (),
    every_position: bool = False,
    written: Values | None = None,
) -> tuple[Values, Values]:
    """Run rows forward and backward.

    Args:
        model: its weights are asked for no gradient.
        wiring: of the same model.
        tokens, lengths: rows, padded on the right.
        score: the metric of each row, differentiated as a sum.
        hooks: run before ours, as one that interpolates the embedding.
        every_position: unembed every position.
        written: filled by `hooks` with tensors that ask for gradients and that they write, by hook
            point; each must have reached the score.

    Returns:
        The streams that heads and MLPs read, and the gradients at every point where one reads.

    Raises:
        UnsupportedModelError: the weights are quantised, or what a hook wrote was not used.
        FloatingPointError: a logit or a gradient is NaN or infinite.
    """
    streams: Values = {}
    leaves: Values = {}

    def leaf(name: str) -> Callable[..., Tensor]:
        def hook(value: Tensor, hook: Any) -> Tensor:
            # A hook may be handed a view that is not on the path: what it returns is.
            leaves[name] = value.view_as(value)
            return leaves[name]

        return hook

    def root(value: Tensor, hook: Any) -> Tensor:
        return value.detach().requires_grad_()

    own: list[Hook] = [*hooks, ("blocks.0.hook_resid_pre", root)]
    own += keep_hooks(stream_points(wiring), streams)
    own += [(name, leaf(name)) for name in [*read_points(wiring), _output_point(wiring)]]
    with fixed_weights(model), mlp_input_hooks(model, wiring), torch.enable_grad():
        logits = read_logits(
            model,
            wiring.architecture,
            tokens,
            lengths,
            own,
            every_position=every_position,
            gradient=True,
        )
        asked = {**leaves, **(written or {})}
        found = torch.autograd.grad(score(logits).sum(), list(asked.values()), allow_unused=True)
    gradients = dict(zip(asked, found, strict=True))
    for name in written or ():
        if gradients.pop(name) is None:
            raise UnsupportedModelError(f"{wiring.graph.model} does not use what is at {name}")
    gradients = {n: torch.zeros_like(leaves[n]) if g is None else g for n, g in gradients.items()}
    for name, gradient in gradients.items():
        if not bool(torch.isfinite(gradient).all()):
            raise FloatingPointError(
                f"{wiring.graph.model} gave a NaN or infinite gradient at {name}"
            )
    return streams, gradients


def _output_point(wiring: Wiring) -> str:
    return f"blocks.{wiring.graph.layers - 1}.hook_resid_post"


def destination_gradients(
    model: Model,
    wiring: Wiring,
    streams: Values,
    gradients: Values,
    *,
    fixed_scales: bool = False,
) -> Iterator[tuple[slice, Float[Tensor, "destination row pos d_model"]]]:
    """Gradients in the stream that each destination reads, those of some blocks at a time.

    The parameters `model` and `wiring` are as for `read_gradients`.

    The parameters `streams` and `gradients` are as it returns them.

    Args:
        fixed_scales: take what norms divide by for constants.

    Yields:
        Destinations, and their gradients, which hold only until the next are asked for.
    """
    graph = wiring.graph
    per_layer, layers = graph.destinations_per_layer, range(graph.layers)
    at_once = math.ceil(AT_ONCE / per_layer)
    like = streams["blocks.0.hook_resid_pre"]
    buffer = like.new_empty(min(at_once, graph.layers) * per_layer + 1, *like.shape)
    for blocks in (layers[n : n + at_once] for n in range(0, graph.layers, at_once)):
        for place, layer in enumerate(blocks):
            own = buffer[place * per_layer : (place + 1) * per_layer]
            stream = streams[f"blocks.{layer}.hook_resid_pre"]
            heads = own[: per_layer - graph.mlp]
            _head_gradients(model, wiring, layer, stream, gradients, heads, fixed_scales)
            if graph.mlp:
                point, stream = wiring.mlp_point, streams[stream_point(wiring, layer)]
                gradient = gradients[f"blocks.{layer}.{point}"].reshape(stream.shape)
                norm = wiring.mlp_norms[layer]
                own[-1] = _before_norm(norm, gradient, stream, fixed_scales)
        count = len(blocks) * per_layer
        if blocks[-1] == layers[-1]:
            buffer[count] = gradients[_output_point(wiring)]
            count += 1
        first = blocks[0] * per_layer
        yield slice(first, first + count), buffer[:count]


def _before_norm(
    norm: Norm | None,
    gradient: Float[Tensor, "row pos d_model"],
    stream: Float[Tensor, "row pos d_model"],
    fixed_scale: bool,
) -> Float[Tensor, "row pos d_model"]:
    """The gradient in the stream, from that behind a norm."""
    if norm is None:
        return gradient
    centred = norm.centre(stream)
    scale = norm.scale(centred)
    gradient = norm.centre(gradient * norm.gain) / scale
    if fixed_scale:
        return gradient
    return _off_direction(gradient[None], centred / scale)[0]


def _head_gradients(
    model: Model,
    wiring: Wiring,
    layer: int,
    stream: Float[Tensor, "row pos d_model"],
    gradients: Values,
    out: Float[Tensor, "destination row pos d_model"],
    fixed_scale: bool,
) -> None:
    """Fill in the gradients in the stream that the inputs of a block's heads read."""
    norm, first = wiring.attention_norms[layer], 0
    centred = stream if norm is None else norm.centre(stream)
    scale = None if norm is None else norm.scale(centred)
    for kind in INPUTS:
        weight, _ = input_projection(model, wiring, layer, kind, stream.shape[1])
        if norm is not None and norm.centred:
            weight = weight - weight.mean(1, keepdim=True)
        gradient = gradients[f"blocks.{layer}.attn.hook_{kind}"]
        gradient = gradient.reshape(*stream.shape[:2], weight.shape[0], weight.shape[2])
        if scale is not None:  # taken where it is narrow
            gradient = gradient / scale[..., None]
        own = out[first : first + weight.shape[0]].flatten(1, 2)
        torch.bmm(gradient.flatten(0, 1).transpose(0, 1), weight.transpose(1, 2), out=own)
        first += weight.shape[0]
    if scale is not None and not fixed_scale:
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
