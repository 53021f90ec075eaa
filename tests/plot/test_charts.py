"""Figures of a corpus survive few prompts and no rows, and hold nothing of a name as markup."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from plotly.colors import unlabel_rgb

from strace_lens.plot.charts import (
    of_runs,
    run_lines,
    run_marks,
    run_panels,
    shown_sizes,
    size_colours,
)
from strace_lens.plot.corpus import composition, density, states
from strace_lens.plot.style import COLOURS, ESTIMATOR_COLOURS
from tests.plot import made
from tests.plot.corpus import made_runs

FIGURES = {
    composition.plot_kinds: ("kinds_by_size",),
    composition.plot_quarters: ("quarters_by_size",),
    composition.plot_phase_diagram: ("phase_diagram", "head_and_tail_means"),
    composition.plot_head_and_tail: ("head_and_tail", "head_and_tail_means"),
    composition.plot_lorenz: ("lorenz",),
    composition.plot_gini: ("gini",),
    composition.plot_core: ("core",),
    density.plot_density_by_label: ("density_by_label",),
    density.plot_shallow: ("shallow", "shallow_full_model"),
    density.plot_nearest: ("nearest",),
    states.plot_geometry: ("geometry_by_layer",),
    states.plot_path: ("geometry_by_layer",),
    states.plot_states_alike: ("state_matrices",),
    states.plot_states_apart: ("state_matrices",),
    states.plot_state_path: ("state_curvature",),
    density.plot_growth: ("growth", "growth_lines"),
}
every_figure = pytest.mark.parametrize(("plot", "tables"), FIGURES.items())


@every_figure
def test_a_run_has_a_row_of_panels_under_its_escaped_name(plot, tables) -> None:
    fig = plot(*(made_runs.table(name) for name in tables))
    grown = plot is density.plot_growth  # the second run did not write on
    heads = made.texts(fig)
    assert any("<b>first" in head for head in heads)
    assert any("<b>se&lt;b&gt;cond" in head for head in heads) is not grown
    said = [*heads, *made.hovers(fig), *(item.name or "" for item in fig.data)]
    assert not any("se<b>cond" in text for text in said)


@every_figure
def test_no_rows_are_a_figure_that_says_so(plot, tables) -> None:
    fig = plot(*(made_runs.table(name).head(0) for name in tables))
    assert not fig.data
    assert len(made.texts(fig)) == 1


@every_figure
def test_one_prompt_has_no_intervals(plot, tables) -> None:
    found = [made_runs.table(name, 1, 1) for name in tables]
    fig = plot(*found)
    assert not made_runs.bands(fig)
    assert not any("nan" in text for text in made.hovers(fig))
    assert found[0].empty or fig.data


@every_figure
def test_each_thing_is_in_the_legend_once(plot, tables) -> None:
    fig = plot(*(made_runs.table(name) for name in tables))
    named = [item.name for item in fig.data if item.type == "scatter" and item.showlegend]
    assert len(named) == len(set(named))


def test_the_sizes_shown_are_measured_ones_each_once() -> None:
    assert shown_sizes([0.02, 0.0012, 0.09, 1.0, 0.0012]) == [0.0012, 0.02, 0.09, 1.0]
    assert shown_sizes([0.5]) == [0.5]


def test_colours_of_what_has_an_order_darken() -> None:
    light = [np.mean(unlabel_rgb(colour)) for colour in size_colours(5)]
    assert light == sorted(light, reverse=True)
    assert len(set(light)) == 5
    assert size_colours(0) == []


def test_a_run_has_one_colour_whatever_it_is_called_and_whichever_others_lack_rows() -> None:
    names = ["baseline", "greedy", "other"]
    table = pd.DataFrame({"run": names, "x": 0.0})
    lines = run_lines(table)
    assert lines["greedy"]["color"] == ESTIMATOR_COLOURS["greedy"]
    assert len({line["color"] for line in lines.values()}) == 3
    some = of_runs(table[table["run"] == "other"], names)
    assert run_lines(some) == lines
    assert run_marks(some)["other"] == lines["other"]["color"]
    fig = run_panels(some, "title", ["panel"], ["y"])
    (head,) = [note.text for note in fig.layout.annotations]
    colour = lines["other"]["color"]
    assert head == f'<span style="color:{colour}">■</span> <b>other</b><br>panel'
    assert not table.attrs  # the caller's table is as it was


def test_a_run_that_is_alone_needs_no_colour() -> None:
    table = pd.DataFrame({"run": ["only"], "x": [0.0]})
    (head,) = [note.text for note in run_panels(table, "title", [""], ["y"]).layout.annotations]
    assert head == "<b>only</b>"
    assert run_marks(table) == {"only": COLOURS["trace"]}
