"""Tables of small made-up runs, for every figure of many prompts."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pandas as pd

from strace_lens.corpus.run_folder import Run
from tests.corpus.synthetic import synthetic_run


@functools.cache
def runs(kind: str) -> tuple[Run, ...]:
    """One run, two runs of different models, or one run of one prompt."""
    if kind == "one prompt":
        return (synthetic_run(prompts=1, name="alone"),)
    first = synthetic_run(prompts=5, layers=6, name="first")
    other = synthetic_run(prompts=4, layers=4, seed=1, name="<other>")
    return (first,) if kind == "one run" else (first, other)


KINDS = ("one run", "two runs", "one prompt")


def table(analysis: Callable[..., pd.DataFrame], kind: str) -> pd.DataFrame:
    """What `analyse` gives of an analysis."""
    return pd.concat([analysis(run).assign(run=run.name) for run in runs(kind)], ignore_index=True)
