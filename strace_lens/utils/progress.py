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

Progress = Callable[[int, int, str], None]
"""What a verb reports to: called with the steps done, the number of all, and what is being done."""

Advance = Callable[..., None]
"""Counts steps that were done, 1 by default, and takes what is being done from then on."""

DELAY = 2.0
"""Seconds before a bar appears, so that short work shows none."""

EVERY = 0.1
"""Seconds between two updates of a bar."""


def no_progress(*_: object) -> None:
    """Report nothing, for work within other work that has its own bar."""


@contextmanager
def reporting(progress: Progress | None, what: str, total: int) -> Iterator[Advance]:
    """Yield a function that reports steps as they are done, to the caller or to a bar.

    Args:
        progress: The caller's callback; without one, a bar shows the steps to whoever watches, and
            vanishes when the work is done.
        what: What is being done.
        total: The number of all steps.
    """
    with tqdm(
        desc=what,
        total=total,
        delay=DELAY,
        mininterval=EVERY,
        leave=False,
        disable=progress is not None or not is_watched(),
    ) as bar:
        done, doing = 0, what

        def advance(steps: int = 1, what: str | None = None) -> None:
            nonlocal done, doing
            done, doing = done + steps, what or doing
            if progress is not None:
                progress(done, total, doing)
            bar.set_description(doing, refresh=False)
            bar.update(steps)

        yield advance


class StraceLensWarning(UserWarning):
    """A warning of this package. The command prints it as a line of its own."""


def warn(message: str) -> None:
    """Issue a warning that points at the line that called this package, however deep we are."""
    outermost, level, frame = 1, 0, sys._getframe(0)
    while frame is not None:
        level += 1
        if frame.f_globals.get("__name__", "").partition(".")[0] == "strace_lens":
            outermost = level
        frame = frame.f_back
    warnings.warn(message, StraceLensWarning, stacklevel=outermost + 1)


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
