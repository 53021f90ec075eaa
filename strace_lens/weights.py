"""Which weights a model holds: a hash for files, and a quick fingerprint for what is remembered.

A model object outlives its weights: folding, a loaded state dict, a training step or a change of
dtype put others into it, and two checkpoints can share a name. So what is proven of a model is
remembered by `fingerprint`, and what is written to disk is tied to its model by `weights_hash`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator
from typing import Any, cast

import torch
from torch import Tensor

from strace_lens.architecture import Model

_WHOLE = 2**16
_SAMPLES = 64


def weights_hash(model: Model) -> str:
    """SHA-256 over every parameter of a model, in hexadecimal: shape, dtype and all values.

    The same weights give the same hash on every device and in every process. It reads every byte:
    0.4 seconds for SmolLM2-135M in float32.

    Args:
        model: a HookedTransformer or a TransformerBridge.
    """
    digest = hashlib.sha256()
    for tensor in _tensors(model, buffers=False):
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(_bytes(tensor.reshape(-1)))
    return digest.hexdigest()


def fingerprint(model: Model) -> Hashable:
    """A quick hash of the weights, dtypes, devices, mode and settings that a model has right now.

    Two calls differ if a tensor was replaced or written in between, was moved or converted, if a
    module was switched between training and evaluation, or if a setting of `model.cfg` changed.
    Tensors of up to 65,536 values, which hold every norm and bias, are read whole. Larger ones are
    known by their storage, their version counter and 64 of their values, so a write through
    `.data` that leaves all of these as they were is missed.

    Args:
        model: a HookedTransformer or a TransformerBridge.
    """
    facts: list[Hashable] = [repr(getattr(model, "cfg", None))]
    samples: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in _tensors(model, buffers=True):
        version = None if tensor.is_inference() else tensor._version
        facts.append((tensor.data_ptr(), version, tuple(tensor.shape), tensor.stride()))
        flat = tensor.reshape(-1)
        if flat.numel() > _WHOLE:
            flat = flat[:: flat.numel() // _SAMPLES]
        samples.setdefault((tensor.dtype, tensor.device), []).append(flat)
    digest = hashlib.sha256()
    for (dtype, device), values in samples.items():
        facts.append((dtype, device))
        digest.update(_bytes(torch.cat(values)))
    modes = tuple(part.training for part in cast(torch.nn.Module, model).modules())
    return hash((*facts, modes)), digest.hexdigest()


def _tensors(model: Model, *, buffers: bool) -> Iterator[Tensor]:
    """Each tensor that a model holds, once, in the order of its modules."""
    module = cast(Any, model)
    seen: set[tuple[object, ...]] = set()
    for tensor in (*module.parameters(), *(module.buffers() if buffers else ())):
        tensor = tensor.detach()
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.device)
        if place not in seen:
            seen.add(place)
            yield tensor


def _bytes(values: Tensor) -> memoryview:
    """The bytes of a flat tensor, whatever its dtype and device."""
    return memoryview(values.contiguous().cpu().view(torch.uint8).numpy())
