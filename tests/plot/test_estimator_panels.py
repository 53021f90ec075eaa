"""Small multiples of estimators: a panel each, on shared axes, with the numbers of the trial."""

from __future__ import annotations

import numpy as np
import pytest

from strace_lens.corpus.trials.phase_table import phase_table
from strace_lens.plot.estimator_panels import plot_errors, plot_mean_kinds, plot_mean_layers
from strace_lens.plot.style import LABELS
from strace_lens.token_graph.edges import KINDS
from tests.plot import made
from tests.plot import made_trials as trials

RUNS = trials.trials().runs.query("role == 'own'")
AXES = ("x", "x2", "x3")


def means(name: str, column: str) -> list[float]:
    rows = RUNS.query("estimator == @name")
    return [rows[rows["size"] == size][column].mean() for size in trials.SIZES]


@pytest.mark.parametrize("part", ["head", "tail"])
def test_errors_are_means_each_in_the_panel_of_its_estimator(part: str) -> None:
    fig = plot_errors(trials.trials().runs, trials.means())
    found = [d for d in fig.data if d.name == f"{part} error"]
    assert [d.xaxis for d in found] == list(AXES)
    for name, line in zip(trials.NAMES, found, strict=True):
        assert list(line.y) == pytest.approx(means(name, f"{part}_error"))
        assert line.hovertext[0].startswith(f"<b>{name}</b>, s = 0.0001")
    assert [d.showlegend for d in found] == [True, False, False]
    assert made.texts(fig)[:3] == [f"<b>{name}</b>" for name in trials.NAMES]


def test_the_mean_construction_phase_is_shaded() -> None:
    fig = plot_errors(trials.trials().runs, trials.means())
    table = trials.means().set_index(["estimator", "quantity"])["mean"]
    assert [(s.x0, s.x1) for s in fig.layout.shapes] == [
        (table[name, "construction_start"], table[name, "construction_stop"])
        for name in trials.NAMES
    ]


def test_all_panels_have_one_range_that_holds_every_band() -> None:
    fig = plot_errors(trials.trials().runs, trials.means())
    highest = max(max(d.y) for d in fig.data)
    ranges = {tuple(fig.layout[f"yaxis{i}"].range) for i in ("", 2, 3)}
    assert len(ranges) == 1
    assert ranges.pop()[1] > highest


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_mean_shares_of_sizes_with_edges(kind: str) -> None:
    fig = plot_mean_kinds(trials.trials().runs)
    found = [d for d in fig.data if d.name == LABELS[kind]]
    for name, area in zip(trials.NAMES, found, strict=True):
        assert list(area.x) == list(trials.SIZES[1:])
        assert list(area.y) == pytest.approx(means(name, kind)[1:])
    # Areas of one panel are stacked on each other and on no other panel's.
    assert len({d.stackgroup for d in found}) == len(trials.NAMES)


def test_layers_are_log_mean_shares_of_each_layer() -> None:
    layers = trials.phases().layers
    fig = plot_mean_layers(layers, trials.means())
    for name, heat in zip(trials.NAMES, fig.data, strict=True):
        z = np.array(heat.z, dtype=float)
        assert z.shape == (trials.LAYERS, len(trials.SIZES))
        assert heat.name == name
        assert heat.coloraxis == "coloraxis"
        for i, size in enumerate(trials.SIZES):
            for layer in range(trials.LAYERS):
                of = (layers["estimator"] == name) & (layers["size"] == size)
                rows = layers[of & (layers["layer"] == layer)]
                edges = [sum(r[k] for k in KINDS) for r in rows.to_dict("records")]
                share = np.mean(edges) / trials.REACHABLE
                if share == 0:
                    assert np.isnan(z[layer, i])
                else:
                    assert 10 ** z[layer, i] == pytest.approx(share)
                    assert f"layer {layer}: {100 * share:.3g} %" in heat.text[layer][i]


def test_lines_stand_where_head_and_tail_are_restored() -> None:
    table = trials.means()
    fig = plot_mean_layers(trials.phases().layers, table)
    expected = table.query("quantity in ('head_size', 'tail_size')")["mean"]
    drawn = [s.x0 for s in fig.layout.shapes]
    assert set(drawn) == set(expected)
    assert len(drawn) == 2 * len(expected)  # each over a white ground


def test_missing_phases_leave_the_figures_without_marks() -> None:
    none = trials.no_phases()
    table = phase_table(none.prompts)
    assert table.query("quantity == 'head_size'")["mean"].isna().all()
    assert not plot_errors(trials.trials().runs, table).layout.shapes
    assert not plot_mean_layers(none.layers, table).layout.shapes


@pytest.mark.parametrize(
    ("names", "grid"),
    [
        (("greedy",), (1, 1)),
        (("greedy", "pruned"), (1, 2)),
        (("greedy", "scheduled", "fisher", "pruned"), (2, 2)),
        (("greedy", "scheduled", "fisher", "pruned", "learned"), (2, 3)),
    ],
)
def test_panels_fill_a_grid(names, grid) -> None:
    runs = trials.trials(names=names).runs
    fig = plot_mean_kinds(runs)
    axes = {(d.xaxis, d.yaxis) for d in fig.data}
    assert len(axes) == len(names)
    domains = [
        {fig.layout[f"{axis[0]}axis{axis[1:]}"].domain for axis in of}
        for of in zip(*axes, strict=True)
    ]
    assert (len(domains[1]), len(domains[0])) == grid


def test_one_prompt_has_no_bands() -> None:
    fig = plot_errors(trials.trials(prompts=1).runs, trials.means(prompts=1))
    assert not [d for d in fig.data if d.fill == "toself"]


def test_a_trial_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="no estimator to draw"):
        plot_mean_kinds(RUNS.head(0))
    with pytest.raises(ValueError, match="no estimator to draw"):
        plot_mean_layers(trials.phases().layers.head(0), trials.means())
