"""What a person sees while work runs: progress bars, and warnings that point at their own line.

A bar is shown in a notebook or a terminal, never in a pipe or a test.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

Steps = Callable[[int], None]
"""Told how many steps are done since it was last told."""

NamedSteps = Callable[[str, int], None]
"""Told what is being done, and how many steps of it are done since."""

Counted = Callable[[int, int], None]
"""Told how many things are done, and how many there are."""

DELAY = 2.0
"""Seconds before a bar is shown: short work shows none."""

EVERY = 0.1
"""Seconds between two looks of it."""


def no_progress(steps: int) -> None:
    """Tell nobody: for what runs within work that tells of itself."""


@contextmanager
def steps_bar(progress: Steps | None, what: str, total: int | None) -> Iterator[Steps]:
    """The caller's own progress; without one, a bar of our own that goes when the work is done."""
    with _bar(what, total, progress) as bar:

        def tell(done: int) -> None:
            bar.update(done)

        yield tell if progress is None else progress


@contextmanager
def named_bar(progress: NamedSteps | None, total: int | None) -> Iterator[NamedSteps]:
    """As `steps_bar`, for work whose steps have names."""
    with _bar("", total, progress) as bar:

        def tell(what: str, done: int) -> None:
            bar.set_description(what, refresh=False)
            bar.update(done)

        yield tell if progress is None else progress


@contextmanager
def count_bar(progress: Counted | None, what: str) -> Iterator[Counted]:
    """As `steps_bar`, for work that says how far it is: some may be done when it starts."""
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


def is_watched() -> bool:
    """Whether standard error is a terminal, or this is a notebook, whose stream says it is none."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell" or sys.stderr.isatty()


def _bar(what: str, total: int | None, progress: Callable[..., None] | None) -> tqdm:
    """A bar, which is never seen where nobody watches or the caller is told instead."""
    return tqdm(
        desc=what,
        total=total,
        delay=DELAY,
        mininterval=EVERY,
        leave=False,
        disable=progress is not None or not is_watched(),
    )
