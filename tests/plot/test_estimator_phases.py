"""Phases of estimators along sizes and layers: marks are the table's means, dots the prompts."""

from __future__ import annotations

import numpy as np
import pytest

from strace_lens.corpus.trials.phase_table import phase_table
from strace_lens.plot.estimator_phases import plot_depth_curves, plot_depths, plot_phase_ends
from strace_lens.token_graph.edges import KINDS
from tests.plot import made_trials as made

PROMPTS = made.phases().prompts
TABLE = made.means().set_index(["estimator", "quantity"])


def large(fig, name: str) -> list:
    """The marks of means, in the order of the estimators."""
    return [d for d in fig.data if d.name == name]


def reach(error, middle) -> tuple[list[float], list[float]]:
    return (
        np.subtract(middle, error.arrayminus).tolist(),
        np.add(middle, error.array).tolist(),
    )


def test_construction_is_a_bar_between_its_means() -> None:
    bars = large(plot_phase_ends(PROMPTS, made.means()), "construction")
    for name, bar in zip(made.NAMES, bars, strict=True):
        ends = [TABLE.loc[(name, f"construction_{end}")] for end in ("start", "stop")]
        assert list(bar.x) == [end["mean"] for end in ends]
        low, high = reach(bar.error_x, bar.x)
        assert low == pytest.approx([end["low"] for end in ends])
        assert high == pytest.approx([end["high"] for end in ends])
        assert "4 of 4 prompts" in bar.hovertext[0]


@pytest.mark.parametrize(
    ("part", "label"), [("head", "head subgraph complete"), ("tail", "tail refined")]
)
def test_ends_of_head_and_tail_are_means_over_those_that_have_them(part, label) -> None:
    fig = plot_phase_ends(PROMPTS, made.means())
    for name, mark in zip(made.NAMES, large(fig, label), strict=True):
        row = TABLE.loc[(name, f"{part}_size")]
        assert list(mark.x) == [row["mean"]]
        low, high = reach(mark.error_x, mark.x)
        assert (low, high) == (pytest.approx([row["low"]]), pytest.approx([row["high"]]))
        having = PROMPTS.query("estimator == @name").dropna(subset=f"{part}_size")
        (dots,) = [d for d in fig.data if d.name is None and d.y[:1] == mark.y]
        assert list(dots.x) == having[f"{part}_size"].tolist()
        assert f"{len(having)} of 4 prompts" in mark.hovertext[0]
    assert len(PROMPTS.dropna(subset="head_size")) < len(PROMPTS)


@pytest.mark.parametrize(("col", "kinds"), [("x", ""), ("x2", "block_")])
@pytest.mark.parametrize(
    ("part", "label"), [("head", "head subgraph"), ("tail", "tail refinement")]
)
def test_depths_are_means_with_intervals(col, kinds, part, label) -> None:
    fig = plot_depths(PROMPTS, made.means())
    marks = [d for d in large(fig, label) if d.xaxis == col]
    for name, mark in zip(made.NAMES, marks, strict=True):
        row = TABLE.loc[(name, f"{part}_{kinds}depth")]
        assert list(mark.y) == [row["mean"]]
        low, high = reach(mark.error_y, mark.y)
        assert (low, high) == (pytest.approx([row["low"]]), pytest.approx([row["high"]]))
    dots = [d for d in fig.data if d.name is None and d.xaxis == col]
    drawn = sorted(y for d in dots for y in d.y)
    both = PROMPTS[[f"head_{kinds}depth", f"tail_{kinds}depth"]].to_numpy().ravel()
    assert drawn == sorted(both[~np.isnan(both)].tolist())


@pytest.mark.parametrize(("col", "kinds"), [("x", KINDS), ("x2", KINDS[1:])])
def test_depth_curves_are_mean_layers_over_the_last(col, kinds) -> None:
    layers = made.phases().layers
    fig = plot_depth_curves(layers, PROMPTS)
    for name in made.NAMES:
        (line,) = [d for d in fig.data if d.name == name and d.xaxis == col]
        assert list(line.x) == list(made.SIZES[1:])  # the first holds no edge
        own = layers[layers["estimator"] == name]
        for size, y in zip(line.x, line.y, strict=True):
            depths = []
            for _, one in own[own["size"] == size].groupby("prompt"):
                edges = one[list(kinds)].sum(axis=1).to_numpy()
                depths.append(edges @ one["layer"].to_numpy() / edges.sum() / (made.LAYERS - 1))
            assert y == pytest.approx(np.mean(depths))


@pytest.mark.parametrize("plot", ["depths", "curves"])
def test_the_depth_of_the_whole_graph_is_a_line(plot: str) -> None:
    fig = (
        plot_depths(PROMPTS, made.means())
        if plot == "depths"
        else plot_depth_curves(made.phases().layers, PROMPTS)
    )
    assert [(s.y0, s.y1) for s in fig.layout.shapes] == [
        pytest.approx((0.48, 0.48)),
        pytest.approx((0.49, 0.49)),
    ]


def test_missing_phases_are_drawn_as_nothing_and_counted() -> None:
    none = made.no_phases()
    table = phase_table(none.prompts)
    ends = plot_phase_ends(none.prompts, table)
    depths = plot_depths(none.prompts, table)
    for fig, axis in ((ends, "x"), (depths, "y")):
        drawn = [v for d in fig.data for v in d[axis]]
        assert np.isnan(np.array(drawn, dtype=float)).all()
    assert "0 of 4 prompts" in ends.data[0].hovertext[0]


def test_one_prompt_has_marks_without_error_bars() -> None:
    one = made.phases(prompts=1, names=("greedy", "pruned"))
    table = phase_table(one.prompts)
    for fig in (plot_phase_ends(one.prompts, table), plot_depths(one.prompts, table)):
        bars = [b for d in fig.data for b in (d.error_x, d.error_y) if b.array is not None]
        assert bars
        assert all(not any(b.array) for b in bars)


def test_a_trial_without_rows_is_refused() -> None:
    for plot in (plot_phase_ends, plot_depths):
        with pytest.raises(ValueError, match="no estimator to draw"):
            plot(PROMPTS.head(0), made.means())
