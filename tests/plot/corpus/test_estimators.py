"""Figures of estimators side by side: every line and mark is a number of their tables."""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go
import pytest

import strace_lens as sl
from strace_lens.corpus.analyses.estimators import estimator_tables
from strace_lens.measures.intervals import interval_text
from strace_lens.plot.corpus.estimators import (
    plot_compute,
    plot_depth_curves,
    plot_fidelity,
    plot_phase_ends,
)
from strace_lens.plot.style import COLOURS, ESTIMATOR_COLOURS, ESTIMATOR_DASHES
from tests.corpus.synthetic import controlled_run

NAMES = ("greedy", "pruned", "a <b> run")
RUNS = [controlled_run(name, 4, number=number) for number, name in enumerate(NAMES)]
TABLES = estimator_tables(RUNS)
CURVES, PHASES = TABLES["estimator_curves"], TABLES["estimator_phases"]
SHOWN = {name: name.replace("<", "&lt;").replace(">", "&gt;") for name in NAMES}


def lines(fig: go.Figure, name: str) -> list:
    return [d for d in fig.data if d.name == SHOWN.get(name, name) and d.fill is None]


def bands(fig: go.Figure, name: str) -> list:
    return [d for d in fig.data if d.legendgroup == SHOWN[name] and d.fill == "toself"]


def curve_of(name: str, quantity: str) -> pd.DataFrame:
    return CURVES.query("run == @name and quantity == @quantity")


def quantity_of(name: str, quantity: str, phases: pd.DataFrame = PHASES) -> dict:
    (row,) = phases.query("run == @name and quantity == @quantity").to_dict("records")
    return row


@pytest.mark.parametrize("name", NAMES)
def test_fidelity_is_the_mean_of_each_target_over_its_interval(name: str) -> None:
    fig = plot_fidelity(CURVES)
    quantities = ("tv", "wrong_tv")
    for line, band, quantity in zip(lines(fig, name), bands(fig, name), quantities, strict=True):
        curve = curve_of(name, quantity)
        assert list(line.x) == curve["size"].tolist()
        assert list(line.y) == curve["mean"].tolist()
        assert list(band.x) == [*curve["size"], *curve["size"][::-1]]
        assert list(band.y) == [*curve["low"], *curve["high"][::-1]]
        assert line.yaxis == ("y" if quantity == "tv" else "y2")
        for text, (size, *of) in zip(
            line.hovertext,
            curve[["size", "mean", "low", "high"]].itertuples(index=False),
            strict=True,
        ):
            assert text == f"<b>{SHOWN[name]}</b>, s = {size:.4g}<br>TV {interval_text(*of)}"
    assert [line.showlegend for line in lines(fig, name)] == [True, False]


def test_runs_look_as_their_estimators_and_apart() -> None:
    looks = [lines(plot_fidelity(CURVES), name)[0].line for name in NAMES]
    assert [look.color for look in looks[:2]] == [ESTIMATOR_COLOURS[n] for n in NAMES[:2]]
    assert [look.dash for look in looks[:2]] == [ESTIMATOR_DASHES[n] for n in NAMES[:2]]
    assert len({look.color for look in looks}) == 3
    assert list(ESTIMATOR_COLOURS) == list(ESTIMATOR_DASHES) == list(sl.ESTIMATORS)
    assert len(set(ESTIMATOR_COLOURS.values())) == len(ESTIMATOR_COLOURS)


@pytest.mark.parametrize("name", NAMES)
def test_compute_by_size_and_error_by_compute(name: str) -> None:
    left, right = lines(plot_compute(CURVES), name)
    assert list(left.x) == curve_of(name, "compute")["size"].tolist()
    assert list(left.y) == list(right.x) == curve_of(name, "compute")["mean"].tolist()
    assert list(right.y) == curve_of(name, "tv")["mean"].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_depth_by_size_beside_that_of_the_whole_graph(name: str) -> None:
    fig = plot_depth_curves(CURVES, PHASES)
    for line, quantity in zip(lines(fig, name), ("depth", "block_depth"), strict=True):
        assert list(line.y) == curve_of(name, quantity)["mean"].tolist()
    graphs = [quantity_of("greedy", f"graph_{q}")["mean"] for q in ("depth", "block_depth")]
    assert [shape.y0 for shape in fig.layout.shapes] == graphs
    assert [shape.yref for shape in fig.layout.shapes] == ["y", "y2"]


@pytest.mark.parametrize("number", range(len(NAMES)))
def test_the_ends_of_phases_are_the_means_and_their_intervals(number: int) -> None:
    fig, name = plot_phase_ends(PHASES), NAMES[number]
    bar = lines(fig, "construction")[number]
    ends = [quantity_of(name, f"construction_{end}") for end in ("start", "stop")]
    assert list(bar.x) == [end["mean"] for end in ends]
    assert list(bar.y) == [number, number]
    assert list(bar.error_x.array) == pytest.approx([e["high"] - e["mean"] for e in ends])
    assert list(bar.error_x.arrayminus) == pytest.approx([e["mean"] - e["low"] for e in ends])
    marks = {"head": "head subgraph complete", "tail": "tail refined"}
    for part, called in marks.items():
        mark, end = lines(fig, called)[number], quantity_of(name, f"{part}_size")
        assert list(mark.x) == [end["mean"]]
        assert mark.marker.color == COLOURS[part]
        text = interval_text(end["mean"], end["low"], end["high"])
        assert mark.hovertext[0].endswith(f"{end['prompts']} prompts<br>{called} at s = {text}")
        assert number < mark.y[0] < number + 0.5
    assert list(fig.layout.yaxis.ticktext) == [SHOWN[n] for n in NAMES]


def test_phases_that_no_prompt_has_leave_a_figure_without_their_marks() -> None:
    lost = PHASES["quantity"].str.startswith(("construction", "head_", "tail_"))
    none = dict.fromkeys(("mean", "low", "high"), math.nan)
    fig = plot_phase_ends(PHASES.assign(**none).where(lost, PHASES))
    assert all(math.isnan(x) for d in fig.data for x in d.x)
    assert fig.layout.xaxis.range[0] < -2
