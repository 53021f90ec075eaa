"""Ctrl-C ends the command with one line and status 130, from its first imports to its exit.

Python turns an interrupt into a KeyboardInterrupt, which prints a traceback unless it is caught.
Most of the time before a command does its work is spent on imports, where it cannot be caught.
Therefore `strace_lens/__init__.py` imports this module before all others, and this module imports
nothing heavy.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

INTERRUPTED = 130
"""The exit status of an interrupted command in shells: 128 plus the number of the signal, 2."""


class Interrupt(KeyboardInterrupt):
    """The KeyboardInterrupt that the command's own handler raises.

    When code that runs from a string (`exec`, as in modules that write functions) ends with
    KeyboardInterrupt itself, Python notes it and kills its own process at the end, although the
    exception was caught. Of a subclass it takes no note, and every `except` clause still applies.
    """


def _raise(*_: object) -> None:
    raise Interrupt


def _quit(*_: object) -> None:
    """End the process immediately, without unwinding imports or a shutdown in progress."""
    with suppress(Exception):  # the interrupt may have come during a write
        sys.stdout.flush()
    os.write(2, b"strace-lens: interrupted\n")
    os._exit(INTERRUPTED)


def _is_command() -> bool:
    """Return whether this process is `strace-lens` or `python -m strace_lens.cli`.

    A notebook or script that imports the package keeps its own handling of interrupts, and so does
    a worker process, which gets its parent's `sys.argv` from `multiprocessing`.
    """
    arguments = getattr(sys, "argv", [])
    if not 0 < len(arguments) <= len(sys.orig_argv):
        return False
    started = sys.orig_argv[-len(arguments)]
    name = os.path.splitext(os.path.basename(started))[0]
    return name == "strace-lens" or started.removeprefix("-m") == "strace_lens.cli"


@contextmanager
def interruptible() -> Iterator[None]:
    """Let an interrupt unwind the work within, so that it cleans up, and then end in one line."""
    at_once = signal.getsignal(signal.SIGINT) is _quit
    if at_once:
        signal.signal(signal.SIGINT, _raise)
    try:
        yield
    except KeyboardInterrupt:
        print("strace-lens: interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    finally:
        if at_once:
            signal.signal(signal.SIGINT, _quit)


# An ignored interrupt, as in a background job, stays ignored.
if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _quit)
    # Python restores handlers at its very end, when an interrupt would kill a command whose work
    # is done and written. It does not restore one that is ignored.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
