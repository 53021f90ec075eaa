"""One prompt in several ways: each is the curve that it names, and the words are the numbers'."""

from __future__ import annotations

import dataclasses
import json
import math

import pandas as pd
import pytest

import strace_lens as sl
from strace_lens.density.ways import (
    WAYS,
    dense_share,
    measure_ways,
    read_ways,
    recovered_size,
    top_size,
    way_of,
    ways_summary,
)
from strace_lens.plot.density import plot_ways
from strace_lens.report.tables import NARROW, print_ways, ways_lines
from tests import tiny

SIZES = (0.01, 0.05, 0.1, 0.3, 0.7, 1.0)


@pytest.fixture(scope="module")
def curves():
    model = tiny.bridge("llama")
    graph = sl.token_graph(model, tiny.PROMPT)
    return measure_ways(model, graph, sizes=SIZES)


def test_each_way_is_the_curve_of_its_estimator_and_kinds(curves) -> None:
    model = tiny.bridge("llama")
    graph = sl.token_graph(model, tiny.PROMPT)
    traces = [sl.extract(graph), sl.extract(graph), sl.fisher(model, graph)]
    keeps = [(), ("attention",), ()]
    assert [way.name for way in curves] == ["definition", "attention-kept", "tight"]
    for curve, trace, keep in zip(curves.values(), traces, keeps, strict=True):
        alone = sl.density_curve(model, trace, keep=keep, sizes=SIZES, controls=False)
        assert curve.keep == keep
        assert curve.table["tv"].tolist() == pytest.approx(alone.table["tv"].tolist(), abs=2e-6)


def test_the_share_of_residual_and_mlp_edges_is_counted(curves) -> None:
    for curve in curves.values():
        shape = curve.trace.shape
        dense = (2 * shape.tokens + shape.tokens) * (shape.layers - 1) + 3
        assert dense_share(curve) == pytest.approx(dense / shape.edges)


def test_the_sentences_are_computed_from_the_curves(curves) -> None:
    first, second = read_ways(curves)
    for way, curve in curves.items():
        size = top_size(curve)
        table = curve.table
        if math.isnan(size):
            assert not table["top1"].iloc[-1]
            assert f"at no measured size {way.phrase}" in first
            continue
        assert table[table["size"] >= size]["top1"].all()
        assert not table[table["size"] < size]["top1"].iloc[-1:].any()
        assert f"from s = {size:.3g} on {way.phrase}" in first
    kept = curves[WAYS[1]]
    assert f"{dense_share(kept):.2%}" in second
    held = kept.table.set_index("size").loc[top_size(kept), "ablatable_size"]
    assert f"holds {held:.0%} of them" in second
    assert len(read_ways({WAYS[0]: curves[WAYS[0]]})) == 1


def test_a_target_adds_from_which_size_on_it_is_recovered(capsys) -> None:
    model = tiny.bridge("llama")
    graph = sl.token_graph(model, tiny.PROMPT)
    target = ("Rome", "Paris")
    aimed = measure_ways(model, graph, WAYS[::2], sizes=SIZES, target=target)
    plain, tight = aimed.values()
    assert plain.trace.target is None
    assert tight.trace.target == tight.target == plain.target
    _, second, third = read_ways(aimed)
    assert f"{plain.target_full:.3g} in the full model" in second
    for way, curve in aimed.items():
        size, table = recovered_size(curve), curve.table.set_index("size")["target_recovered"]
        assert (table[size:] >= 0.9).all()
        assert not (table[table.index < size] >= 0.9).iloc[-1:].any()
        assert f"from s = {size:.3g} on {way.phrase}" in second
    assert third == f"Edges {WAYS[2].phrase} are ranked towards it."
    print_ways(aimed)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= NARROW
    (found, _) = ways_summary(aimed)
    assert found["sizes"][-1]["target_recovered"] == pytest.approx(1, abs=1e-4)
    assert json.dumps(ways_summary(aimed), allow_nan=False)


def test_the_table_fits_80_columns_and_holds_every_number(curves, capsys) -> None:
    print_ways(curves)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= NARROW == 80
    four = {**curves, way_of("pruned", ("mlp",)): curves[WAYS[0]]}
    assert max(map(len, ways_lines(four))) <= 80
    rows = [line.split() for line in ways_lines(curves)[3:]]
    assert [float(row[0]) for row in rows] == list(SIZES)
    for row in rows:
        for place, curve in enumerate(curves.values()):
            (own,) = curve.table[curve.table["size"] == float(row[0])].to_dict("records")
            tv, top, head, tail = row[1 + 4 * place : 5 + 4 * place]
            assert (tv, head, tail) == tuple(
                f"{own[name]:.2f}" for name in ("tv", "head_error", "tail_error")
            )
            assert top == ("yes" if own["top1"] else "no")


def test_of_a_long_grid_ten_sizes_are_shown() -> None:
    model = tiny.bridge("llama")
    graph = sl.token_graph(model, tiny.PROMPT)
    curves = measure_ways(model, graph, WAYS[:1], refine=0)
    assert [float(line.split()[0]) for line in ways_lines(curves)[3:]] == [
        *(1e-4, 1e-3, 4e-3, 0.01, 0.02, 0.04, 0.1, 0.2, 0.4, 0.8)
    ]


def test_the_figure_draws_each_way_and_the_share(curves) -> None:
    fig = plot_ways(curves)
    drawn = {
        trace.name: trace
        for trace in fig.data
        if trace.mode == "lines" and trace.hoverinfo == "text"
    }
    assert list(drawn) == [way.title for way in curves]
    for way, curve in curves.items():
        assert list(drawn[way.title].y) == curve.table["tv"].tolist()
    (line,) = fig.layout.shapes
    assert line.x0 == line.x1 == pytest.approx(dense_share(curves[WAYS[0]]))


def test_the_labels_of_dots_lie_on_no_curve_and_on_no_other_label(curves) -> None:
    (way, curve), *_ = curves.items()
    flat = dataclasses.replace(
        curve,
        table=pd.DataFrame(
            {
                **{name: curve.table[name].iloc[:1].repeat(6) for name in curve.table},
                "size": [0.001, 0.01, 0.1, 0.2, 0.4, 1.0],
                "tv": [1.0, 1.0, 0.6, 0.6, 0.2, 0.0],  # flat to the right of the dot
                "top1": [False, False, True, True, True, True],
            }
        ).reset_index(drop=True),
        tops=curve.tops[:1] * 6,
    )
    twice = {way: flat, WAYS[2]: flat}
    labels = [a for a in plot_ways(twice).layout.annotations if a.text == "0.1"]
    places = [(label["xshift"], label["yshift"]) for label in labels]
    assert places == [(8, 6), (-8, -6)]  # above the flat part; then below, aside of the first
    assert {a.text for a in plot_ways(curves).layout.annotations} >= {
        f"{top_size(curve):.2g}" for curve in curves.values() if top_size(curve) > 0
    }


def test_ways_are_known_by_what_they_do() -> None:
    assert way_of("greedy", ("attention",)) == WAYS[1]
    assert way_of("fisher") == WAYS[2]
    assert way_of("greedy", (), "l2").name == "greedy-l2"
    assert way_of("pruned", ("attention", "mlp")).name == "pruned-keep-attention+mlp"
