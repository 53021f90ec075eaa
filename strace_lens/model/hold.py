"""The state in which a model is used, whatever the caller's, and one use at a time.

A notebook may have switched gradients off, an evaluation loop may run under `inference_mode` or
autocast, a fine-tuned model may still be in training mode. None of that is meant for a trace, so
`hold` sets it aside and restores it. Hooks hand values from one to the next, which works only if a
single forward pass of the model is under way: `hold` refuses a second one. `fixed_weights` keeps a
model's weights from asking for gradients while gradients of something else are taken.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from strace_lens.model.architecture import Model, UnsupportedModelError

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


_holds: weakref.WeakKeyDictionary[torch.nn.Module, tuple[int, dict[Any, Any]]] = (
    weakref.WeakKeyDictionary()
)
"""The thread that uses each model, and what was noted of the model since it was taken."""

_lock = threading.Lock()


@contextlib.contextmanager
def hold(model: object) -> Iterator[None]:
    """Hold a model for work of ours; afterwards, also after an error, all is as it was.

    Inside, every module is in evaluation mode and torch in its default modes: gradients enabled,
    no inference mode, no autocast. The thread that holds a model may hold it again.

    Args:
        model: a model; anything else is left to whoever refuses it.

    Raises:
        RuntimeError: another thread holds the model, or a forward pass of it is under way in this
            one, as inside a hook.
    """
    with ordinary_modes():
        if not isinstance(model, torch.nn.Module):
            yield
            return
        _refuse_inside_forward(model)
        thread = threading.get_ident()
        with _lock:
            held = _holds.get(model)
            if held is None:
                _holds[model] = (thread, {})
        if held is not None:
            if held[0] != thread:
                raise RuntimeError(_in_another_thread(model))
            yield
            return
        training = [part for part in _parts(model) if part.training]
        try:
            for part in training:
                part.training = False
            yield
        finally:
            for part in training:
                part.training = True
            with _lock:
                del _holds[model]


@contextlib.contextmanager
def ordinary_modes() -> Iterator[None]:
    """Gradients enabled, no inference mode and no autocast inside; as before afterwards."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in {"cpu", (torch.accelerator.current_accelerator() or torch.device("cpu")).type}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def verb(function: Callable[P, R]) -> Callable[P, R]:
    """Have a function hold the model that it works on, for as long as it runs.

    The model is the first argument, or its attribute `model`; where there is none, only torch's
    modes are set.
    """
    first = next(iter(inspect.signature(function).parameters))

    @functools.wraps(function)
    def held(*args: P.args, **kwargs: P.kwargs) -> R:
        subject = args[0] if args else kwargs.get(first)
        is_model = isinstance(subject, torch.nn.Module)
        with hold(subject if is_model else getattr(subject, "model", None)):
            return function(*args, **kwargs)

    return held


def noted(function: Callable[[Any], T], model: object) -> T:
    """What a function says of a model, asked once for as long as the model is held."""
    held = _holds.get(model) if isinstance(model, torch.nn.Module) else None
    if held is None or held[0] != threading.get_ident():
        return function(model)
    noted = held[1]
    if function not in noted:
        noted[function] = function(model)
    return noted[function]


def of_this_thread(model: object, hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that refuses the values of a forward pass that another thread runs meanwhile."""
    owner = threading.get_ident()

    def checked(value: Any, **of_the_run: Any) -> Any:
        if threading.get_ident() != owner:
            raise RuntimeError(_in_another_thread(model))
        return hook(value, **of_the_run)

    return checked


def _refuse_inside_forward(model: torch.nn.Module) -> None:
    # Neither model class says that it is running. A forward pass is a frame of the model's own
    # `forward`, which also tells a pass in this thread from one in another.
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "forward" and frame.f_locals.get("self") is model:
            raise RuntimeError(
                f"{_name(model)} is in the middle of a forward pass, as inside a hook: keep what "
                "the hook is given, and call strace_lens when the pass is over"
            )
        frame = frame.f_back


def _in_another_thread(model: object) -> str:
    return (
        f"another thread is working on {_name(model)}, and hooks of two runs would mix: let one "
        "finish before the other begins (a threading.Lock), or load the model once for each thread"
    )


def _name(model: object) -> str:
    name = getattr(getattr(model, "cfg", None), "model_name", None)
    return str(name or type(model).__name__)


def _parts(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The modules of a model, and of the Hugging Face model that a bridge stands on."""
    yield from model.modules()
    original = getattr(model, "original_model", None)
    if isinstance(original, torch.nn.Module):
        yield from original.modules()


def expect_gradients(model: Model) -> None:
    """Refuse a model through whose weights no gradient passes; looked at once while it is held.

    Raises:
        UnsupportedModelError: the weights are quantised, or were made under
            `torch.inference_mode`.
    """
    noted(_refuse_without_gradients, model)


def _refuse_without_gradients(model: Model) -> None:
    module = cast(torch.nn.Module, model)
    for part, name, held in _held_tensors(module):
        if held.is_inference():
            raise UnsupportedModelError(
                "gradients need weights made outside torch.inference_mode; "
                f"{_path(module, part, name)} was made inside it: load the model outside, or rank "
                "with an estimator without gradients"
            )
        if held.is_quantized or held.dtype in (torch.int8, torch.uint8):
            raise UnsupportedModelError(
                f"gradients need weights in floating point; {_path(module, part, name)} is "
                f"quantised ({held.dtype}): load the model in float32 or bfloat16, or rank with "
                "an estimator without gradients"
            )


@contextlib.contextmanager
def fixed_weights(model: Model) -> Iterator[None]:
    """Ask no gradient of the model's weights inside; afterwards all is as it was.

    Raises:
        UnsupportedModelError: the weights are quantised, or were made under
            `torch.inference_mode`: no gradient passes through them.
    """
    expect_gradients(model)
    module = cast(torch.nn.Module, model)
    asked = [p for p in module.parameters() if p.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


def _held_tensors(module: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str, Tensor]]:
    """Parameters, buffers, and the packed weights of torch's own quantised layers.

    Each comes with the module that holds it and its name there. One walk over the modules and no
    look for an attribute that is not there: both are slow on a bridge, which has thousands.
    """
    for part in module.modules():
        for name, held in (*part._parameters.items(), *part._buffers.items()):
            if held is not None:
                yield part, name, held
        if "_packed_params" in part.__dict__ or "_packed_params" in part._modules:
            yield part, "", cast(Any, part).weight()


def _path(module: torch.nn.Module, part: torch.nn.Module, name: str) -> str:
    """The name by which a model knows what one of its modules holds, without a bridge's wrapper."""
    path = next((path for path, other in module.named_modules() if other is part), "")
    return f"{path}.{name}".replace("._original_component", "").strip(".")
