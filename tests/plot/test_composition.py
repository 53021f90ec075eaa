"""Composition figures against counts of edges made here, one size and layer at a time."""

from __future__ import annotations

import numpy as np
import pytest

from strace_lens.plot.composition import plot_kinds, plot_layers
from tests.plot import made

SIZES = made.curve().table["size"].tolist()


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
