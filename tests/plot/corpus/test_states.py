"""Hidden states: what is drawn is what the tables hold."""

from __future__ import annotations

import numpy as np
import pytest

from strace_lens.plot.corpus.states import (
    plot_geometry,
    plot_path,
    plot_state_path,
    plot_states_alike,
    plot_states_apart,
)
from tests.plot.corpus.made_runs import NAMES, SIZES, on, one, table
from tests.plot.corpus.made_runs import rows as rows_of

DRAWN = [
    (plot_states_alike, ("cosine", "cka", "cka_debiased")),
    (plot_states_apart, ("l2", "information_imbalance")),
]


@pytest.mark.parametrize(("plot", "measures"), DRAWN)
@pytest.mark.parametrize("run", [0, 1])
def test_each_cell_is_the_tables(plot, measures, run: int) -> None:
    matrices = table("state_matrices")
    fig = plot(matrices)
    for col, measure in enumerate(measures):
        (heat,) = on(fig, len(measures) * run + col)
        rows = rows_of(matrices, run=NAMES[run], measure=measure)
        for a, size_a in enumerate(SIZES):
            for b, size_b in enumerate(SIZES):
                cell = rows_of(rows, size_a=size_a, size_b=size_b)["value"].item()
                assert heat.z[a][b] == pytest.approx(cell, nan_ok=True)
                assert f"s = {size_a:g} (y) and {size_b:g} (x)" in heat.text[a][b]
        assert len(heat.x) == len(heat.y) == len(SIZES) + 1


def test_the_path_is_the_tables() -> None:
    path = table("state_curvature")
    fig = plot_state_path(path)
    for run, name in enumerate(NAMES):
        rows = rows_of(path, run=name)
        for col, column in enumerate(("step", "curvature")):
            line = one(fig, 2 * run + col, "mean")
            assert list(line.x) == rows["size"].tolist()
            assert np.array(line.y) == pytest.approx(rows[column].to_numpy(), nan_ok=True)


@pytest.mark.parametrize("run", [0, 1])
def test_cosine_and_cka_are_the_tables_by_layer_and_size(run: int) -> None:
    geometry = table("geometry_by_layer")
    fig = plot_geometry(geometry)
    rows = rows_of(geometry, run=NAMES[run])
    for col, column in enumerate(("cosine", "cka")):
        (heat,) = on(fig, 2 * run + col)
        wide = rows.pivot(index="layer", columns="size", values=column)
        assert np.array(heat.z, dtype=float) == pytest.approx(wide.to_numpy(), nan_ok=True)
        assert list(heat.y) == wide.index.tolist()
        assert len(heat.x) == wide.shape[1] + 1


def test_a_cosine_below_zero_is_said_at_the_scale() -> None:
    geometry = table("geometry_by_layer")
    ticks = [
        plot_geometry(frame).layout.coloraxis.colorbar.ticktext[0]
        for frame in (geometry, geometry.assign(cosine=-0.1))
    ]
    assert ticks == ["0", "≤ 0"]


@pytest.mark.parametrize("column", ["velocity", "curvature"])
def test_the_path_is_the_tables_beside_the_full_models(column: str) -> None:
    geometry = table("geometry_by_layer")
    fig = plot_path(geometry)
    panel = 2 + ["velocity", "curvature"].index(column)
    for size in (0.001, 0.4):
        rows = rows_of(geometry, run=NAMES[1], size=size)
        line = one(fig, panel, f"s = {size:g}")
        assert list(line.x) == rows["layer"].tolist()
        assert list(line.y) == pytest.approx(rows[column].tolist(), nan_ok=True)
    full = rows_of(geometry, run=NAMES[1]).drop_duplicates("layer")[f"full_{column}"]
    drawn = one(fig, panel, "full model").y
    assert list(drawn) == pytest.approx(full.tolist(), nan_ok=True)
