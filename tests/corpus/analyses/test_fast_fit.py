"""The compiled search against ruptures: the same breaks and phases, where fits tie too."""

from __future__ import annotations

import numpy as np
import pytest
import ruptures
from hypothesis import given, settings
from hypothesis import strategies as st

from strace_lens.corpus.analyses.fast_fit import break_points, fast_change_points
from strace_lens.density.phases import change_points
from strace_lens.measures.sizes import SIZES

GRID = np.asarray(SIZES)
LEVELS = st.integers(0, 10).map(lambda k: k / 10)  # equal values, so that fits tie


@st.composite
def curves(draw) -> np.ndarray:
    """Any values, values that repeat, and polylines with and without noise."""
    kind = draw(st.sampled_from(["any", "levels", "polyline", "noisy"]))
    if kind in ("any", "levels"):
        element = st.floats(0, 1, width=32) if kind == "any" else LEVELS
        return np.array(draw(st.lists(element, min_size=len(GRID), max_size=len(GRID))))
    ends = np.array(draw(st.lists(LEVELS, min_size=2, max_size=4)))
    line = np.interp(np.log10(GRID), np.linspace(-5, 0, len(ends)), ends)
    noise = np.random.default_rng(draw(st.integers(0, 99))).normal(0, 0.02, len(GRID))
    return line + noise * (kind == "noisy")


@given(curves())
@settings(max_examples=25)
def test_the_phases_are_those_of_change_points(tv) -> None:
    assert fast_change_points(GRID, tv) == change_points(GRID, tv)


@given(st.integers(9, 60), st.integers(0, 999), st.sampled_from([0, 1, 16]))
@settings(max_examples=60)
def test_the_breaks_are_those_of_ruptures(points, seed, decimals) -> None:
    values = np.random.default_rng(seed).random(points).round(decimals)
    search = ruptures.Dynp(model="clinear", min_size=3, jump=1).fit(values[:, None])
    assert break_points(values) == [search.predict(n_bkps=1), search.predict(n_bkps=2)]


@pytest.mark.parametrize("points", [129, 150, 249])
def test_long_curves_are_summed_in_the_same_order(points) -> None:
    values = np.linspace(0.9, 0.1, points)  # straight: every fit is as good, but for rounding
    search = ruptures.Dynp(model="clinear", min_size=3, jump=1).fit(values[:, None])
    assert break_points(values) == [search.predict(n_bkps=1), search.predict(n_bkps=2)]


def test_three_sizes_are_too_few() -> None:
    assert fast_change_points(GRID[-3:], np.array([1.0, 0.5, 0.0])) == ()
