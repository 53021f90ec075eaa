"""Mean curves of a corpus: the numbers of the tables, with bands only where there are intervals."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
import pytest

from strace_lens.corpus.analyses.curves import mean_curves
from strace_lens.corpus.analyses.sizes import corpus_boundaries
from strace_lens.plot.corpus.curves import plot_head_tail, plot_mean_curves
from strace_lens.plot.style import COLOURS
from tests.plot import made
from tests.plot.corpus import made_tables

NAMES = {
    "trace": "trace",
    "inverse": "inverse of the trace",
    "random": "random subgraph",
    "head": "head error",
    "tail": "tail error",
}


@functools.cache
def tables(kind: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    curves = made_tables.table(functools.partial(mean_curves, resamples=50), kind)
    return curves, made_tables.table(functools.partial(corpus_boundaries, resamples=20), kind)


def bands(fig: object) -> list[object]:
    return [d for d in fig.data if d.fill == "toself"]


@pytest.mark.parametrize("kind", made_tables.KINDS)
@pytest.mark.parametrize("curve", list(NAMES))
def test_lines_are_the_means_of_the_table_a_dash_a_run(kind: str, curve: str) -> None:
    curves, boundaries = tables(kind)
    own = curve in ("head", "tail")
    fig = plot_head_tail(curves) if own else plot_mean_curves(curves, boundaries)
    lines = [d for d in fig.data if d.name == NAMES[curve]]
    names = curves["run"].unique()
    assert len(lines) == len(names)
    assert {d.line.color for d in lines} == {COLOURS[curve]}
    for name, line in zip(names, lines, strict=True):
        rows = curves[(curves["run"] == name) & (curves["curve"] == curve)]
        assert list(line.x) == rows["size"].tolist()
        assert list(line.y) == rows["mean"].tolist()
        assert f"{rows['mean'].iloc[0]:.4g}" in line.hovertext[0]
    assert [d.showlegend for d in lines] == [True, False][: len(lines)]
    if len(lines) > 1:
        assert [d.line.dash for d in lines] == ["solid", "dash"]


@pytest.mark.parametrize("kind", made_tables.KINDS)
def test_the_thin_lines_are_the_medians_of_the_trace(kind: str) -> None:
    curves, boundaries = tables(kind)
    fig = plot_mean_curves(curves, boundaries)
    lines = [d for d in fig.data if d.name == "median of the trace"]
    for name, line in zip(curves["run"].unique(), lines, strict=True):
        rows = curves[(curves["run"] == name) & (curves["curve"] == "trace")]
        assert list(line.y) == rows["median"].tolist()


def test_bands_go_from_the_low_to_the_high_end() -> None:
    curves, _ = tables("one run")
    band = bands(plot_head_tail(curves))[1]
    rows = curves[curves["curve"] == "head"]
    assert list(band.y) == [*rows["mean_low"], *rows["mean_high"][::-1]]


def test_one_prompt_has_no_bands() -> None:
    curves, boundaries = tables("one prompt")
    fig = plot_mean_curves(curves, boundaries)
    assert not bands(fig)
    assert not bands(plot_head_tail(curves))
    assert {s.type for s in fig.layout.shapes} == {"line"}


@pytest.mark.parametrize("kind", made_tables.KINDS)
def test_upright_lines_and_bands_stand_at_the_boundaries(kind: str) -> None:
    curves, boundaries = tables(kind)
    fig = plot_mean_curves(curves, boundaries)
    rows = boundaries[boundaries["quantity"].str.startswith("construction_st")]
    lines = [s.x0 for s in fig.layout.shapes if s.type == "line"]
    assert lines == rows["value"].dropna().tolist()
    shaded = [(s.x0, s.x1) for s in fig.layout.shapes if s.type == "rect"]
    assert shaded == list(rows[["low", "high"]].dropna().itertuples(index=False, name=None))


def test_a_boundary_is_named_with_its_interval_or_said_to_be_missing() -> None:
    curves, boundaries = tables("two runs")
    made_up = boundaries.copy()
    start = (made_up["run"] == "first") & (made_up["quantity"] == "construction_start")
    stop = (made_up["run"] == "<other>") & (made_up["quantity"] == "construction_stop")
    made_up.loc[start, ["value", "low", "high", "found"]] = 0.02, 0.01, 0.04, 0.9
    made_up.loc[stop, ["value", "low", "high", "found"]] = np.nan, np.nan, np.nan, 0.25
    found = made.texts(plot_mean_curves(curves, made_up))
    assert "first: construction starts: s = 0.02 [0.01, 0.04], found in 90 %" in found
    other = "&lt;other&gt;: construction stops: not found; there in 25 %"
    assert other in found


def test_runs_are_named_where_there_are_several() -> None:
    names = [d.name for d in plot_head_tail(tables("two runs")[0]).data]
    assert {"first", "&lt;other&gt;"} < set(names)
    assert "first" not in [d.name for d in plot_head_tail(tables("one run")[0]).data]


def test_missing_controls_are_said() -> None:
    curves, boundaries = tables("one run")
    trace = curves[curves["curve"] == "trace"]
    said = "not measured: inverse of the trace, random subgraph, inverse of the random subgraph"
    assert said in made.texts(plot_mean_curves(trace, boundaries))


def test_boundaries_of_many_runs_are_drawn_and_not_told() -> None:
    curves, boundaries = tables("one run")
    three = [t.assign(run=f"{name}") for name in "abc" for t in (curves,)]
    bounds = [boundaries.assign(run=name) for name in "abc"]
    fig = plot_mean_curves(pd.concat(three), pd.concat(bounds))
    assert not any("construction starts" in text for text in made.texts(fig))
    assert len(fig.layout.shapes) == 3 * len(plot_mean_curves(curves, boundaries).layout.shapes)


def test_empty_tables_say_why_nothing_is_drawn() -> None:
    curves, boundaries = (t.head(0) for t in tables("one run"))
    assert made.texts(plot_mean_curves(curves, boundaries)) == ["no prompt has a curve"]
    assert made.texts(plot_head_tail(curves)) == ["no prompt has head and tail errors"]
