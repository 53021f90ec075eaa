"""Ctrl-C ends the command in one line and with status 130, from its first imports to its exit.

Python answers an interrupt with a KeyboardInterrupt, which prints a traceback wherever nobody
catches it. Most of the time before a command does its work is spent on imports, where nothing can
catch it: so `strace_lens/__init__.py` imports this module before all others, and this module
imports nothing heavy.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

INTERRUPTED = 130
"""The exit status that shells give to an interrupted command: 128 and the signal's number, 2."""


def _quit(*_: object) -> None:
    """End the process at once, without unwinding what is being imported or shut down."""
    with suppress(Exception):  # the interrupt may have come in the midst of a write
        sys.stdout.flush()
    os.write(2, b"strace-lens: interrupted\n")
    os._exit(INTERRUPTED)


def _is_command() -> bool:
    """Whether this process is `strace-lens` or `python -m strace_lens.cli`.

    A notebook or a script that imports the package keeps its own answer to an interrupt, and so
    does a worker process, to which `multiprocessing` gives its parent's `sys.argv`.
    """
    arguments = getattr(sys, "argv", [])
    if not 0 < len(arguments) <= len(sys.orig_argv):
        return False
    started = sys.orig_argv[-len(arguments)]
    name = os.path.splitext(os.path.basename(started))[0]
    return name == "strace-lens" or started.removeprefix("-m") == "strace_lens.cli"


@contextmanager
def interruptible() -> Iterator[None]:
    """Within, an interrupt unwinds the work, so that it can clean up, and then ends in one line."""
    at_once = signal.getsignal(signal.SIGINT) is _quit
    if at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        print("strace-lens: interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    finally:
        if at_once:
            signal.signal(signal.SIGINT, _quit)


# An interrupt that is ignored, as that of a job in the background, stays ignored.
if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _quit)
    # Python gives handlers back at its very end, where an interrupt would kill a command whose
    # work is done and written. It leaves an ignored interrupt ignored.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
