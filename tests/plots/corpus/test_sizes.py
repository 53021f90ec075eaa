"""Sizes that prompts need, and their boundaries: the numbers of the tables, and who lacks them."""

from __future__ import annotations

import functools
import math

import numpy as np
import pandas as pd
import pytest

from strace_lens.corpus.analyses.boundaries import prompt_boundaries
from strace_lens.corpus.analyses.needed import size_needed
from strace_lens.plots.corpus.sizes import plot_prompt_boundaries, plot_sizes_needed
from tests.plots import made
from tests.plots.corpus import made_tables

ENDS = ("construction_start", "construction_stop")
NAMES = {"construction_start": "construction starts", "construction_stop": "construction stops"}


@functools.cache
def needed(kind: str) -> pd.DataFrame:
    return made_tables.table(size_needed, kind)


@functools.cache
def boundaries(kind: str) -> pd.DataFrame:
    return made_tables.table(functools.partial(prompt_boundaries, resamples=10), kind)


def drawn(values: object) -> list[float]:
    """Values of a line without the gaps between its pieces."""
    return [v for v in values if v is not None]


def markers(fig: object) -> list[object]:
    return [d for d in fig.data if d.mode == "markers" and d.x[0] is not None]


@pytest.mark.parametrize("kind", made_tables.KINDS)
def test_markers_are_the_medians_and_bars_the_quartiles(kind: str) -> None:
    table = needed(kind)
    fig = plot_sizes_needed(table)
    assert [x for d in markers(fig) for x in d.x] == pytest.approx(
        table["median"].tolist(), nan_ok=True
    )
    bars = [d for d in fig.data if d.mode == "lines"]
    quartiles = table[["q1", "q3"]].to_numpy()
    assert not np.isnan(quartiles).any()
    assert [x for d in bars for x in drawn(d.x)] == quartiles.ravel().tolist()


def test_runs_differ_by_marker_and_lie_beside_each_other() -> None:
    fig = plot_sizes_needed(needed("two runs"))
    found = {
        name: [d for d in markers(fig) if d.name == name] for name in ("first", "&lt;other&gt;")
    }
    assert {d.marker.symbol for d in found["first"]} == {"circle"}
    assert {d.marker.symbol for d in found["&lt;other&gt;"]} == {"square"}
    for one, other in zip(*found.values(), strict=True):
        assert one.marker.color == other.marker.color
        assert set(np.round(np.subtract(other.y, one.y), 6)) == {0.4}


def test_who_never_gets_there_is_said_and_bars_run_out_of_the_axis() -> None:
    table = needed("one run").copy()
    top = table["what"] == "top1"
    table.loc[top, ["median", "q1", "q3", "never"]] = math.nan, 0.5, math.nan, 3
    fig = plot_sizes_needed(table)
    (label,) = [t for t in fig.layout.yaxis.ticktext if t.startswith("top token")]
    assert label == "top token is the model's (3 of 5 never)"
    row = fig.layout.yaxis.ticktext.index(label)
    (bar,) = [d for d in fig.data if d.mode == "lines" and row in d.y]
    assert drawn(bar.x)[0] == 0.5
    assert drawn(bar.x)[1] > 1
    (text,) = [t for t in made.hovers(fig) if "top token" in t]
    assert "quartiles 0.5 to never" in text


def test_runs_that_never_get_there_are_named_in_the_label() -> None:
    table = needed("two runs").copy()
    table.loc[(table["what"] == "top1") & (table["run"] == "<other>"), "never"] = 2
    labels = plot_sizes_needed(table).layout.yaxis.ticktext
    assert "top token is the model's (&lt;other&gt;: 2 of 4 never)" in labels


@pytest.mark.parametrize("kind", made_tables.KINDS)
@pytest.mark.parametrize("end", ENDS)
def test_boundaries_are_those_of_the_prompts_sorted_by_where_construction_stops(
    kind: str, end: str
) -> None:
    table = boundaries(kind)
    fig = plot_prompt_boundaries(table)
    found = [d for d in fig.data if d.name == NAMES[end]]
    names = table["run"].unique()
    for name, points in zip(names, found, strict=True):
        own = table[table["run"] == name]
        order = sorted(
            own.to_dict("records"),
            key=lambda r: [math.inf if math.isnan(r[e]) else r[e] for e in reversed(ENDS)],
        )
        there = [(rank, r[end]) for rank, r in enumerate(order, 1) if not math.isnan(r[end])]
        points_of = [(y, x) for x, y in zip(points.x, points.y, strict=True) if x is not None]
        assert points_of == there
        counted = f"{NAMES[end]} in {len(there)} of {len(own)} prompts"
        assert any(counted in text for text in made.texts(fig))


def test_bars_are_the_intervals() -> None:
    table = boundaries("one run").sort_values(list(reversed(ENDS)))
    bars = [d for d in plot_prompt_boundaries(table).data if d.mode == "lines"]
    low_high = [table[[f"{e}_low", f"{e}_high"]].dropna().to_numpy().ravel() for e in ENDS]
    expected = [ends.tolist() for ends in low_high if len(ends)]
    assert [drawn(bar.x) for bar in bars] == expected
    assert expected


def test_a_corpus_without_boundaries_is_counted_and_has_no_points() -> None:
    table = boundaries("one run").copy()
    columns = [c for c in table if c.startswith("construction")]
    table[columns] = math.nan
    fig = plot_prompt_boundaries(table)
    assert "construction stops in 0 of 5 prompts" in made.texts(fig)[0]
    assert not markers(fig)


def test_empty_tables_say_why_nothing_is_drawn() -> None:
    for plot, table in ((plot_sizes_needed, needed), (plot_prompt_boundaries, boundaries)):
        assert made.texts(plot(table("one run").head(0))) == ["no prompt was measured"]
