"""Phase diagram and layer profiles against the subgraphs and the table."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from strace_lens.density.phases import Phases, find_phases
from strace_lens.plot.phases import missing, plot_layer_phases, plot_layer_profiles
from tests.plot import made

CURVE = made.curve()
SIZES = CURVE.table["size"].tolist()
PHASES = find_phases(CURVE, threshold=0.4)  # one under which both parts have edges


def test_the_tiny_curve_has_both_phases() -> None:
    assert PHASES.head is not None
    assert PHASES.tail is not None
    assert PHASES.tail.edges > 0


def test_colours_are_log_shares_of_each_layer_present() -> None:
    trace = CURVE.trace
    layer_of, reachable = trace.shape.layer_of().flat(), trace.shape.reachable().flat()
    heat = plot_layer_phases(CURVE, PHASES).data[0]
    z = np.array(heat.z, dtype=float)
    for i, size in enumerate(SIZES):
        kept = trace.subgraph(size).kept.flat()
        for layer in range(trace.shape.layers):
            here = layer_of == layer
            share = int((kept & here).sum()) / int((reachable & here).sum())
            if share == 0:
                assert np.isnan(z[layer, i])
            else:
                assert 10 ** z[layer, i] == pytest.approx(share)
                assert f"layer {layer}" in heat.text[layer][i]


@pytest.mark.parametrize("part", ["head", "tail"])
def test_gains_add_up_to_the_fall_of_the_error(part: str) -> None:
    error = CURVE.table[f"{part}_error"].to_numpy()
    steps = made.named(plot_layer_phases(CURVE, PHASES), f"{part} error")
    assert list(steps.x) == CURVE.table["size"].tolist()
    assert steps.y[0] == 0
    for i in range(1, len(error)):
        assert steps.y[i] == pytest.approx(error[i - 1] - error[i])
        assert f"s = {SIZES[i]:.10g}" in steps.hovertext[i]
        assert steps.hovertext[i].endswith(f"since s = {SIZES[i - 1]:.10g}")


def test_lines_stand_at_the_ends_of_both_phases() -> None:
    fig = plot_layer_phases(CURVE, PHASES)
    assert PHASES.head is not None
    assert PHASES.tail is not None
    assert {shape.x0 for shape in fig.layout.shapes} == {PHASES.head.stop, PHASES.tail.stop}
    assert f"head subgraph complete at s = {PHASES.head.stop:.3g}" in made.texts(fig)
    assert f"tail refinement ends at s = {PHASES.tail.stop:.3g}" in made.texts(fig)


def test_both_axes_of_sizes_are_logarithmic() -> None:
    layout = plot_layer_phases(CURVE, PHASES).layout
    assert layout.xaxis.type == layout.xaxis2.type == "log"


@pytest.mark.parametrize("part", ["head", "tail"])
def test_profiles_are_the_phases_shares(part: str) -> None:
    phase = getattr(PHASES, part)
    above, below = [d for d in plot_layer_profiles(PHASES).data if d.name == phase.name]
    assert list(above.y) == phase.share_by_layer.tolist()
    assert list(below.y) == phase.share_of_layer.tolist()
    assert list(above.x) == list(range(CURVE.trace.shape.layers))
    assert f"layer 1: {int(phase.counts.sum(0)[1]):,} edges" in above.hovertext[1]


def test_missing_phases_are_said() -> None:
    reasons = missing(made.NO_PHASES)
    assert set(reasons) == {"head", "tail"}
    for fig in (
        plot_layer_phases(CURVE, made.NO_PHASES),
        plot_layer_profiles(made.NO_PHASES),
    ):
        said = " ".join(made.texts(fig))
        assert "no head subgraph" in said
        assert "no tail refinement" in said
    assert not plot_layer_profiles(made.NO_PHASES).data


def test_a_missing_tail_leaves_the_head() -> None:
    phases = Phases((), PHASES.head, None)
    fig = plot_layer_profiles(phases)
    assert {d.name for d in fig.data} == {"head subgraph"}
    assert made.texts(fig) == [missing(phases)["tail"]]


def test_a_tail_without_edges_is_said_not_drawn() -> None:
    assert PHASES.tail is not None
    tail = dataclasses.replace(PHASES.tail, first=PHASES.tail.last, counts=PHASES.tail.counts * 0)
    fig = plot_layer_profiles(Phases((), PHASES.head, tail))
    assert {d.name for d in fig.data} == {"head subgraph"}
    assert made.texts(fig) == ["the tail refinement has no edges: it ends where it starts"]


def test_one_size_has_no_steps() -> None:
    fig = plot_layer_phases(made.bare(1), made.NO_PHASES)
    assert "one size was measured: no step has a gain" in made.texts(fig)
