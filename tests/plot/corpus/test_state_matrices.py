"""Matrices of final states: drawn is what the tables hold, by first and second size."""

from __future__ import annotations

import numpy as np
import pytest

from strace_lens.plot.corpus.state_matrices import (
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
