"""Which weights a model holds: a hash for files, and a quick fingerprint for what is remembered.

A model object outlives its weights: folding, a loaded state dict, a training step or a change of
dtype put others into it, and two checkpoints can share a name. So what is proven of a model is
remembered by `fingerprint`, and what is written to disk is tied to its model by `weights_hash`.
"""

from __future__ import annotations

import hashlib
import itertools
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Shaped
from torch import Tensor

from strace_lens.model.architecture import Model, at_hand, is_away
from strace_lens.model.hold import noted

_WHOLE = 2**16
_SAMPLES = 64

T = TypeVar("T")

_known: weakref.WeakKeyDictionary[Any, tuple[Hashable, dict[str, Any]]] = (
    weakref.WeakKeyDictionary()
)
"""What is known of models: by model, the fingerprint that it holds for and the facts by name."""


def weights_hash(model: Model) -> str:
    """SHA-256 over every parameter of a model, in hexadecimal: shape, dtype and all values.

    The same weights give the same hash on every device, in every process and wherever a device map
    has put them. It reads every byte: 0.4 seconds for SmolLM2-135M in float32.
    """
    digest = hashlib.sha256()
    for tensor in _tensors(model, buffers=False, whole=True):
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(bytes_of(tensor.reshape(-1)))
    return digest.hexdigest()


def fingerprint(model: Model) -> Hashable:
    """A quick hash of the weights, dtypes, devices and settings that a model has right now.

    Two calls differ if a tensor of the state dict was replaced or written in between, was moved or
    converted, or if a setting of `model.cfg` changed. Tensors of up to 65,536 values, which hold
    every norm and bias, are read whole. Larger ones are known by their storage, their version
    counter and 64 of their values, so a write through `.data` that leaves all of these as they were
    is missed, and so is a write to weights that lie on the disk. Buffers that no state dict holds
    are left out: they follow from the configuration, and some models rewrite them from run to run
    (LongRoPE).
    """
    facts: list[Hashable] = [repr(getattr(model, "cfg", None))]
    samples: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in _tensors(model, buffers=True):
        version = None if tensor.is_inference() else tensor._version
        facts.append((tensor.data_ptr(), version, tuple(tensor.shape), tensor.stride()))
        if tensor.is_meta:
            continue
        samples.setdefault((tensor.dtype, tensor.device), []).append(_sample(tensor))
    digest = hashlib.sha256()
    for (dtype, device), values in samples.items():
        facts.append((dtype, device))
        digest.update(bytes_of(torch.cat(values)))
    return hash(tuple(facts)), digest.hexdigest()


def remembered(model: Model, fact: str, make: Callable[[], T]) -> T:
    """A fact of a model as it is now: remembered, or worked out anew if the model changed.

    The fingerprint is taken once for as long as the model is held (`hold`).
    """
    mark = noted(fingerprint, model)
    if model not in _known or _known[model][0] != mark:
        _known[model] = (mark, {})
    facts = _known[model][1]
    if fact not in facts:
        facts[fact] = make()
    return facts[fact]


def remembered_hash(model: Model, known: str | None = None) -> str:
    """`weights_hash`, worked out again only where `fingerprint` says that the weights changed.

    Args:
        model: the model.
        known: the hash of what it holds now, where that was worked out before.
    """
    return remembered(model, "hash", lambda: weights_hash(model) if known is None else known)


def expect_same_weights(what: object, made: Mapping[str, Any], model: Model) -> None:
    """Refuse what was made with other weights than a model holds now.

    Args:
        what: was made, for the message.
        made: how, with the hash of the weights under "weights". What names none, as a trace made by
            hand, is accepted.
        model: which must hold the same weights.
    """
    theirs = made.get("weights")
    if theirs is not None and theirs != (ours := noted(remembered_hash, model)):
        raise ValueError(
            f"{what} was made with other weights ({str(theirs)[:12]}) than the model holds now "
            f"({ours[:12]}; the dtype counts too): make it anew with this model, or, to compare "
            "checkpoints, pass allow_other_model=True"
        )


def joint_metadata(
    what: str, first: Mapping[str, Any], second: Mapping[str, Any]
) -> dict[str, Any]:
    """What two results have in common of how they were made, for what is made of both.

    Models are known by the hash of their weights or, where one of the two names none, by name.

    Args:
        what: is combined, in the plural, for the message.
        first: how the one was made.
        second: how the other was.

    Raises:
        ValueError: they were made with two models.
    """
    hashes = first.get("weights"), second.get("weights")
    names = first.get("model"), second.get("model")
    told = hashes if None not in hashes else names
    if None not in told and told[0] != told[1]:
        of = " and ".join(
            f"{name or 'a model'}{'' if weights is None else f' ({str(weights)[:12]})'}"
            for name, weights in zip(names, hashes, strict=True)
        )
        raise ValueError(f"{what} of two models do not combine: {of}; make both with one model")
    return {key: value for key, value in first.items() if key in second and second[key] == value}


def _tensors(model: Model, *, buffers: bool, whole: bool = False) -> Iterator[Tensor]:
    """Each tensor of a model's state dict, once, in the order of its modules.

    Weights that lie on the disk are brought, one module's at a time, where the `whole` is asked
    for; otherwise they are tensors without values.
    """
    module = cast(torch.nn.Module, model)
    seen: set[tuple[object, ...]] = set()
    for place, tensor in itertools.chain(
        _parameters(module, whole), _saved_buffers(module) if buffers else ()
    ):
        if place not in seen:
            seen.add(place)
            yield tensor


def _sample(tensor: Tensor) -> Shaped[Tensor, " value"]:
    """All values of a small tensor, and some of a large one, of which no copy is made."""
    if tensor.numel() <= _WHOLE:
        return tensor.reshape(-1)
    step = tensor.numel() // _SAMPLES
    if tensor.is_contiguous():
        return tensor.view(-1)[::step]
    places = torch.arange(0, tensor.numel(), step, device=tensor.device)
    return tensor[torch.unravel_index(places, tensor.shape)]


def _place(tensor: Tensor) -> tuple[object, ...]:
    """What two names of one tensor have in common."""
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.device)


def _parameters(
    module: torch.nn.Module, whole: bool
) -> Iterator[tuple[tuple[object, ...], Tensor]]:
    """Parameters with their places."""
    tied = _tied(module) if whole and is_away(module) else set()
    for part in module.modules():
        own = [name for name, found in part._parameters.items() if found is not None]
        if not (whole and any(cast(Tensor, part._parameters[name]).is_meta for name in own)):
            for name in own:
                held = cast(Tensor, part._parameters[name]).detach()
                yield _place(held), held
            continue
        with at_hand(part):
            for name in own:
                # What is brought lies where something else lay before: only its name is its own.
                if (id(part), name) not in tied:
                    yield (id(part), name), cast(Tensor, part._parameters[name]).detach()


def _tied(module: torch.nn.Module) -> set[tuple[int, str]]:
    """Parameters that are others under another name, of the original model inside a bridge."""
    original: Any = getattr(module, "original_model", module)
    found = set()
    for key in getattr(original, "all_tied_weights_keys", None) or ():
        path, _, name = key.rpartition(".")
        part = original.get_submodule(path)
        while isinstance(inner := getattr(part, "original_component", None), torch.nn.Module):
            part = inner
        found.add((id(part), name))
    return found


def _saved_buffers(module: torch.nn.Module) -> Iterator[tuple[tuple[object, ...], Tensor]]:
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None and name not in part._non_persistent_buffers_set:
                yield _place(buffer), buffer


def bytes_of(values: Tensor) -> memoryview:
    """The bytes of a flat tensor, whatever its dtype and device."""
    return memoryview(cast(Any, values.contiguous().cpu().view(torch.uint8).numpy()))
