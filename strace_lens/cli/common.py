"""What the commands share: a progress bar, errors and warnings in one line."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from strace_lens.utils.errors import FixableError
from strace_lens.utils.progress import StraceLensWarning
from strace_lens.utils.user_cache import last_seconds, remember_seconds

_EXPECTED = (ValueError, OSError, FloatingPointError, FixableError)


def took(what: str) -> str:
    """How long something took the last time, in parentheses."""
    seconds = last_seconds(what)
    return "(for the first time here)" if seconds is None else f"({seconds:.1f} s last time)"


def say(message: str) -> None:
    """Print one line on standard error."""
    print(f"strace-lens: {' '.join(message.split())}", file=sys.stderr)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print our warnings, and errors that the user can fix, in one line; errors exit with 2."""
    usual = warnings.showwarning

    def show(message: Any, category: Any, *where: Any, **rest: Any) -> None:
        if issubclass(category, StraceLensWarning):
            say(f"warning: {message}")
        else:
            usual(message, category, *where, **rest)

    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    except _EXPECTED as error:
        say(str(error))
        raise typer.Exit(2) from error


class Bar(Progress):
    """A bar on standard error that vanishes at the end; there is none outside a terminal.

    With `stages`, each stage that a verb reports is a line there instead, for work of hours whose
    output goes into a file.
    """

    def __init__(self, *more: ProgressColumn, stages: bool = False) -> None:
        console = Console(stderr=True)
        self._stage = ""
        self._stages = stages and not console.is_terminal
        super().__init__(
            TextColumn("{task.description}", markup=False),  # it names models and files
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            *more,
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def step(self, what: str) -> None:
        """Show what is being done now instead of the step before."""
        for task in self.task_ids:
            self.update(task, visible=False)
        self.add_task(what, total=None)

    @contextmanager
    def importing(self) -> Iterator[None]:
        """Show that PyTorch is being imported, and how long that took last time.

        PyTorch takes seconds to import, so a command imports it, and what needs it, in its body
        once the arguments have been checked.
        """
        if "torch" in sys.modules:
            yield
            return
        self.step(f"importing PyTorch and TransformerLens {took('imports')}")
        started = time.perf_counter()
        yield
        remember_seconds("imports", time.perf_counter() - started)

    @contextmanager
    def loading(self, model: str, *options: object) -> Iterator[None]:
        """Show that a model is being loaded and how long that took last time, then that it is done.

        Args:
            model: the model's name.
            options: what else its loading depends on.
        """
        what = " ".join(["load", model, *(str(o) for o in options if o is not None)])
        self.step(f"loading {model} {took(what)}")
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        remember_seconds(what, seconds)
        if not self.disable:
            self.console.print(
                f"loaded {model} in {seconds:.1f} s; its outputs match those of transformers",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

    def tell(self, done: int, total: int, what: str) -> None:
        """Show how far the step is; pass this as the `progress` of a verb."""
        self.update(self.task_ids[-1], completed=done, total=total, description=what)
        if self._stages and what != self._stage:
            say(f"{what} ({done} of {total} steps done)")
            self._stage = what
