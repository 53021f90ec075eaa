"""What a person sees while work runs: progress bars, and warnings that point at their own line.

A bar is shown in a notebook or a terminal, never in a pipe or a test. Those of the libraries that
load models are held back, and so are their notices.
"""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr

from tqdm.auto import tqdm

Steps = Callable[[int], None]
"""Called with the number of steps done since the last call."""

NamedSteps = Callable[[str, int], None]
"""Called with what is being done and the number of steps done since the last call."""

Counted = Callable[[int, int], None]
"""Called with the number of things done so far and the number of all."""

DELAY = 2.0
"""Seconds before a bar appears, so that short work shows none."""

EVERY = 0.1
"""Seconds between two updates of a bar."""


def no_progress(steps: int) -> None:
    """Report nothing, for work within other work that has its own bar."""


@contextmanager
def steps_bar(progress: Steps | None, what: str, total: int | None) -> Iterator[Steps]:
    """Yield the caller's callback, or one that moves a bar which vanishes when the work is done."""
    with _bar(what, total, progress) as bar:

        def tell(done: int) -> None:
            bar.update(done)

        yield tell if progress is None else progress


@contextmanager
def named_bar(progress: NamedSteps | None, total: int | None) -> Iterator[NamedSteps]:
    """Like `steps_bar`, for work whose steps have names."""
    with _bar("", total, progress) as bar:

        def tell(what: str, done: int) -> None:
            bar.set_description(what, refresh=False)
            bar.update(done)

        yield tell if progress is None else progress


@contextmanager
def count_bar(progress: Counted | None, what: str) -> Iterator[Counted]:
    """Like `steps_bar`, for work that reports totals and of which some may already be done."""
    with _bar(what, None, progress) as bar:

        def tell(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield tell if progress is None else progress


def warn(message: str) -> None:
    """Issue a UserWarning that points at the line that called this package, however deep we are.

    Args:
        message: What the caller should know, as one sentence.
    """
    outermost, frames = 1, [sys._getframe(0)]
    while frames[-1].f_back is not None:
        frames.append(frames[-1].f_back)
    for level, frame in enumerate(frames, start=1):
        if frame.f_globals.get("__name__", "").partition(".")[0] == "strace_lens":
            outermost = level
    warnings.warn(message, UserWarning, stacklevel=outermost + 1)


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back the loaders' progress bars and notices: standard output belongs to results."""
    import transformers

    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        # The GGUF reader's bar asks nobody.
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
        if bars:
            transformers.utils.logging.enable_progress_bar()


def is_watched() -> bool:
    """Return whether standard error is a terminal, or this is a notebook (whose stream is none)."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell" or sys.stderr.isatty()


def _bar(what: str, total: int | None, progress: Callable[..., None] | None) -> tqdm:
    """Return a bar that is invisible if nobody watches or the caller has a callback."""
    return tqdm(
        desc=what,
        total=total,
        delay=DELAY,
        mininterval=EVERY,
        leave=False,
        disable=progress is not None or not is_watched(),
    )
