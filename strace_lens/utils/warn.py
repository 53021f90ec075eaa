"""Warnings that point at the caller's own line, however deep in the package they are made."""

from __future__ import annotations

import sys
import warnings

_PACKAGE = __name__.rpartition(".")[0]


def warn(message: str) -> None:
    """Issue a UserWarning from the line that called this package.

    Args:
        message: what the caller should know, as one sentence.
    """
    outermost, frames = 1, [sys._getframe(0)]
    while frames[-1].f_back is not None:
        frames.append(frames[-1].f_back)
    for level, frame in enumerate(frames, start=1):
        if _inside(frame.f_globals.get("__name__", "")):
            outermost = level
    warnings.warn(message, UserWarning, stacklevel=outermost + 1)


def _inside(module: str) -> bool:
    return module == _PACKAGE or module.startswith(f"{_PACKAGE}.")
