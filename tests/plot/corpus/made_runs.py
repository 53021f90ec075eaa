"""Tables of made-up runs for the tests of a corpus' figures."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from strace_lens.corpus.analyses.all import ANALYSES, between_runs
from strace_lens.corpus.run_folder import Run
from tests.corpus.synthetic import synthetic_run

TEXTS = [f"shared {i}" for i in range(8)]
NAMES = ("first", "se<b>cond")
SIZES = (1e-4, 1e-3, 0.01, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)


@functools.cache
def runs(count: int = 2, prompts: int = 8) -> tuple[Run, ...]:
    """Runs over the same prompts; the first one's grow, four texts step by step."""
    made = [
        synthetic_run(
            prompts,
            sizes=SIZES,
            layers=4 + seed,
            seed=seed,
            name=NAMES[seed],
            texts=TEXTS[:prompts],
        )
        for seed in range(count)
    ]
    numbers = range(prompts)
    grown = made[0].prompts.assign(
        label_of=[str(i % 4) for i in numbers], label_step=[str(i // 4) for i in numbers]
    )
    return (dataclasses.replace(made[0], prompts=grown), *made[1:])


@functools.cache
def table(name: str, count: int = 2, prompts: int = 8) -> pd.DataFrame:
    """An analysis of these runs, with their names before it."""
    if name == "between_runs":
        return between_runs(runs(count, prompts))
    parts = [ANALYSES[name](run).assign(run=run.name) for run in runs(count, prompts)]
    return pd.concat(parts, ignore_index=True)


def rows(frame: pd.DataFrame, **values: object) -> pd.DataFrame:
    """The rows with these values."""
    for column, value in values.items():
        frame = frame[frame[column] == value]
    return frame


def prompts(count: int = 2, number: int = 8) -> pd.DataFrame:
    """What density is drawn against."""
    kept = ["prompt", "density", "entropy", "tokens", "loss"]
    frames = [
        r.prompts[kept].assign(run=r.name, label=r.prompts["label_kind"])
        for r in runs(count, number)
    ]
    return pd.concat(frames, ignore_index=True)


def panels(fig: go.Figure) -> list[list[str]]:
    """Pairs of axes in the order of the panels, row by row."""
    axes = {(item.xaxis, item.yaxis) for item in fig.data if item.xaxis}
    return sorted(map(list, axes), key=lambda pair: int(pair[0][1:] or 1))


def on(fig: go.Figure, panel: int) -> Iterator[Any]:
    """What is drawn in a panel, but bands."""
    x, y = panels(fig)[panel]
    for item in fig.data:
        if (item.xaxis, item.yaxis) == (x, y) and getattr(item, "fill", None) != "toself":
            yield item


def one(fig: go.Figure, panel: int, name: str) -> Any:
    """The only thing of a name in a panel."""
    (found,) = [item for item in on(fig, panel) if item.name == name]
    return found


def bands(fig: go.Figure) -> list[Any]:
    """Every interval that is drawn as an area."""
    return [item for item in fig.data if getattr(item, "fill", None) == "toself"]
