"""Hooked forward passes: many rows at once, the last position unembedded, in a byte budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strace_lens.model.architecture import (
    Architecture,
    Model,
    clipped,
    device_of,
    device_of_layer,
    mlp_constant,
)
from strace_lens.model.hold import hold, of_this_thread
from strace_lens.utils.choices import DEVICE_BUDGET, MEMORY_BUDGET

Hook = tuple[str, Callable[..., Tensor | None]]
FIRST = "blocks.0.hook_resid_pre"
"""The first hook point that the hooks of a trace or of a circuit write or read."""


def last_logits(
    model: Model,
    architecture: Architecture,
    tokens: Int[Tensor, "row pos"],
    lengths: Int[Tensor, " row"] | None = None,
    hooks: Sequence[Hook] = (),
    *,
    gradient: bool = False,
) -> Float[Tensor, "running vocab"]:
    """Logits at the last token of each row of one forward pass, the only position unembedded.

    Args:
        model: the model; its own hooks stay as they are, ours are gone afterwards, also on error.
        architecture: of the same model.
        tokens: rows padded on the right.
        lengths: real tokens of each row, all of one `Architecture.padding_class`; the whole row by
            default.
        hooks: pairs of hook point and function, run in order. Without lengths they may add rows
            (`Architecture.rows_can_branch`).
        gradient: keep what a backward pass needs.

    Raises:
        FloatingPointError: a logit is NaN or infinite.
        ValueError: the lengths are not of one class, so that a row would change another.
    """
    rows, width = tokens.shape
    device = device_of_layer(model, architecture.layers - 1)  # where the unembedding follows
    row_index = torch.arange(rows, device=device)
    last = None if lengths is None else (lengths - 1).to(device)

    def keep_last(value: Float[Tensor, "running pos d_model"], hook: Any) -> Tensor:
        # Hooks may have made several rows of one, which are all as long.
        return value[:, -1:] if last is None else value[row_index, last].unsqueeze(1)

    all_hooks = [*hooks, (architecture.unembed_input, keep_last)]
    positions = None if lengths is None else _positions(architecture, width, lengths)
    logits = all_logits(
        model, architecture, tokens, all_hooks, gradient=gradient, positions=positions
    )
    return logits[:, 0]


def expect_one_class(architecture: Architecture, lengths: Int[Tensor, " row"], what: str) -> None:
    """Refuse to run prompts beside one another whose `Architecture.padding_class` differs."""
    if architecture.padding_is_exact and not architecture.position_switches:
        return
    first, *others = lengths.unique().tolist()
    for other in others:
        if architecture.padding_class(other) != architecture.padding_class(first):
            switches = [n for n in architecture.position_switches if first <= n < other]
            why = f"positions change beyond {switches[0]} tokens" if switches else "padding is read"
            raise ValueError(
                f"{what} has prompts of {first} and of {other} tokens, but in {architecture.name} "
                f"{why}, so that they cannot share a forward pass; part them"
            )


def _positions(
    architecture: Architecture, width: int, lengths: Int[Tensor, " row"]
) -> Int[Tensor, "row pos"] | None:
    """Positions that padding cannot raise beyond a switch; None where there is no switch."""
    expect_one_class(architecture, lengths, "the batch")
    if not architecture.position_switches:
        return None
    return torch.arange(width).minimum(lengths[:, None].cpu() - 1)


def all_logits(
    model: Model,
    architecture: Architecture,
    tokens: Int[Tensor, "row pos"],
    hooks: Sequence[Hook] = (),
    *,
    gradient: bool = False,
    positions: Int[Tensor, "row pos"] | None = None,
) -> Float[Tensor, "running read vocab"]:
    """Logits of one forward pass at every position, or those that a hook has left.

    The parameters `model`, `architecture`, `tokens`, `hooks` and `gradient` are as in
    `last_logits`.

    Args:
        positions: of the tokens, where they do not simply count up.
    """
    with hold(model), torch.set_grad_enabled(gradient):
        logits = model.run_with_hooks(
            tokens.to(device_of(model)),
            fwd_hooks=[(point, of_this_thread(model, function)) for point, function in hooks],
            return_type="logits",
            padding_side="right",
            **({} if positions is None else {"position_ids": positions.to(device_of(model))}),
        )
    if not bool(torch.isfinite(logits).all()):
        raise FloatingPointError(
            f"{architecture.name} gave NaN or infinite logits; load it in float32 or check it"
        )
    return logits


@dataclass(frozen=True, eq=False)
class Activations:
    """What one untouched forward pass over one prompt left at the hook points of the token graph.

    Attributes:
        nodes: the residual stream at every node, by level: the first is the embedding.
        pattern: `attn.hook_pattern`.
        value: `attn.hook_v`, of the key-value heads, clipped where the model clips it.
        mlp: the MLP edges: `hook_mlp_out` less its output bias (no rows if attention-only).
        attention_scale: scale of the norm after attention, ones where there is none.
        logits: at the last position.
    """

    nodes: Float[Tensor, "level pos d_model"]
    pattern: Float[Tensor, "layer head query key"]
    value: Float[Tensor, "layer key kv_head d_head"]
    mlp: Float[Tensor, "mlp_layer pos d_model"]
    attention_scale: Float[Tensor, "layer pos"]
    logits: Float[Tensor, " vocab"]


def read_activations(
    model: Model, architecture: Architecture, tokens: Int[Tensor, " pos"]
) -> Activations:
    """Run a prompt untouched and keep what the token graph is made of."""
    read: dict[str, Tensor] = {}
    device = device_of(model)

    def keep(name: str, place: int, places: int) -> Callable[..., None]:
        def hook(value: Tensor, hook: Any) -> None:
            # Into its place at once: a list that is stacked afterwards would hold all twice.
            if name not in read:
                read[name] = value.new_empty((places, *value.shape[1:]), device=device)
            read[name][place].copy_(value[0].detach(), non_blocking=True)

        return hook

    stream = ["hook_resid_mid", "hook_resid_post"]
    stream = stream if architecture.mlp and not architecture.parallel else stream[1:]
    names = ["attn.hook_pattern", "attn.hook_v"]
    names += ["hook_mlp_out"] * architecture.mlp + ["ln1_post.hook_scale"] * architecture.post_norm
    layers, sublayers = architecture.layers, len(stream)
    levels = 1 + layers * sublayers
    hooks: list[Hook] = [("blocks.0.hook_resid_pre", keep("node", 0, levels))]
    for layer in range(layers):
        hooks += [
            (f"blocks.{layer}.{name}", keep("node", 1 + layer * sublayers + i, levels))
            for i, name in enumerate(stream)
        ]
        hooks += [(f"blocks.{layer}.{name}", keep(name, layer, layers)) for name in names]
    logits = last_logits(model, architecture, tokens[None], hooks=hooks)[0].to(device)

    pattern = read["attn.hook_pattern"]
    scale = pattern.new_ones(layers, len(tokens))
    if architecture.post_norm:
        scale = read["ln1_post.hook_scale"].squeeze(-1)
    mlp = pattern.new_zeros(0, len(tokens), architecture.d_model)
    if architecture.mlp:
        constants = [mlp_constant(model, architecture, n).to(device) for n in range(layers)]
        mlp = read["hook_mlp_out"] - torch.stack(constants)[:, None]
    return Activations(
        nodes=read["node"],
        pattern=pattern,
        value=clipped(architecture, read["attn.hook_v"]),
        mlp=mlp,
        attention_scale=scale,
        logits=logits,
    )


def bytes_per_row(architecture: Architecture, tokens: int, itemsize: int = 4) -> int:
    """Peak bytes that one row of a masked forward pass needs, an upper estimate.

    About twelve copies of the stream, four of the MLP's inner layer and eight of one layer's
    pattern are alive at once: the attention of transformers holds four or five of these, a mask
    and the numbers that it is read from two more, a replacement of ablated edges another. The
    logits are softmaxed and sorted in float64.
    """
    stream = tokens * (12 * architecture.d_model + 4 * architecture.d_mlp * architecture.experts)
    pattern = 8 * architecture.heads * tokens * tokens
    return itemsize * (stream + pattern) + 32 * architecture.d_vocab


def byte_budget(memory_budget: int | None, device: torch.device) -> int:
    """Bytes that one forward pass may take: what is asked for, else what suits the device.

    The default depends on the kind of device alone, not on the memory that is free there, so that
    the same call makes the same passes each time: `MEMORY_BUDGET` on a CPU, `DEVICE_BUDGET` on
    anything else.

    Raises:
        ValueError: a budget that is not positive.
    """
    if memory_budget is None:
        return MEMORY_BUDGET if device.type == "cpu" else DEVICE_BUDGET
    if memory_budget <= 0:
        raise ValueError(f"memory_budget must be positive; got {memory_budget} bytes")
    return memory_budget


def rows_per_pass(architecture: Architecture, tokens: int, memory_budget: int) -> int:
    """How many rows fit a budget, from `byte_budget`; at least one."""
    return max(1, memory_budget // bytes_per_row(architecture, tokens))


def even_chunks(count: int, largest: int) -> Iterator[slice]:
    """Cut `count` rows into as few chunks as the largest allows, of sizes as even as can be."""
    chunks = math.ceil(count / largest)
    edges = [round(i * count / chunks) for i in range(chunks + 1)] if chunks else [0]
    yield from (slice(a, b) for a, b in pairwise(edges))


def hooks_of_each_run(
    make: Callable[[Tensor], Sequence[Hook]], points: Sequence[str]
) -> list[Hook]:
    """Hooks for runs of a user's own, which learn the batch from the run itself.

    The first of them makes those of the run anew, so that nothing which an interrupted run left
    behind reaches the next.

    Args:
        make: what a run has at `FIRST`, `[row, pos, d_model]`, to its hooks, which run once each.
        points: the hook points of what `make` returns, in the same order; the first is `FIRST`.

    Returns:
        Pairs of hook point and function, as `run_with_hooks(fwd_hooks=...)` takes them.
    """
    functions: list[Callable[..., Tensor | None]] = []
    left = 0

    def hook_at(place: int) -> Callable[..., Tensor | None]:
        def hook(value: Tensor, hook: Any) -> Tensor | None:
            nonlocal left
            if place == 0:
                functions[:] = [function for _, function in make(value)]
                left = len(functions)
            elif not functions:
                raise RuntimeError(
                    f"{points[place]} ran before {FIRST}: these hooks mask whole forward passes; "
                    "start at the first block and pass all hooks of the list"
                )
            result = functions[place](value, hook)
            left -= 1
            if not left:
                functions.clear()  # the run's activations go with them
            return result

        return hook

    return [(point, hook_at(place)) for place, point in enumerate(points)]
