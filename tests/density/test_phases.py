"""Phases of the curves of tiny models."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import strace_lens as sl
from strace_lens.density.change_points import Phase
from strace_lens.density.phases import Phases, find_phases
from tests import tiny


@pytest.fixture(scope="module")
def curve() -> sl.DensityCurve:
    """The curve of a tiny model, on a grid fine enough for its few edges."""
    model = tiny.bridge("llama")
    trace = sl.extract(sl.token_graph(model, tiny.token_ids(8)))
    return sl.density_curve(model, trace, sizes=np.linspace(0.02, 1, 50).tolist(), refine=0)


@pytest.mark.extended
@pytest.mark.parametrize("name", ["mistral", "gptj"])
@pytest.mark.parametrize("grid", [(0.005, 0.02, 0.1, 0.3, 0.7, 1.0), (0.005, 0.05, 0.2, 0.5, 1.0)])
def test_the_boundaries_of_a_refined_curve_do_not_depend_on_its_grid(name, grid):
    model = tiny.bridge(name)
    trace = sl.extract(sl.token_graph(model, tiny.token_ids(14)))
    by_hand, coarse, plain = (
        find_phases(sl.density_curve(model, trace, sizes=sizes, refine=most, controls=False))
        for sizes, most in ((np.geomspace(0.005, 1, 150).tolist(), 0), (grid, 12), (grid, 0))
    )

    def boundaries(phases: Phases) -> list[tuple[float, tuple[float, float]]]:
        construction = phases.get("construction")
        assert construction is not None
        assert construction.stop_between is not None
        assert phases.head is not None
        assert phases.tail is not None
        layers = [(phase.stop, phase.stop_between) for phase in (phases.head, phases.tail)]
        return [(construction.stop, construction.stop_between), *layers]

    fine, refined, fixed = map(boundaries, (by_hand, coarse, plain))
    for (at, (a, b)), (found, (c, d)) in zip(fine, refined, strict=True):
        assert max(a, c) <= min(b, d)
        assert found == pytest.approx(at, rel=0.1)
    assert any(
        found != pytest.approx(at, rel=0.5) for (at, _), (found, _) in zip(fine, fixed, strict=True)
    )


def first_for_good(sizes: list[float], holds: list[bool]) -> float:
    return next(s for i, s in enumerate(sizes) if all(holds[i:]))


def test_layer_phases_start_where_the_errors_stay_small(curve):
    phases = find_phases(curve)
    sizes = curve.table["size"].tolist()
    head = first_for_good(sizes, [e < 0.1 * curve.head_mass for e in curve.table["head_error"]])
    tail = first_for_good(
        sizes, [e < 0.1 * (1 - curve.head_mass) for e in curve.table["tail_error"]]
    )
    assert phases.head is not None
    assert phases.tail is not None
    assert phases.head.stop == head
    assert (phases.tail.start, phases.tail.stop) == (head, max(head, tail))
    assert phases.head.edges == curve.trace.edge_count(head)
    for phase in (phases.head, phases.tail):
        below = [s for s in sizes if s < phase.stop][-1]
        assert phase.stop_between == (below, phase.stop)
    assert phases.layer_table()["not_yet_at"].tolist() == [
        phases.head.stop_between[0],
        phases.tail.stop_between[0],
    ]


def test_layer_profiles_count_the_edges_between_two_ranks(curve):
    phases = find_phases(curve)
    trace = curve.trace
    for phase in (phases.head, phases.tail):
        assert phase is not None
        inside = trace.ranks.map(lambda r, p=phase: (r >= p.first) & (r < p.last))
        by_layer = [
            int(inside.attention[n].sum() + inside.residual[n].sum() + inside.mlp[n].sum())
            for n in range(trace.shape.layers)
        ]
        reachable = trace.shape.reachable()
        there = [
            int(reachable.attention[n].sum() + reachable.residual[n].sum() + reachable.mlp[n].sum())
            for n in range(trace.shape.layers)
        ]
        assert phase.counts.sum(0).tolist() == by_layer
        assert phase.kinds["mlp"] == int(inside.mlp.sum())
        assert phase.share_of_layer.tolist() == pytest.approx(
            [a / b for a, b in zip(by_layer, there, strict=True)]
        )
        mean = sum(n * c for n, c in enumerate(by_layer)) / sum(by_layer)
        assert phase.mean_layer == pytest.approx(mean)


def test_the_subgraphs_of_the_phases_are_the_edges_between_two_sizes(curve):
    phases, trace = find_phases(curve), curve.trace
    head, tail = phases.head.subgraph, phases.tail.subgraph
    by_rank = {row["rank"]: row for row in trace.to_pandas().to_dict("records")}
    for subgraph, phase in ((head, phases.head), (tail, phases.tail)):
        found = subgraph.to_pandas()
        assert found["rank"].tolist() == list(range(phase.first, phase.last))
        assert found.to_dict("records") == [by_rank[rank] for rank in found["rank"]]
        assert len(subgraph) == phase.edges
    assert len(head) > 0
    assert len(tail) > 0
    assert len(head & tail) == 0
    assert (head | tail).edge_names() == trace.subgraph(phases.tail.stop).edge_names()


def test_a_curve_that_restores_nothing_says_so(curve):
    short = dataclasses.replace(curve, table=curve.table.iloc[:3])
    phases = find_phases(short)
    assert phases.head is None
    assert phases.tail is None
    assert len(phases.layer_table()) == 0
    assert "at least four sizes" in phases.describe()


@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0])
def test_a_threshold_outside_0_to_1_is_refused(curve, threshold):
    with pytest.raises(ValueError, match="threshold must lie in"):
        find_phases(curve, threshold)


def test_a_sentence_says_how_far_tv_falls_and_between_which_sizes():
    along = (
        Phase("plateau", 1e-5, 0.29, 1.0, 0.97, None, (0.2, 0.3)),
        Phase("construction", 0.29, 0.38, 0.97, 0.124, (0.2, 0.3), (0.36, 0.4)),
        Phase("refinement", 0.38, 1.0, 0.124, 1e-7, (0.36, 0.4), None),
    )
    assert Phases(along, None, None).describe() == (
        "TV falls from 0.97 to 0.12 between s = 0.29 and 0.38 (construction), then slowly to 0 at "
        "1 (refinement); construction starts between the measured sizes 0.2 and 0.3 and ends "
        "between the measured sizes 0.36 and 0.4"
    )
    short = Phases(along[:2], None, None).describe()
    assert "38 (construction), no refinement phase follows; construction starts" in short
