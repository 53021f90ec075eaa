"""MLPs that run only on the tokens whose MLP edge a row keeps.

An MLP works on each token alone, so a token whose MLP edge is ablated need not pass through it. Of
the rows of a density curve less than half do.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from strace_lens.model.architecture import Model, device_of_layer

WORTHWHILE = 0.8
"""Share of kept tokens above which picking them out costs more than it saves."""

Forward = Callable[..., Any]
Wrapper = Callable[..., Any]


@contextlib.contextmanager
def kept_mlps(model: Model, keep: Bool[Tensor, "mlp_layer row pos"]) -> Iterator[None]:
    """Run each layer's MLP on its kept tokens alone; the others get zeros, which are masked away.

    A layer whose MLP somebody else watches runs whole.
    """
    some = keep.sum((1, 2)).tolist()  # the only wait for the device, for all layers at once
    places = keep.flatten(1).nonzero()[:, 1].split(some)
    chosen = {
        layer: functools.partial(_on_kept, where.to(device_of_layer(model, layer)))
        for layer, where in enumerate(places)
        if len(where) < WORTHWHILE * keep[layer].numel() and not _is_watched(_module(model, layer))
    }
    with _wrapped(model, chosen):
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


def _on_kept(
    places: Int[Tensor, " kept"], forward: Forward, hidden: Float[Tensor, "row pos d_model"]
) -> Float[Tensor, "row pos d_model"]:
    """The MLP at some places of the flattened rows and positions, zeros elsewhere."""
    tokens = hidden.flatten(0, 1)
    out = torch.zeros_like(tokens)
    if len(places):
        out[places] = forward(tokens[places][None])[0]
    return out.view_as(hidden)


@contextlib.contextmanager
def _wrapped(model: Model, wrappers: dict[int, Wrapper]) -> Iterator[None]:
    """Put a function around the forward of some layers' MLPs while the context is open."""
    with contextlib.ExitStack() as stack:
        for layer, wrapper in wrappers.items():
            module = _module(model, layer)
            own = vars(module).get("forward")
            vars(module)["forward"] = functools.partial(wrapper, module.forward)
            stack.callback(_restore, module, own)
        yield


def _restore(module: torch.nn.Module, own: Forward | None) -> None:
    if own is None:
        vars(module).pop("forward")
    else:
        vars(module)["forward"] = own


def _module(model: Model, layer: int) -> torch.nn.Module:
    """The module that computes a layer's MLP: behind a bridge's hook points, where there is one."""
    block = cast(Any, model).blocks[layer]
    return getattr(block.mlp, "original_component", None) or block.mlp


def _is_watched(module: torch.nn.Module) -> bool:
    """Whether a hook of the user's reads inside, which would see other shapes."""
    return any(
        getattr(m, "fwd_hooks", None) or m._forward_hooks or m._forward_pre_hooks
        for m in module.modules()
    )
