"""Annotations of the package checked as it runs: types by beartype, shapes by jaxtyping."""

from __future__ import annotations

import functools
import inspect
import threading
import types
from collections.abc import Callable
from typing import Any

import jaxtyping
import networkx  # noqa: F401
import numba  # noqa: F401
import plotly.subplots  # noqa: F401
import scipy.stats  # noqa: F401
import transformer_lens.model_bridge  # noqa: F401
import typer  # noqa: F401
from jaxtyping import install_import_hook, jaxtyped

# What the package imports at its top is imported before the hook of jaxtyping is there. While a
# checked module is imported, the hook looks for compiled files under a name of its own, so that
# libraries would be compiled anew in every process.

_checks: dict[types.CodeType, Callable[..., Any]] = {}
_called = threading.local()


def install() -> None:
    """Check every function and dataclass of the modules of strace_lens imported from now on."""
    jaxtyping.jaxtyped = _checked  # the name by which the hook decorates
    install_import_hook("strace_lens", "beartype.beartype")


def _checked(*, typechecker: Any) -> Callable[[Any], Any]:
    def decorate(decorated: Any) -> Any:
        nested = inspect.isfunction(decorated) and "<locals>" in decorated.__qualname__
        if not nested or hasattr(decorated, "__wrapped__"):
            return jaxtyped(decorated, typechecker=typechecker)
        if decorated.__code__ not in _checks:
            _checks[decorated.__code__] = jaxtyped(_stand_in(decorated), typechecker=typechecker)
        return _with_checks(decorated, _checks[decorated.__code__])

    return decorate


def _stand_in(function: types.FunctionType) -> types.FunctionType:
    """A function with the annotations of another, which runs the one called at the moment.

    Compiling the checks of a function takes milliseconds. A nested function is made anew by each
    call of the function around it, such as one that returns a hook, and would be compiled each
    time: more than half of the time of the tests that run hooks.
    """

    called = _called  # of this module: `run` has the globals of the other function

    def run(*args: Any, **kwargs: Any) -> Any:
        return called.functions.pop()(*args, **kwargs)

    made = types.FunctionType(
        run.__code__, function.__globals__, function.__name__, None, run.__closure__
    )
    made.__module__, made.__qualname__ = function.__module__, function.__qualname__
    made.__signature__ = inspect.signature(function)
    return made


def _with_checks(function: Any, checks: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        functions = _called.__dict__.setdefault("functions", [])
        depth = len(functions)
        functions.append(function)
        try:
            return checks(*args, **kwargs)
        finally:
            del functions[depth:]  # left there where an argument is refused

    return checked
