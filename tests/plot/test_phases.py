"""Figures of kinds, layers and phases against the subgraphs, counted here, and the table."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from strace_lens.density.phases import Phases, find_phases
from strace_lens.plot.layer_phases import plot_layer_phases
from strace_lens.plot.phases import (
    missing,
    plot_kinds,
    plot_layer_profiles,
    plot_layers,
)
from tests.plot import made

CURVE = made.curve()
SIZES = CURVE.table["size"].tolist()
PHASES = find_phases(CURVE, threshold=0.4)  # one under which both parts have edges


@pytest.mark.parametrize(
    ("name", "kind"), [("residual", "residual"), ("attention", "attention"), ("MLP", "mlp")]
)
def test_kinds_are_the_shares_of_the_table(name: str, kind: str) -> None:
    table = made.curve().table
    some = table[table["edges"] > 0]
    assert len(some) < len(table)  # a size without an edge is left out
    area = made.named(plot_kinds(made.curve()), name)
    assert list(area.x) == some["size"].tolist()
    assert list(area.y) == some[kind].tolist()


def shares_of_layers() -> np.ndarray:
    """Share of the subgraph's edges in each layer, [layer, size], counted from the subgraphs."""
    trace = made.curve().trace
    layer_of = trace.shape.layer_of().flat()
    columns = []
    for size in SIZES:
        kept = layer_of[trace.subgraph(size).kept.flat()]
        counts = np.array([int((kept == layer).sum()) for layer in range(trace.shape.layers)])
        columns.append(counts / max(1, counts.sum()))
    return np.array(columns).T


def test_layers_are_shares_of_each_subgraph() -> None:
    heat = plot_layers(made.curve()).data[0]
    expected = shares_of_layers()
    expected[expected == 0] = np.nan  # blank, not pale
    np.testing.assert_allclose(np.array(heat.z, dtype=float), expected)
    assert list(heat.y) == [0, 1, 2]
    assert len(heat.x) == len(SIZES) + 1  # the borders of the columns


def test_colours_never_hide_a_larger_share_unsaid() -> None:
    heat = plot_layers(made.curve()).data[0]
    assert heat.zmax == 1 or heat.colorbar.ticktext[-1].startswith("≥")


def test_mean_layer_is_the_tables() -> None:
    table = made.curve().table
    some = table[table["edges"] > 0]
    line = plot_layers(made.curve()).data[-1]
    assert list(line.x) == some["size"].tolist()
    assert list(line.y) == some["mean_layer"].tolist()


def test_hover_texts_name_layer_and_exact_share() -> None:
    shares = shares_of_layers()
    text = plot_layers(made.curve()).data[0].text[2][4]
    assert "layer 2" in text
    assert f"{100 * shares[2, 4]:.3g} %" in text


@pytest.mark.parametrize("plot", [plot_kinds, plot_layers])
def test_axes_are_logarithmic(plot) -> None:
    assert plot(made.curve()).layout.xaxis.type == "log"


@pytest.mark.parametrize("plot", [plot_kinds, plot_layers])
def test_a_curve_without_an_edge_says_so(plot) -> None:
    assert "no size measured has an edge" in made.texts(plot(made.bare(1)))


def test_an_attention_only_or_parallel_model_is_drawn() -> None:
    curve = made.curve("gpt_neox")
    assert np.array(plot_layers(curve).data[0].z).shape == (2, len(curve.table))


def test_the_tiny_curve_has_both_phases() -> None:
    assert PHASES.head is not None
    assert PHASES.tail is not None
    assert PHASES.tail.edges > 0


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
