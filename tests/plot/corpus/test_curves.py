"""Curves of a corpus and their sizes: the numbers of the tables, and who lacks them."""

from __future__ import annotations

import functools
import math

import numpy as np
import pandas as pd
import pytest

from strace_lens.corpus.analyses.curves import mean_curves
from strace_lens.corpus.analyses.sizes import corpus_boundaries, prompt_boundaries, size_needed
from strace_lens.plot.corpus.curves import (
    plot_head_tail,
    plot_mean_curves,
    plot_prompt_boundaries,
    plot_shared_curves,
    plot_sizes_needed,
)
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
ENDS = ("construction_start", "construction_stop")
ENDS_NAMED = dict(zip(ENDS, ("construction starts", "construction stops"), strict=True))


@functools.cache
def tables(kind: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    curves = made_tables.table(functools.partial(mean_curves, resamples=50), kind)
    return curves, made_tables.table(functools.partial(corpus_boundaries, resamples=20), kind)


def bands(fig: object) -> list[object]:
    return [d for d in fig.data if d.fill == "toself"]


@pytest.mark.parametrize("kind", made_tables.KINDS)
@pytest.mark.parametrize("curve", list(NAMES))
def test_lines_are_the_means_of_the_table_a_panel_a_run(kind: str, curve: str) -> None:
    curves, boundaries = tables(kind)
    own = curve in ("head", "tail")
    fig = plot_head_tail(curves) if own else plot_mean_curves(curves, boundaries)
    lines = [d for d in fig.data if d.name == NAMES[curve]]
    names = curves["run"].unique()
    assert len(lines) == len(names)
    assert {d.line.color for d in lines} == {COLOURS[curve]}
    assert [d.yaxis for d in lines] == ["y", "y2"][: len(names)]
    for name, line in zip(names, lines, strict=True):
        rows = curves[(curves["run"] == name) & (curves["curve"] == curve)]
        assert list(line.x) == rows["size"].tolist()
        assert list(line.y) == rows["mean"].tolist()
        assert f"{NAMES[curve]} {rows['mean'].iloc[0]:.3g}" in line.hovertext[0]
    assert [d.showlegend for d in lines] == [True, False][: len(lines)]


@pytest.mark.parametrize("kind", made_tables.KINDS)
def test_the_thin_lines_are_the_medians_of_the_trace(kind: str) -> None:
    curves, boundaries = tables(kind)
    fig = plot_mean_curves(curves, boundaries)
    lines = [d for d in fig.data if d.name == "median of the trace"]
    for name, line in zip(curves["run"].unique(), lines, strict=True):
        rows = curves[(curves["run"] == name) & (curves["curve"] == "trace")]
        assert list(line.y) == rows["median"].tolist()


def test_the_trace_is_drawn_over_its_controls() -> None:
    names = [d.name for d in plot_mean_curves(*tables("one run")).data if d.name]
    assert names[-1] == "trace"


@pytest.mark.parametrize("kind", made_tables.KINDS)
def test_shared_curves_are_the_traces_a_line_a_run(kind: str) -> None:
    curves, boundaries = tables(kind)
    fig = plot_shared_curves(curves, boundaries)
    lines = [d for d in fig.data if d.fill is None]
    names = curves["run"].unique()
    for name, line in zip(names, lines, strict=True):
        rows = curves[(curves["run"] == name) & (curves["curve"] == "trace")]
        assert line.name == name.replace("<", "&lt;").replace(">", "&gt;")
        assert list(line.x) == rows["size"].tolist()
        assert list(line.y) == rows["mean"].tolist()
    assert len({d.line.color for d in lines}) == len(names)
    ends = boundaries[boundaries["quantity"].isin(ENDS)]
    assert [shape.x0 for shape in fig.layout.shapes] == ends["value"].dropna().tolist()


def test_bands_go_from_the_low_to_the_high_end() -> None:
    curves, _ = tables("one run")
    (band,) = [d for d in bands(plot_head_tail(curves)) if d.legendgroup == "head"]
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
    first, other = (text.split("<br>") for text in found)
    assert first[0].endswith("■</span> <b>first</b>")
    assert "construction starts: s = 0.02 [0.01, 0.04], found in 90 % of resamples" in first
    assert other[0].endswith("■</span> <b>&lt;other&gt;</b>")
    assert "construction stops: not found; there in 25 % of resamples" in other


def test_controls_that_were_not_measured_are_left_out() -> None:
    curves, boundaries = tables("one run")
    fig = plot_mean_curves(curves[curves["curve"] == "trace"], boundaries)
    assert {d.name for d in fig.data if d.name} == {"trace", "median of the trace"}


def test_empty_tables_say_why_nothing_is_drawn() -> None:
    curves, boundaries = (t.head(0) for t in tables("one run"))
    for fig in (
        plot_mean_curves(curves, boundaries),
        plot_shared_curves(curves, boundaries),
        plot_head_tail(curves),
    ):
        assert made.texts(fig) == ["there is no row to draw"]


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
    return [d for d in fig.data if d.mode == "markers"]


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
    for axis in ("y", "y2"):
        top = [d for d in markers(fig) if d.yaxis == axis and "top token" in d.hovertext[0]]
        (held, first) = sorted(top, key=lambda d: d.marker.color == "white")
        assert held.marker.line.color == first.marker.line.color
        assert 0 < first.y[0] - held.y[0] < 0.4
        assert "from there on" in held.hovertext[0]
        assert "for the first time" in first.hovertext[0]
    legend = {d.name: d.marker.color for d in markers(fig) if d.showlegend}
    assert list(legend) == ["from there on", "for the first time"]
    assert legend["for the first time"] == "white"


def test_runs_have_a_panel_each_and_the_same_rows() -> None:
    fig = plot_sizes_needed(needed("two runs"))
    first, other = ([d for d in markers(fig) if d.yaxis == axis] for axis in ("y", "y2"))
    for one, beside in zip(first, other, strict=True):
        assert one.marker.line.color == beside.marker.line.color
        assert list(one.y) == list(beside.y)


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


def test_prompts_that_never_get_there_are_counted_in_the_label_of_their_run() -> None:
    table = needed("two runs").copy()
    table.loc[(table["what"] == "top1") & (table["run"] == "<other>"), "never"] = 2
    table.loc[table["rule"] == "first", "never"] = 1  # is in the texts under the pointer alone
    fig = plot_sizes_needed(table)
    assert not any("never" in label for label in fig.layout.yaxis.ticktext)
    assert "top token is the model's (2 of 4 never)" in fig.layout.yaxis2.ticktext
    (text,) = [
        d.hovertext[0]
        for d in markers(fig)
        if d.yaxis == "y2" and "top token" in d.hovertext[0] and "first time" in d.hovertext[0]
    ]
    assert text.endswith("1 of 4 prompts never")


@pytest.mark.parametrize("kind", made_tables.KINDS)
@pytest.mark.parametrize("end", ENDS)
def test_boundaries_are_those_of_the_prompts_sorted_by_where_construction_stops(
    kind: str, end: str
) -> None:
    table = boundaries(kind)
    fig = plot_prompt_boundaries(table)
    found = [d for d in fig.data if d.name == ENDS_NAMED[end]]
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
        counted = f"{ENDS_NAMED[end]} in {len(there)} of {len(own)} prompts"
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


def test_no_prompts_at_all_are_said() -> None:
    for plot, table in ((plot_sizes_needed, needed), (plot_prompt_boundaries, boundaries)):
        assert made.texts(plot(table("one run").head(0))) == ["there is no row to draw"]
