"""Figures of a comparison of methods: every line, dot and cell is a number of its results."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import plotly.graph_objects as go
import pytest

from strace_lens.circuits.agreement import agreement
from strace_lens.circuits.curve import PairMetrics
from strace_lens.circuits.discover.methods import METHODS
from strace_lens.plot.circuits import (
    plot_agreement,
    plot_differences,
    plot_faithfulness,
    plot_overlap,
    plot_quality,
)
from strace_lens.plot.known import MOST_EDGES, plot_auroc, plot_found, plot_projection
from strace_lens.plot.style import look_of
from tests.plot import made_comparison as made
from tests.plot.made import hovers, texts

PLOTS = (plot_faithfulness, plot_quality, plot_overlap, plot_agreement)


def menu(fig: go.Figure) -> dict[str, list[bool]]:
    """What each entry of a figure's menu shows."""
    return {b.label: b.args[0]["visible"] for b in fig.layout.updatemenus[0].buttons}


def matrix(fig: go.Figure, label: str) -> np.ndarray:
    """The heat map that an entry of the menu shows."""
    (shown,) = [item for item, v in zip(fig.data, menu(fig)[label], strict=True) if v]
    return np.array(shown.z, dtype=np.float64)


def with_curve(values: tuple[float, ...]):
    """The comparison, its first method with another curve."""
    whole = made.comparison()
    curve = dataclasses.replace(whole.results[0].faithfulness, values=values, cpr_values=values)
    first = dataclasses.replace(whole.results[0], faithfulness=curve)
    return dataclasses.replace(whole, results=(first, *whole.results[1:]))


def test_every_method_has_a_look_of_its_own() -> None:
    looks = [method.look for method in METHODS.values()]
    assert [look_of(name) for name in METHODS] == looks
    assert len(set(looks)) == len(looks)
    assert len({(look.colour, look.dash) for look in looks}) == len(looks)
    assert look_of("<one of another's>") not in looks


@pytest.mark.extended
def test_faithfulness_is_each_curve_best_first() -> None:
    whole = made.comparison()
    lines = [line for line in plot_faithfulness(whole).data if line.showlegend]
    names = [line.name.split()[0] for line in lines]
    cmd = [made.of(whole, name).faithfulness.cmd for name in names]
    assert sorted(names) == sorted(made.METHODS)
    assert cmd == sorted(cmd)
    for line, name in zip(lines, names, strict=True):
        curve = made.of(whole, name).faithfulness
        assert list(line.x) == list(curve.fractions)
        assert list(line.y) == list(curve.values)
        assert line.name.endswith(f"{curve.cmd:.3f}")
        assert line.line.color == look_of(name).colour
        for edges, text in zip(curve.edges, line.hovertext, strict=True):
            assert f"{edges:,} edges" in text


@pytest.mark.extended
def test_the_curve_of_cpr_is_drawn_where_it_is_another() -> None:
    whole = made.comparison()
    lines = [line for line in plot_faithfulness(whole).data if not line.showlegend]
    others = [line for line in lines if line.fill != "toself"]
    own = [r for r in whole.results if r.faithfulness.cpr_values != r.faithfulness.values]
    assert {r.method for r in own} <= {"eap", "edge-patching"}
    assert own
    assert {line.name for line in others} == {f"{r.method} by sign" for r in own}
    for line in others:
        result = made.of(whole, line.legendgroup)
        assert list(line.y) == list(result.faithfulness.cpr_values)
        assert line.line.color == look_of(result.method).colour
        assert line.marker.symbol.endswith("-open")


def test_a_band_is_the_interval_of_its_curve() -> None:
    whole = made.comparison()
    metrics = ((0.0, 0.0, 0.0), (0.2, 0.5, 0.4), (0.7, 0.9, 0.8), (1.0, 1.0, 1.0))
    curve = dataclasses.replace(
        whole.results[0].faithfulness,
        fractions=(0.1, 0.5, 1.0),
        edges=(2, 9, 20),
        values=(0.36, 0.8, 1.0),
        cpr_values=(0.36, 0.8, 1.0),
        pairs=PairMetrics((0, 2, 9, 20), metrics, ()),
    )
    alone = dataclasses.replace(whole.results[0], faithfulness=curve)
    fig = plot_faithfulness(dataclasses.replace(whole, results=(alone,)))
    (band,) = [line for line in fig.data if line.fill == "toself"]
    table = curve.to_pandas()
    low, high = table["faithfulness_low"].tolist(), table["faithfulness_high"].tolist()
    assert list(band.x) == [0.1, 0.5, 1.0, 1.0, 0.5, 0.1]
    assert list(band.y) == [*low, *high[::-1]]
    assert low[0] < 0.36 < high[0]


def test_differences_are_coloured_where_the_pairs_part_the_methods() -> None:
    whole = made.comparison()
    fig = plot_differences(whole)
    order = sorted(whole.results, key=lambda r: r.faithfulness.cmd)
    names = [r.method for r in order]
    assert [*fig.layout.yaxis.ticktext] == names
    verdicts = set()
    for measure, matrix in zip(("cmd", "cpr"), fig.data, strict=True):
        rows = whole.differences(measure)
        for row in rows.to_dict("records"):
            i, j = names.index(row["method"]), names.index(row["other"])
            inside = row["low"] <= 0 <= row["high"]
            above = row["difference"] > 0
            expected = 0 if inside else 1 if above == (measure == "cpr") else -1
            assert matrix.z[i][j] == expected
            assert matrix.text[i][j] == f"{row['difference']:+.2f}"
            verdicts.add(expected)
    assert verdicts == {-1, 0, 1}


def test_faithfulness_has_its_two_lines_and_says_what_is_cut_off() -> None:
    count = len(made.comparison().results[0].faithfulness.values)
    inside = plot_faithfulness(with_curve((0.5,) * count))
    assert [shape.y0 for shape in inside.layout.shapes] == [1, 0.85]
    beyond = plot_faithfulness(with_curve((0.5,) * (count - 2) + (-7.0, 9.0)))
    low, high = beyond.layout.yaxis.range
    assert -1 < low < 0
    assert 1 < high < 3
    curves = [r.faithfulness for r in made.comparison().results[1:]]
    others = [v for c in curves for drawn in {c.values, c.cpr_values} for v in drawn]
    cut = 2 + sum(not -0.5 <= v <= 2 for v in others)
    assert texts(beyond) == [f"{cut} values lie beyond -0.5 to 2.0 and are cut off"]
    assert inside.layout.xaxis.type == "log"


def test_ticks_say_how_many_edges_a_fraction_is_in_short() -> None:
    whole = made.comparison()
    counts = {0: "0", 9_999: "9,999", 35_325: "35.3k", 999_999: "1000k", 12_345_678: "12.3M"}
    curve = dataclasses.replace(
        whole.results[0].faithfulness,
        fractions=(0.001, 0.01, 0.1, 0.5, 1.0),
        edges=tuple(counts),
        values=(0.0, 0.0, 0.5, 0.9, 1.0),
        cpr_values=(0.0, 0.0, 0.5, 0.9, 1.0),
        pairs=PairMetrics(tuple(counts), ((0.0,),) * 4 + ((1.0,),), ()),
    )
    alone = dataclasses.replace(whole.results[0], faithfulness=curve)
    fig = plot_faithfulness(dataclasses.replace(whole, results=(alone,)))
    assert [tick.split("<br>")[1] for tick in fig.layout.xaxis.ticktext] == list(counts.values())


def test_quality_has_a_named_dot_a_method_and_the_best_of_chance() -> None:
    whole = dataclasses.replace(made.comparison(), random_cmd=(0.1, 0.9, 0.3))
    fig = plot_quality(whole)
    names = [dot.name.split()[0] for dot in fig.data]
    assert sorted(names) == sorted(made.METHODS)
    for name, dot in zip(names, fig.data, strict=True):
        result, look = made.of(whole, name), look_of(name)
        assert list(dot.x) == [result.scores.seconds]
        assert list(dot.y) == [result.faithfulness.cmd]
        assert (dot.marker.color, dot.marker.symbol) == (look.colour, look.symbol)
        assert dot.name.endswith(f" {result.faithfulness.cmd:.3f}")
    assert [dot.y[0] for dot in fig.data] == sorted(dot.y[0] for dot in fig.data)
    assert all(dot.showlegend for dot in fig.data)
    assert [shape.y0 for shape in fig.layout.shapes] == [pytest.approx(0.1, abs=1e-5)]


def test_no_time_at_all_has_a_place_on_the_logarithm() -> None:
    whole = made.comparison()
    scores = dataclasses.replace(whole.results[0].scores, seconds=0.0)
    first = dataclasses.replace(whole.results[0], scores=scores)
    (dot,) = plot_quality(dataclasses.replace(whole, results=(first,))).data
    assert 0 < dot.x[0] < 1e-3
    assert "0 s" in dot.hovertext[0]


def test_overlap_is_the_jaccard_index_of_the_circuits_of_each_size() -> None:
    whole = made.comparison()
    fig = plot_overlap(whole)
    edges = whole.graph.edges
    labels = list(menu(fig))
    assert labels[0] == "each its 85 % circuit"
    assert labels[1:] == [
        f"best {100 * f:.3g} % of each"
        for f in whole.results[0].faithfulness.fractions
        if 1 <= int(f * edges) < edges
    ]
    own = matrix(fig, labels[0])
    tenth = matrix(fig, "best 10 % of each")
    for (i, a), (j, b) in itertools.permutations(enumerate(whole.results), 2):
        kept, other = (set(r.circuit.edge_names()) for r in (a, b))
        assert own[i, j] == pytest.approx(len(kept & other) / len(kept | other))
        kept, other = (set(r.scores.top(int(0.1 * edges)).edge_names()) for r in (a, b))
        assert tenth[i, j] == pytest.approx(len(kept & other) / len(kept | other))
    assert np.isnan(np.diagonal(own)).all()
    assert [item.visible for item in fig.data] == menu(fig)[labels[0]]


def test_overlap_by_magnitude_where_circuits_were_ranked_by_it() -> None:
    whole = made.comparison()
    results = []
    for result in whole.results:
        circuit = result.scores.top(result.faithfulness.edges_at_85, absolute=True)
        results.append(dataclasses.replace(result, circuit=circuit))
    shown = matrix(
        plot_overlap(dataclasses.replace(whole, results=tuple(results))), "best 10 % of each"
    )
    a, b = (r.scores.top(int(0.1 * whole.graph.edges), absolute=True) for r in results[:2])
    assert shown[0, 1] == pytest.approx(a.jaccard(b))


def test_agreement_is_spearman_and_rank_biased_overlap() -> None:
    whole = made.comparison()
    fig = plot_agreement(whole)
    spearman = matrix(fig, "Spearman's rank correlation")
    biased = matrix(fig, "rank-biased overlap")
    for (i, a), (j, b) in itertools.permutations(enumerate(whole.results), 2):
        expected = agreement(a.scores, b.scores)
        assert spearman[i, j] == pytest.approx(expected["spearman"])
        assert biased[i, j] == pytest.approx(expected["rbo"])
    assert fig.data[0].zmin == -fig.data[0].zmax


def test_scores_by_position_are_left_blank_beside_those_without() -> None:
    whole = made.comparison()
    first = whole.results[0]
    scores = dataclasses.replace(
        first.scores, values=first.scores.values[..., None].repeat(1, 1, 2)
    )
    wide = dataclasses.replace(first, scores=scores, circuit=scores.top(9))
    mixed = dataclasses.replace(whole, results=(wide, *whole.results[1:]))
    for fig in (plot_overlap(mixed), plot_agreement(mixed)):
        z = np.array(fig.data[0].z, dtype=np.float64)
        assert np.isnan(z[0]).all()
        assert np.isfinite(z[1, 2])


def test_auroc_and_precision_of_every_method() -> None:
    whole = made.comparison()
    bars, diamonds = plot_auroc(whole).data
    shown = plot_auroc(whole).layout.yaxis.ticktext
    names = [label.split()[0] for label in shown]
    assert sorted(names) == sorted(made.METHODS)
    assert list(bars.x) == [made.of(whole, name).auroc for name in names]
    assert list(bars.x) == sorted(bars.x)
    assert list(diamonds.x) == [made.of(whole, name).precision for name in names]
    assert [label.split()[1] for label in shown] == [f"{value:.3f}" for value in bars.x]


def test_true_edges_are_found_or_missed_by_name() -> None:
    whole = made.comparison()
    fig = plot_found(whole)
    assert whole.truth is not None
    edges = [tick.replace("&lt;", "<").replace("&gt;", ">") for tick in fig.layout.xaxis.ticktext]
    assert sorted(edges) == sorted(whole.truth.edge_names())
    found = np.array(fig.data[0].z)
    for result, row in zip(whole.results, found, strict=True):
        missed = {edge for edge, there in zip(edges, row, strict=True) if not there}
        assert missed == set(result.missed)
    assert found[0].all()
    assert not found.all()


def test_a_large_truth_is_not_drawn_edge_by_edge() -> None:
    whole = made.comparison()
    truth = whole.results[0].scores.top(MOST_EDGES + 1)
    fig = plot_found(dataclasses.replace(whole, truth=truth))
    assert texts(fig) == [
        f"The true circuit has {MOST_EDGES + 1} edges, too many to draw one by one."
    ]


def test_projection_is_the_table_line_by_line() -> None:
    whole = made.comparison()
    table = whole.projection
    assert table is not None
    assert table["trace"].unique().tolist() == ["output", "contrast"]
    fig = plot_projection(whole)
    drawn = iter(fig.data)
    for (name, _), rows in table.groupby(["circuit", "trace"], sort=False):
        recall, auroc = next(drawn), next(drawn)
        assert recall.legendgroup == auroc.legendgroup == name
        assert recall.name == f"{name} ({rows['circuit_components'].iloc[0]})"
        assert list(recall.x) == list(auroc.x) == rows["size"].tolist()
        assert list(recall.y) == rows["recall"].tolist()
        assert np.array_equal(auroc.y, rows["auroc"].to_numpy(), equal_nan=True)
    assert len(fig.data) == 2 * 2 * (1 + len(made.METHODS))
    assert sum(item.showlegend for item in fig.data) == 1 + len(made.METHODS)
    assert any("precision" in text for text in hovers(fig))


@pytest.mark.extended
def test_what_is_not_known_is_refused() -> None:
    bare = dataclasses.replace(made.comparison(known=False), projection=None)
    for plot in (plot_auroc, plot_found):
        with pytest.raises(ValueError, match="no true circuit of 'made-up' is known"):
            plot(bare)
    with pytest.raises(ValueError, match="has no token graph"):
        plot_projection(bare)


@pytest.mark.parametrize("plot", PLOTS)
def test_a_comparison_without_methods_is_refused(plot) -> None:
    with pytest.raises(ValueError, match="no method to draw"):
        plot(dataclasses.replace(made.comparison(), results=()))


@pytest.mark.parametrize("plot", [*PLOTS, plot_auroc, plot_found, plot_projection])
def test_names_are_text_not_markup(plot) -> None:
    shown = json.dumps(json.loads(plot(made.renamed(made.comparison(), "<b>x</b>")).to_json()))
    assert "&lt;b&gt;x&lt;/b&gt;" in shown
    assert "<b>x" not in shown


def test_one_method_alone_is_drawn() -> None:
    whole = made.comparison()
    alone = dataclasses.replace(whole, results=whole.results[-1:])
    for plot in (*PLOTS, plot_auroc, plot_found):
        assert len(plot(alone).data) >= 1
    assert all(math.isfinite(v) for v in plot_quality(alone).layout.xaxis.range)
