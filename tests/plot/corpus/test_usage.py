"""Lorenz curves, Gini coefficients and the core: what is drawn is what the tables hold."""

from __future__ import annotations

import pytest

from strace_lens.plot.corpus.usage import plot_core, plot_gini, plot_lorenz
from strace_lens.plot.style import COLOURS, LABELS
from tests.plot.corpus.made_runs import NAMES, one, table
from tests.plot.corpus.made_runs import rows as rows_of

KINDS = ("residual", "attention", "mlp")


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
