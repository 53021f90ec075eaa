"""Parts of a model that run only on some tokens, and projections and blocks that do not run at all.

An MLP and a projection of attention work on each token alone, so a token need not pass through them
where nothing reads what they write, or where another one reads the same. A block need not run where
what it would write is known already, or where nothing reads it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint, LensHandle
from transformers.pytorch_utils import Conv1D

from strace_lens.model.architecture import Model, device_of_layer

WORTHWHILE = 0.8
"""Share of kept tokens above which picking them out costs more than it saves."""

PARTS = ("q", "k", "v", "o", "mlp")
"""Parts of a block that work on each token alone: the projections of attention, and the MLP."""


class Places(NamedTuple):
    """Where a part runs in a pass, and where each token takes its value from."""

    run: Int[Tensor, " run"]  # in the flattened rows and positions
    taken: Int[Tensor, " place"]  # for each place one of those that run


Forward = Callable[..., Any]
Wrapper = Callable[..., Any]


@contextlib.contextmanager
def kept_mlps(
    model: Model, keep: Bool[Tensor, "mlp_layer row pos"] | Sequence[Bool[Tensor, "_ _"]]
) -> Iterator[None]:
    """Run each layer's MLP on its kept tokens alone; the others get zeros, which are masked away.

    A layer whose MLP somebody else watches runs whole.

    Args:
        model: the model.
        keep: of each layer, which may differ in their rows.
    """
    # The only waits for the device, for all layers at once.
    some = torch.stack([there.sum() for there in keep]).tolist() if len(keep) else []
    everywhere = torch.cat([there.flatten() for there in keep]) if len(keep) else torch.zeros(0)
    starts = accumulate((there.numel() for there in keep), initial=0)
    places = everywhere.nonzero()[:, 0].split(some) if some else ()
    chosen = {
        layer: functools.partial(_on_kept, (where - start).to(device_of_layer(model, layer)))
        for layer, (where, start) in enumerate(zip(places, starts, strict=False))
        if len(where) < WORTHWHILE * keep[layer].numel() and not _is_watched(_module(model, layer))
    }
    with _wrapped(model, chosen):
        yield


@contextlib.contextmanager
def run_at(model: Model, places: Mapping[tuple[int, str], Places]) -> Iterator[None]:
    """Run parts of blocks at some places alone, from which the others take their values.

    A part runs whole where somebody else watches it, where that costs little more, and where it is
    no module of its own or is not given the rows of the pass.

    Args:
        model: the model; its modules are as before afterwards, also on error.
        places: of parts of `PARTS`, by layer and name.
    """
    wrappers = {}
    for (layer, part), where in places.items():
        module = _module(model, layer) if part == "mlp" else projection(model, layer, part)
        few = len(where.run) < WORTHWHILE * len(where.taken)
        if module is not None and few and not _is_watched(module):
            device = device_of_layer(model, layer)
            on_device = Places(*(numbers.to(device) for numbers in where))
            wrappers[module] = functools.partial(_shared, on_device)
    with _replaced(wrappers):
        yield


def mlps_are_pointwise(model: Model, layers: int, run: Callable[[], object]) -> bool:
    """Whether `run`, a forward pass, takes every MLP through a module that works token by token."""
    found: dict[int, bool] = {}

    def probe(layer: int, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        whole = forward(*args, **kwargs)
        hidden = args[0] if args else None
        plain = len(args) == 1 and not kwargs and isinstance(whole, Tensor)
        if plain and isinstance(hidden, Tensor) and hidden.shape == whole.shape:
            rows, tokens = hidden.shape[:2]
            kept = torch.arange(tokens, device=hidden.device) % 2 == 0
            some = _on_kept(kept.repeat(rows).nonzero()[:, 0], forward, hidden)
            gap = (some - whole)[:, kept].float().norm()
            found[layer] = bool(gap < 1e-2 * whole.float().norm())
        return whole

    with _wrapped(model, {n: functools.partial(probe, n) for n in range(layers)}):
        run()
    return all(found.get(layer, False) for layer in range(layers))


@contextlib.contextmanager
def skipped_blocks(model: Model, layers: Iterable[int], outputs: int) -> Iterator[None]:
    """Have some blocks hand on the stream as it comes, without running anything or any hook.

    Args:
        model: the model; its blocks are as before afterwards, also on error.
        layers: of the blocks to skip.
        outputs: of every block, from `block_outputs`.
    """

    def hand_on(forward: Forward, *args: Any, **kwargs: Any) -> Any:
        stream = _stream_of(args, kwargs)
        return (stream, *[None] * (outputs - 1)) if outputs else stream

    with _replaced({_block(model, layer): hand_on for layer in layers}):
        yield


def block_outputs(model: Model, layers: int, run: Callable[[], object]) -> int | None:
    """What every block returns in `run`, a forward pass: 0 for the stream alone, else its tuple.

    None where that is not the same in all blocks, or not a stream of the shape that came in.
    """
    found: set[int | None] = set()

    def probe(forward: Forward, *args: Any, **kwargs: Any) -> Any:
        out, stream = forward(*args, **kwargs), _stream_of(args, kwargs)
        first = out[0] if isinstance(out, tuple) else out
        same = isinstance(first, Tensor) and stream is not None and first.shape == stream.shape
        found.add((len(out) if isinstance(out, tuple) else 0) if same else None)
        return out

    with _replaced({_block(model, layer): probe for layer in range(layers)}):
        run()
    return found.pop() if len(found) == 1 else None


@contextlib.contextmanager
def zero_projections(model: Model, parts: Iterable[tuple[int, str]]) -> Iterator[None]:
    """Have some projections of attention give zeros, where they are overwritten or not read.

    Args:
        model: the model; its modules are as before afterwards, also on error.
        parts: layers and names, "q", "k", "v" or "o", of which `projection` finds a module.
    """

    def zeros(width: int, forward: Forward, hidden: Tensor) -> Tensor:
        return hidden.new_zeros(*hidden.shape[:-1], width)

    modules = [projection(model, *part) for part in parts]
    widths = {m: m.out_features if isinstance(m, torch.nn.Linear) else m.nf for m in modules if m}
    with _replaced({m: functools.partial(zeros, width) for m, width in widths.items()}):
        yield


def projection(model: Model, layer: int, name: str) -> torch.nn.Linear | Conv1D | None:
    """The linear layer behind a bridge's hook point, or GPT-2's kind; None where there is none."""
    part = getattr(cast(Any, model).blocks[layer].attn, name, None)
    module = getattr(part, "original_component", None)
    return module if isinstance(module, torch.nn.Linear | Conv1D) else None


def has_hooks(model: Model) -> bool:
    """Whether somebody's hooks stand at a hook point, so that every part has to run.

    A bridge's own hooks, by which the parts of OPT's MLP stand for an MLP, are nobody's: they only
    call the hooks of points that are looked at as well.
    """
    parts = cast(torch.nn.Module, model).modules()
    # Torch's own list, which also has what was registered past `add_hook`.
    return any(
        len(part._forward_hooks) > sum(map(_is_of_the_bridge, part.fwd_hooks))
        for part in parts
        if isinstance(part, HookPoint) and part._forward_hooks
    )


def _is_of_the_bridge(handle: LensHandle) -> bool:
    owner = getattr(handle.user_hook, "__module__", None) or ""
    return handle.is_permanent and owner.partition(".")[0] == "transformer_lens"


def _stream_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else kwargs.get("hidden_states")


def _on_kept(
    places: Int[Tensor, " kept"], forward: Forward, hidden: Float[Tensor, "row pos d_model"]
) -> Float[Tensor, "row pos d_model"]:
    """The MLP at some places of the flattened rows and positions, zeros elsewhere."""
    tokens = hidden.flatten(0, 1)
    out = torch.zeros_like(tokens)
    if len(places):
        out[places] = forward(tokens[places][None])[0]
    return out.view_as(hidden)


def _shared(
    places: Places, forward: Forward, hidden: Float[Tensor, "row pos _"]
) -> Float[Tensor, "row pos _"]:
    """What a part writes at the places where it runs, taken over by all others."""
    if hidden.ndim != 3 or hidden.shape[:2].numel() != len(places.taken):
        return forward(hidden)
    # With no place to run at nothing is read; what stands there must still have its shape.
    run = places.run if len(places.run) else places.taken[:1]
    written = forward(hidden.flatten(0, 1).index_select(0, run)[None])[0]
    return written.index_select(0, places.taken).unflatten(0, hidden.shape[:2])


@contextlib.contextmanager
def _wrapped(model: Model, wrappers: dict[int, Wrapper]) -> Iterator[None]:
    """Put a function around the forward of some layers' MLPs while the context is open."""
    with _replaced({_module(model, layer): wrapper for layer, wrapper in wrappers.items()}):
        yield


@contextlib.contextmanager
def _replaced(wrappers: Mapping[torch.nn.Module, Wrapper]) -> Iterator[None]:
    """Put a function around the forward of some modules while the context is open."""
    with contextlib.ExitStack() as stack:
        for module, wrapper in wrappers.items():
            own = vars(module).get("forward")
            vars(module)["forward"] = functools.partial(wrapper, module.forward)
            stack.callback(_restore, module, own)
        yield


def _restore(module: torch.nn.Module, own: Forward | None) -> None:
    if own is None:
        vars(module).pop("forward")
    else:
        vars(module)["forward"] = own


def _block(model: Model, layer: int) -> torch.nn.Module:
    return cast(Any, model).blocks[layer]


def _module(model: Model, layer: int) -> torch.nn.Module:
    """The module that computes a layer's MLP: behind a bridge's hook points, where there is one."""
    block: Any = _block(model, layer)
    return getattr(block.mlp, "original_component", None) or block.mlp


def _is_watched(module: torch.nn.Module) -> bool:
    """Whether a hook of the user's reads inside, which would see other shapes."""
    return any(
        getattr(m, "fwd_hooks", None) or m._forward_hooks or m._forward_pre_hooks
        for m in module.modules()
    )
