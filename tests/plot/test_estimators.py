"""Figures of estimators side by side: every line and dot is a number of the trial."""

from __future__ import annotations

import re

import numpy as np
import pytest

import strace_lens as sl
from strace_lens.measures.intervals import interval
from strace_lens.plot.estimators import plot_compute, plot_densities, plot_fidelity
from strace_lens.plot.style import ESTIMATOR_COLOURS, ESTIMATOR_DASHES
from tests.plot import made_trials as made


def lines(fig, name: str) -> list:
    return [d for d in fig.data if d.name == name]


def bands(fig, name: str) -> list:
    return [d for d in fig.data if d.legendgroup == name and d.fill == "toself"]


def by_prompt(role: str, name: str, column: str) -> np.ndarray:
    """[prompt, size]."""
    rows = made.trials().runs.query("role == @role and estimator == @name")
    return np.array([one[column].tolist() for _, one in rows.groupby("prompt")])


@pytest.mark.parametrize("name", made.NAMES)
def test_fidelity_is_the_mean_of_each_role_over_its_interval(name: str) -> None:
    fig = plot_fidelity(made.trials().runs)
    for line, band, role in zip(lines(fig, name), bands(fig, name), ("own", "wrong"), strict=True):
        values = by_prompt(role, name, "tv")
        assert list(line.x) == list(made.SIZES)
        assert list(line.y) == pytest.approx(values.mean(0).tolist())
        low, high = interval(values)
        assert list(band.x) == [*made.SIZES, *made.SIZES[::-1]]
        assert list(band.y) == pytest.approx([*low, *high[::-1]])
        assert line.line.color == ESTIMATOR_COLOURS[name]
        assert line.line.dash == ESTIMATOR_DASHES[name]
        assert line.yaxis == ("y" if role == "own" else "y2")
        for i, text in enumerate(line.hovertext):
            assert text.startswith(f"<b>{name}</b>, s = {made.SIZES[i]:.4g}")
            assert f"{values.mean(0)[i]:.3g} [{low[i]:.3g}, {high[i]:.3g}]" in text
    assert [line.showlegend for line in lines(fig, name)] == [True, False]


@pytest.mark.parametrize("name", made.NAMES)
def test_compute_by_size_and_error_by_compute(name: str) -> None:
    left, right = lines(plot_compute(made.trials().runs), name)
    compute = by_prompt("own", name, "compute").mean(0)
    assert list(left.y) == list(right.x) == pytest.approx(compute.tolist())
    assert list(right.y) == pytest.approx(by_prompt("own", name, "tv").mean(0).tolist())


def test_densities_are_joined_by_prompt_and_marked_by_kind() -> None:
    traces = made.trials().traces.query("target == 'own'")
    *prompts, mean = plot_densities(made.trials().traces).data
    assert len(prompts) == 4
    for item in prompts:
        prompt = int(re.search(r"prompt (\d+)", item.hovertext[0])[1])  # pyright: ignore
        own = traces.query("prompt == @prompt").set_index("estimator")["density"]
        assert list(item.y) == own[list(made.NAMES)].tolist()
        assert item.name == f"kind {prompt % 2}"
    shown = [item.name for item in prompts if item.showlegend]
    assert sorted(shown) == ["kind 0", "kind 1"]
    assert len({(item.marker.symbol, item.marker.color) for item in prompts}) == 2
    wide = traces.pivot(index="prompt", columns="estimator", values="density")[list(made.NAMES)]
    assert list(mean.y) == pytest.approx(wide.mean().tolist())
    low, high = interval(wide.to_numpy())
    assert np.add(mean.y, mean.error_y.array) == pytest.approx(high)
    assert np.subtract(mean.y, mean.error_y.arrayminus) == pytest.approx(low)


def test_a_kind_is_text_not_markup() -> None:
    fig = plot_densities(made.trials().traces.assign(kind="<b>x</b>"))
    assert fig.data[0].name == "&lt;b&gt;x&lt;/b&gt;"
    assert "(&lt;b&gt;x" in fig.data[0].hovertext[0]


def test_prompts_without_a_kind_are_drawn() -> None:
    for nothing in ("", None):  # as in memory, and as read back from a file
        fig = plot_densities(made.trials().traces.assign(kind=nothing))
        assert [item.name for item in fig.data] == ["no kind given"] * 4 + [fig.data[-1].name]


@pytest.mark.parametrize("plot", [plot_fidelity, plot_compute])
def test_one_prompt_has_lines_without_bands(plot) -> None:
    fig = plot(made.trials(prompts=1).runs)
    assert not [d for d in fig.data if d.fill == "toself"]
    assert len(fig.data) == 2 * len(made.NAMES)
    assert "[" not in fig.data[0].hovertext[1]


def test_one_prompt_has_dots_without_error_bars() -> None:
    mean = plot_densities(made.trials(prompts=1).traces).data[-1]
    assert list(mean.error_y.array) == [0.0] * len(made.NAMES)


@pytest.mark.parametrize("plot", [plot_fidelity, plot_compute])
def test_axes_of_sizes_are_logarithmic_from_the_smallest_measured(plot) -> None:
    axis = plot(made.trials().runs).layout.xaxis
    assert axis.type == "log"
    assert axis.range[0] == pytest.approx(np.log10(made.SIZES[0]), abs=0.1)


def test_a_trial_without_rows_is_refused() -> None:
    empty = made.trials()
    for plot, frame in (
        (plot_fidelity, empty.runs),
        (plot_compute, empty.runs),
        (plot_densities, empty.traces),
    ):
        with pytest.raises(ValueError, match="no estimator to draw"):
            plot(frame.head(0))


def test_every_estimator_has_a_look_of_its_own() -> None:
    assert set(ESTIMATOR_COLOURS) == set(ESTIMATOR_DASHES) == set(sl.ESTIMATORS)
    assert len(set(ESTIMATOR_COLOURS.values())) == len(ESTIMATOR_COLOURS)
