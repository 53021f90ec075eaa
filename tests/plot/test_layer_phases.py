"""The figure of layers and gains, of one curve and of several, against subgraphs and the table."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from strace_lens.density.phases import find_phases
from strace_lens.plot.layer_phases import plot_layer_phases
from tests.plot import made

CURVE = made.curve()
SIZES = CURVE.table["size"].tolist()
PHASES = find_phases(CURVE, threshold=0.4)  # one under which both parts have edges


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


def test_one_size_has_no_steps() -> None:
    fig = plot_layer_phases(made.bare(1), made.NO_PHASES)
    assert "one size was measured: no step has a gain" in made.texts(fig)


def three() -> list:
    """Curves of two models, and one of the first model's measured otherwise."""
    kept = dataclasses.replace(CURVE, keep=("attention",), table=CURVE.table.head(5))
    return [CURVE, made.curve("gpt2"), kept, made.with_token(" <b>four</b>")]


def test_several_curves_share_one_scale() -> None:
    fig = plot_layer_phases(three())
    alone = [plot_layer_phases(curve) for curve in three()]
    heats = [data for data in fig.data if data.type == "heatmap"]
    assert len(heats) == 4
    assert {heat.coloraxis for heat in heats} == {"coloraxis"}
    assert fig.layout.coloraxis.cmin == min(one.layout.coloraxis.cmin for one in alone)
    for heat, one in zip(heats, alone, strict=True):
        np.testing.assert_array_equal(np.array(heat.z, float), np.array(one.data[0].z, float))
    lines = [data for data in fig.data if data.type == "scatter"]
    ranges = {tuple(axis.range) for axis in fig.select_yaxes(lambda a: a.zeroline)}
    (low, high), *others = ranges
    assert not others
    assert all(low < y < high for line in lines for y in line.y)
    assert len({tuple(axis.range) for axis in fig.select_xaxes(lambda a: a.range)}) == 1
    assert sum(bool(line.showlegend) for line in lines) == 2  # head and tail, once each


def test_several_curves_are_named_by_what_differs() -> None:
    first, second, third, fourth = made.texts(plot_layer_phases(three()))
    assert first.startswith("<b>")
    assert "model: tiny-llama" in first
    assert "model: tiny-gpt2" in second
    assert "never ablated: attention" in third
    assert "<b>four</b>" not in fourth
    (same, *_) = made.texts(plot_layer_phases([CURVE, CURVE]))
    assert "model:" not in same
    assert "never ablated" not in same


def test_curves_and_phases_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="no curves to draw; give at least one"):
        plot_layer_phases([])
    with pytest.raises(ValueError, match="1 phases for 2 curves"):
        plot_layer_phases([CURVE, CURVE], PHASES)
    with pytest.raises(ValueError, match="2 phases for one curve"):
        plot_layer_phases(CURVE, [PHASES, PHASES])
