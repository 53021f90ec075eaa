"""Kinds, layers, phases and components by size: what is drawn is what the tables hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from strace_lens.corpus.analyses.layer_phases import (
    head_and_tail,
    head_and_tail_means,
    phase_diagram,
)
from strace_lens.plot.corpus.composition import (
    plot_core,
    plot_gini,
    plot_head_and_tail,
    plot_kinds,
    plot_lorenz,
    plot_phase_diagram,
    plot_quarters,
)
from strace_lens.plot.style import COLOURS, LABELS
from tests.corpus.planted import with_options
from tests.plot.corpus import made_runs
from tests.plot.corpus.made_runs import NAMES, on, one, table
from tests.plot.corpus.made_runs import rows as rows_of

KINDS = ("residual", "attention", "mlp")


@pytest.mark.parametrize("run", [0, 1])
@pytest.mark.parametrize("kind", list(LABELS))
def test_kinds_are_the_tables_shares_in_their_colour(run: int, kind: str) -> None:
    rows = rows_of(table("kinds_by_size"), run=NAMES[run], kind=kind)
    fig = plot_kinds(table("kinds_by_size"))
    for col, column in enumerate(("share", "marginal")):
        line = one(fig, 2 * run + col, LABELS[kind])
        there = rows.dropna(subset=column)
        assert list(line.x) == there["size"].tolist()
        assert list(line.y) == there[column].tolist()
        assert line.line.color == COLOURS[kind]
    assert f"{rows['prompts'].iloc[-1]} prompts" in one(fig, 2 * run, LABELS[kind]).hovertext[-1]


def test_quarters_are_the_tables_shares_and_name_their_layers() -> None:
    quarters = table("quarters_by_size")
    fig = plot_quarters(quarters)
    for quarter in range(1, 5):
        rows = rows_of(quarters, run=NAMES[1], quarter=quarter).dropna(subset="share")
        line = one(fig, 2, f"quarter {quarter}")
        assert list(line.y) == rows["share"].tolist()
        first, last = rows[["first", "last"]].iloc[0]
        assert f"(layers {first} to {last})" in line.hovertext[0]


@pytest.mark.parametrize("run", [0, 1])
def test_the_diagram_holds_log_presence_and_gains(run: int) -> None:
    diagram = table("phase_diagram")
    fig = plot_phase_diagram(diagram, table("head_and_tail_means"))
    rows = rows_of(diagram, run=NAMES[run])
    for col, column in enumerate(("present", "head_gain", "tail_gain")):
        (heat,) = on(fig, 3 * run + col)
        wide = rows.pivot(index="layer", columns="size", values=column).to_numpy()
        z = np.array(heat.z, dtype=float)
        assert (np.isnan(z) == (wide == 0)).all()
        drawn = 10**z if column == "present" else z
        assert drawn[wide != 0] == pytest.approx(wide[wide != 0])


def test_lines_stand_where_head_and_tail_are_restored() -> None:
    means = table("head_and_tail_means")
    fig = plot_phase_diagram(table("phase_diagram"), means)
    expected = means.query("quantity in ('head_size', 'tail_size')")["mean"].dropna()
    drawn = [shape.x0 for shape in fig.layout.shapes]
    assert set(drawn) == set(expected)
    assert len(drawn) == 3 * 2 * len(expected)  # panels, each line over a white ground


def test_an_error_that_rises_has_another_hue_and_zero_stays_pale() -> None:
    diagram = table("phase_diagram")
    rising = diagram.assign(head_gain=diagram["head_gain"].where(diagram["layer"] > 0, -0.5))
    fig = plot_phase_diagram(rising, table("head_and_tail_means"))
    scale = fig.layout.coloraxis2
    highest = diagram[["head_gain", "tail_gain"]].max(axis=None)
    assert (scale.cmin, scale.cmax) == (-0.5, pytest.approx(highest))
    zero = 0.5 / (0.5 + highest)
    assert scale.colorscale[1][0] == pytest.approx(zero)
    assert scale.colorscale[0][1] == COLOURS["inverse"]
    plain = plot_phase_diagram(diagram, table("head_and_tail_means")).layout.coloraxis2
    assert diagram[["head_gain", "tail_gain"]].min(axis=None) >= 0
    assert plain.cmin == 0


@pytest.mark.parametrize("part", ["head", "tail"])
def test_depths_are_prompts_and_their_means(part: str) -> None:
    rows, means = table("head_and_tail"), table("head_and_tail_means")
    fig = plot_head_and_tail(rows, means)
    phase = {"head": "head subgraph", "tail": "tail refinement"}[part]
    for run, name in enumerate(NAMES):
        own = rows_of(rows, run=name)
        of = rows_of(means, run=name).set_index("quantity")
        for col, column in enumerate((f"{part}_depth", f"{part}_block_depth")):
            mark = one(fig, 2 * run + col, f"mean, {phase}")
            assert mark.y[0] == of.loc[column, "mean"]
            assert mark.y[0] + mark.error_y.array[0] == pytest.approx(of.loc[column, "high"])
            prompts = one(fig, 2 * run + col, "one prompt")
            start = 0 if part == "head" else 1
            assert list(prompts.y)[start::3] == pytest.approx(own[column].tolist(), nan_ok=True)
    assert len(made_runs.panels(fig)) == 4


def beside_one_that_keeps(analysis: Callable[..., pd.DataFrame]) -> pd.DataFrame:
    """A run that keeps nothing, and the same run with attention kept."""
    plain = made_runs.runs()[0]
    kept = dataclasses.replace(
        with_options(plain, keep=["attention"]), name="greedy-keep-attention"
    )
    parts = [analysis(run).assign(run=run.name) for run in (plain, kept)]
    return pd.concat(parts, ignore_index=True)


def test_depths_over_ablatable_edges_are_drawn_where_a_run_keeps_some() -> None:
    rows, means = map(beside_one_that_keeps, (head_and_tail, head_and_tail_means))
    fig = plot_head_and_tail(rows, means)
    assert len(made_runs.panels(fig)) == 6
    values = means.set_index(["run", "quantity"])["mean"]
    for panel, run, column in (
        (2, NAMES[0], "head_depth"),
        (5, "greedy-keep-attention", "head_ablatable_depth"),
    ):
        assert one(fig, panel, "mean, head subgraph").y[0] == values[run, column]
    assert values["greedy-keep-attention", "head_ablatable_depth"] != values[NAMES[0], "head_depth"]


def test_the_diagram_of_a_run_that_keeps_kinds_shows_its_ablatable_edges() -> None:
    diagram, means = map(beside_one_that_keeps, (phase_diagram, head_and_tail_means))
    fig = plot_phase_diagram(diagram, means)
    for panel, run, column in (
        (0, NAMES[0], "present"),
        (3, "greedy-keep-attention", "ablatable_present"),
    ):
        (heat,) = on(fig, panel)
        rows = rows_of(diagram, run=run)
        wide = rows.pivot(index="layer", columns="size", values=column).to_numpy()
        drawn = 10 ** np.array(heat.z, dtype=float)
        assert drawn[wide != 0] == pytest.approx(wide[wide != 0])
    heads = [note.text for note in fig.layout.annotations]
    assert sum(head.endswith("<br>ablatable edges present") for head in heads) == 1
    assert sum(head.endswith("<br>edges present") for head in heads) == 1


@pytest.mark.parametrize("run", [0, 1])
def test_lorenz_curves_are_the_tables_at_measured_sizes(run: int) -> None:
    lorenz = table("lorenz")
    fig = plot_lorenz(lorenz)
    for col, kind in enumerate(KINDS):
        for size in (0.01, 0.1, 0.4):
            rows = rows_of(lorenz, run=NAMES[run], kind=kind, size=size)
            line = one(fig, 3 * run + col, f"s = {size:g}")
            assert list(line.x) == rows["components"].tolist()
            assert list(line.y) == rows["use"].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_gini_is_the_tables_beside_that_of_the_graphs(kind: str) -> None:
    gini = table("gini")
    fig = plot_gini(gini)
    rows = rows_of(gini, run=NAMES[1], kind=kind)
    line = one(fig, 1, LABELS[kind])
    assert list(line.y) == pytest.approx(rows["gini"].tolist(), nan_ok=True)
    assert line.line.color == COLOURS[kind]
    dotted = [d for d in fig.data if d.legendgroup == kind and d.line.dash == "dot"]
    assert [d.y[0] for d in dotted] == rows_of(gini, kind=kind).groupby("run", sort=False)[
        "graph"
    ].first().tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_the_core_is_the_tables_share(kind: str) -> None:
    core = table("core")
    rows = rows_of(core, run=NAMES[0], kind=kind)
    line = one(plot_core(core), 0, LABELS[kind])
    assert list(line.y) == rows["share"].tolist()
    last = rows.iloc[-1]
    assert f"{last['core']} of {last['components']} " in line.hovertext[-1]
