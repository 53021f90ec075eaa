"""The first seconds of a command, in which it imports what it works with: a line says so."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from strace_lens.utils.user_cache import last_seconds, remember_seconds

_IMPORTS = "imports"
_UP_AND_CLEAR = "\x1b[1A\x1b[2K"


def took(what: str) -> str:
    """How long something took the last time, in parentheses."""
    seconds = last_seconds(what)
    return "(for the first time here)" if seconds is None else f"({seconds:.1f} s last time)"


@contextmanager
def importing(quiet: bool) -> Iterator[None]:
    """Say in a terminal that imports go on and how long they took last time; the line vanishes.

    Args:
        quiet: whether to say nothing, as where a shell completes a command.
    """
    if quiet or "torch" in sys.modules:
        yield
        return
    # A line of its own, so that what an interrupt says does not stand within it.
    shown = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    if shown:
        print(
            f"importing PyTorch and TransformerLens {took(_IMPORTS)}", file=sys.stderr, flush=True
        )
    started = time.perf_counter()
    try:
        yield
    finally:
        if shown:
            print(_UP_AND_CLEAR, end="", file=sys.stderr, flush=True)
    remember_seconds(_IMPORTS, time.perf_counter() - started)
