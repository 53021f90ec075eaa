"""Traces of a trial on disk: estimated once, read back by every later run over the same folder.

A file is used again only if it says that it is the trace asked for: of this prompt, estimator,
seed, target, ablation, model, precision and version of the package. Any other file under its name
is an error and never overwritten, since it may hold an hour's work. How long the estimation took
is kept in the file too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from strace_lens.files.traces import ResultFileError, load_trace, save_trace
from strace_lens.token_graph.trace import Trace


class OtherTrialError(ValueError):
    """A saved trace that belongs to another trial, with the difference."""


def made_or_read(
    path: Path | None, identity: Mapping[str, Any], make: Callable[[], Trace], before: float
) -> Trace:
    """The trace saved under a path, or a new one, saved there.

    Args:
        path: None to save nothing.
        identity: what the trace must be of, as JSON has it.
        make: estimates the trace.
        before: seconds that its start took, which count as its own.

    Returns:
        The trace, whose `made` holds the identity as `trial`, and `seconds`.

    Raises:
        ResultFileError: the file is truncated or foreign.
        OtherTrialError: the file is of another prompt or of other options.
    """
    if path is not None and path.is_file():
        return _read(path, identity)
    begin = time.perf_counter()
    trace = make()
    seconds = before + time.perf_counter() - begin
    trace = replace(trace, made={**trace.made, "trial": dict(identity), "seconds": seconds})
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_trace(trace, path)
    return trace


def _read(path: Path, identity: Mapping[str, Any]) -> Trace:
    try:
        trace = load_trace(path)
    except ResultFileError as error:
        raise ResultFileError(f"{error}; delete it to have it made again") from error
    found = trace.made.get("trial", {})
    for key, value in identity.items():
        if found.get(key) != value:
            raise OtherTrialError(
                f"{path} is of another trial: its {key} is {found.get(key)!r}, not {value!r}; "
                "choose another folder, or delete it"
            )
    return trace
