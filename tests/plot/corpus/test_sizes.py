"""Sizes that prompts need, and their boundaries: the numbers of the tables, and who lacks them."""

from __future__ import annotations

import functools
import math

import numpy as np
import pandas as pd
import pytest

from strace_lens.corpus.analyses.sizes import prompt_boundaries, size_needed
from strace_lens.plot.corpus.sizes import plot_prompt_boundaries, plot_sizes_needed
from tests.plot import made
from tests.plot.corpus import made_tables

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
    assert not np.isnan(table[["q1", "q3"]].to_numpy()).any()
    for rule in ("stable", "first"):
        own = table[table["rule"] == rule]
        hollow = rule == "first"
        shown = [d for d in markers(fig) if (d.marker.color == "white") == hollow]
        assert [x for d in shown for x in d.x] == pytest.approx(own["median"].tolist(), nan_ok=True)
        bars = [d for d in fig.data if d.mode == "lines" and d.line.width == (1 if hollow else 3)]
        quartiles = own[["q1", "q3"]].to_numpy().ravel().tolist()
        assert [x for d in bars for x in drawn(d.x)] == quartiles


def test_the_first_size_lies_below_the_one_from_which_on_it_holds() -> None:
    fig = plot_sizes_needed(needed("two runs"))
    for name in ("first", "&lt;other&gt;"):
        top = [d for d in markers(fig) if d.name == name and "top token" in d.hovertext[0]]
        (held, first) = sorted(top, key=lambda d: d.marker.color == "white")
        assert (held.marker.symbol, held.marker.line.color) == (
            first.marker.symbol,
            first.marker.line.color,
        )
        assert 0 < first.y[0] - held.y[0] < 0.4
        assert "from there on" in held.hovertext[0]
        assert "for the first time" in first.hovertext[0]
    legend = {d.name: d.marker.color for d in fig.data if d.x[0] is None}
    assert legend["for the first time"] == "white"


def test_runs_differ_by_marker_and_lie_beside_each_other() -> None:
    fig = plot_sizes_needed(needed("two runs"))
    found = {
        name: [d for d in markers(fig) if d.name == name] for name in ("first", "&lt;other&gt;")
    }
    assert {d.marker.symbol for d in found["first"]} == {"circle"}
    assert {d.marker.symbol for d in found["&lt;other&gt;"]} == {"square"}
    for one, other in zip(*found.values(), strict=True):
        assert one.marker.color == other.marker.color
        assert one.marker.line.color == other.marker.line.color
        assert set(np.round(np.subtract(other.y, one.y), 6)) == {0.4}


def test_who_never_gets_there_is_said_and_bars_run_out_of_the_axis() -> None:
    table = needed("one run").copy()
    top = (table["what"] == "top1") & (table["rule"] == "stable")
    table.loc[top, ["median", "q1", "q3", "never"]] = math.nan, 0.5, math.nan, 3
    fig = plot_sizes_needed(table)
    (label,) = [t for t in fig.layout.yaxis.ticktext if t.startswith("top token")]
    assert label == "top token is the model's (3 of 5 never)"
    row = fig.layout.yaxis.ticktext.index(label)
    (bar,) = [d for d in fig.data if d.mode == "lines" and row in d.y]
    assert drawn(bar.x)[0] == 0.5
    assert drawn(bar.x)[1] > 1
    (text,) = [t for t in made.hovers(fig) if "top token" in t and "from there on" in t]
    assert "quartiles 0.5 to never" in text


def test_prompts_that_never_get_there_are_counted_in_the_label_run_by_run() -> None:
    table = needed("two runs").copy()
    table.loc[(table["what"] == "top1") & (table["run"] == "<other>"), "never"] = 2
    table.loc[table["rule"] == "first", "never"] = 1  # is in the texts under the pointer alone
    labels = plot_sizes_needed(table).layout.yaxis.ticktext
    assert [t for t in labels if "never" in t] == [
        "top token is the model's<br>(never: 0 of 5, 2 of 4)"
    ]
    table["prompts"] = 5
    labels = plot_sizes_needed(table).layout.yaxis.ticktext
    assert "top token is the model's<br>(never: 0, 2 of 5)" in labels
    (text,) = [
        t
        for t in made.hovers(plot_sizes_needed(table))
        if t.startswith("<b>&lt;other&gt;</b>, top token") and "first time" in t
    ]
    assert text.endswith("1 of 5 prompts never")


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
