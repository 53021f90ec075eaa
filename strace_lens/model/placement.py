"""Where the parts of a model lie: on one device, on several, or in part on the disk.

A `device_map` of transformers has the accelerate package put each part on a device of its own, and
move what flows between them. Parts that lie in the memory of the machine or on the disk while the
model runs elsewhere are brought when they are needed: until then their parameters are on torch's
meta device and hold no values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


def device_of_part(part: torch.nn.Module) -> torch.device:
    """The device that a module computes on, wherever its weights lie meanwhile."""
    first = next(part.parameters()).device
    if first.type != "meta":
        return first
    for module in part.modules():
        for hook in _hooks(module):
            if hook.execution_device is not None:
                return torch.device(hook.execution_device)
    return first


@contextlib.contextmanager
def at_hand(part: torch.nn.Module) -> Iterator[None]:
    """Bring the weights of a module that lie elsewhere, for as long as the context is open.

    A tensor that was read inside keeps its values afterwards.
    """
    away = [m for m in part.modules() if any(hook.offload for hook in _hooks(m))]
    if not away:
        yield
        return
    from accelerate.utils import align_module_device

    with contextlib.ExitStack() as stack:
        for module in away:
            stack.enter_context(align_module_device(module))
        yield


def is_away(part: torch.nn.Module) -> bool:
    """Whether some weights of a module are brought only when they are needed."""
    return any(p.device.type == "meta" for p in part.parameters())


def _hooks(module: torch.nn.Module) -> list[Any]:
    """The hooks of accelerate that place a module."""
    # Not getattr: a bridge answers for the module that it wraps.
    hook = vars(module).get("_hf_hook")
    every = [hook, *getattr(hook, "hooks", ())]
    return [one for one in every if hasattr(one, "execution_device")]
