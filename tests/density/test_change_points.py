"""Change points of curves whose shape is known; the compiled search against ruptures."""

from __future__ import annotations

import numpy as np
import pytest
import ruptures
from hypothesis import given, settings
from hypothesis import strategies as st

from strace_lens.density.change_points import GRID, break_points, change_points

LOG = np.linspace(-5, 0, 27)
SIZES = 10**LOG
LEVELS = st.integers(0, 10).map(lambda k: k / 10)  # equal values, so that fits tie


@st.composite
def curves(draw) -> np.ndarray:
    """Any values, values that repeat, and polylines with and without noise."""
    kind = draw(st.sampled_from(["any", "levels", "polyline", "noisy"]))
    if kind in ("any", "levels"):
        element = st.floats(0, 1, width=32) if kind == "any" else LEVELS
        return np.array(draw(st.lists(element, min_size=len(LOG), max_size=len(LOG))))
    ends = np.array(draw(st.lists(LEVELS, min_size=2, max_size=4)))
    line = np.interp(LOG, np.linspace(-5, 0, len(ends)), ends)
    noise = np.random.default_rng(draw(st.integers(0, 99))).normal(0, 0.02, len(LOG))
    return line + noise * (kind == "noisy")


def ruptures_breaks(values: np.ndarray) -> list[list[int]]:
    search = ruptures.Dynp(model="clinear", min_size=3, jump=1).fit(values[:, None])
    return [search.predict(n_bkps=1), search.predict(n_bkps=2)]


@pytest.mark.extended
@given(curves())
@settings(max_examples=25)
def test_the_breaks_of_a_curve_are_those_of_ruptures_where_fits_tie_too(tv) -> None:
    values = np.interp(np.linspace(-5, 0, GRID), LOG, tv)
    assert break_points(values) == ruptures_breaks(values)


@given(st.integers(9, 60), st.integers(0, 999), st.sampled_from([0, 1, 16]))
@settings(max_examples=60)
def test_the_breaks_are_those_of_ruptures(points, seed, decimals) -> None:
    values = np.random.default_rng(seed).random(points).round(decimals)
    assert break_points(values) == ruptures_breaks(values)


@pytest.mark.parametrize("points", [129, 150, 249])
def test_long_curves_are_summed_in_the_same_order(points) -> None:
    values = np.linspace(0.9, 0.1, points)  # straight: every fit is as good, but for rounding
    assert break_points(values) == ruptures_breaks(values)


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
