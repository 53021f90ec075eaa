"""Phases on curves whose shape is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import strace_lens as sl
from strace_lens.density.phases import change_points, find_phases
from tests import tiny

LOG = np.linspace(-5, 0, 27)
SIZES = 10**LOG


def piecewise(*points: tuple[float, float]) -> np.ndarray:
    at, tv = zip(*points, strict=True)
    return np.interp(LOG, at, tv)


def test_three_pieces_are_found_where_they_were_put():
    phases = change_points(SIZES, piecewise((-5, 1.0), (-3, 0.95), (-2, 0.2), (0, 0.0)))
    assert [p.name for p in phases] == ["plateau", "construction", "refinement"]
    plateau, construction, refinement = phases
    assert np.log10(construction.start) == pytest.approx(-3, abs=0.15)
    assert np.log10(construction.stop) == pytest.approx(-2, abs=0.15)
    assert plateau.stop == construction.start
    assert construction.stop == refinement.start
    assert refinement.stop == pytest.approx(1.0)
    assert construction.tv_stop == pytest.approx(0.2, abs=0.08)


def test_a_straight_fall_is_one_construction():
    (only,) = change_points(SIZES, piecewise((-5, 1.0), (0, 0.0)))
    assert (only.name, only.start, only.stop) == ("construction", *map(pytest.approx, (1e-5, 1.0)))


def test_two_pieces_have_no_plateau():
    phases = change_points(SIZES, piecewise((-5, 1.0), (-3, 0.2), (0, 0.0)))
    assert [p.name for p in phases] == ["construction", "refinement"]


def test_noise_below_a_percent_adds_no_phase():
    noise = np.random.default_rng(0).normal(0, 0.003, len(LOG))
    assert len(change_points(SIZES, piecewise((-5, 1.0), (0, 0.0)) + noise)) == 1


@pytest.mark.parametrize("tv", [np.ones(27), piecewise((-5, 0.05), (0, 0.0))])
def test_a_curve_that_does_not_fall_has_no_phases(tv):
    assert change_points(SIZES, tv) == ()


def test_a_fall_narrower_than_a_piece_of_the_grid_is_found():
    sizes = np.unique([*SIZES, *np.geomspace(0.2, 0.4, 30)])
    tv = np.interp(np.log10(sizes), np.log10([1e-5, 0.3, 0.33, 1]), [0.99, 0.97, 0.1, 0.0])
    _, construction, _ = change_points(sizes, tv, 30)
    for name, where in (("start", 0.3), ("stop", 0.33)):
        found = getattr(construction, name)
        below, above = getattr(construction, f"{name}_between")
        assert found == pytest.approx(where, rel=0.025)
        assert below < where < above
        assert above / below < 1.06


def test_a_boundary_lies_between_the_sizes_measured_around_it():
    plateau, construction, refinement = change_points(
        SIZES, piecewise((-5, 1.0), (-3, 0.95), (-2, 0.2), (0, 0.0))
    )
    assert plateau.start_between is None
    assert refinement.stop_between is None
    assert plateau.stop_between == construction.start_between
    for at, (below, above) in (
        (construction.start, construction.start_between),
        (construction.stop, construction.stop_between),
    ):
        assert below < at < above
        assert {below, above} <= set(SIZES)
        between = [size for size in SIZES if below < size < above]
        assert between in ([], [pytest.approx(at)])


def test_refined_sizes_do_not_make_more_phases():
    # 27 sizes of noise under which one line is best, read off more finely where it is steepest.
    noise = np.random.default_rng(1).normal(0, 0.005, len(LOG))
    tv = piecewise((-5, 1.0), (0, 0.0)) + noise
    added = np.setdiff1d(np.geomspace(1e-3, 0.9, 200), SIZES)
    sizes = np.sort([*SIZES, *added])
    again = np.interp(np.log10(sizes), LOG, tv)
    assert len(change_points(SIZES, tv)) == 1
    assert len(change_points(sizes, again, len(added))) == 1
    assert len(change_points(sizes, again)) > 1


def test_three_sizes_are_too_few():
    assert change_points(SIZES[-3:], np.array([1.0, 0.5, 0.0])) == ()


@pytest.fixture(scope="module")
def curve() -> sl.DensityCurve:
    """The curve of a tiny model, on a grid fine enough for its few edges."""
    model = tiny.bridge("llama")
    trace = sl.extract(sl.token_graph(model, tiny.token_ids(8)))
    return sl.density_curve(model, trace, sizes=np.linspace(0.02, 1, 50).tolist(), refine=0)


@pytest.mark.parametrize("name", ["mistral", "gptj"])
@pytest.mark.parametrize("grid", [(0.005, 0.02, 0.1, 0.3, 0.7, 1.0), (0.005, 0.05, 0.2, 0.5, 1.0)])
def test_the_boundaries_of_a_refined_curve_do_not_depend_on_its_grid(name, grid):
    model = tiny.bridge(name)
    trace = sl.extract(sl.token_graph(model, tiny.token_ids(14)))
    by_hand, coarse, plain = (
        find_phases(sl.density_curve(model, trace, sizes=sizes, refine=most, controls=False))
        for sizes, most in ((np.geomspace(0.005, 1, 150).tolist(), 0), (grid, 12), (grid, 0))
    )

    def boundaries(phases: sl.Phases) -> list[tuple[float, tuple[float, float]]]:
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
