"""Functions of a curve over sizes, against hand-worked curves and plain loops."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strace_lens.measures import sizes as m
from strace_lens.measures.sizes import FINEST, STEP, restored_from, sizes_to_add
from strace_lens.utils.choices import REFINE, SIZES


def test_density_by_hand():
    # Over log10 s = -2, -1, 0: (1 + 0.5) / 2 + (0.5 + 0) / 2 = 1, over a range of 2.
    assert m.density(np.array([0.01, 0.1, 1.0]), np.array([1.0, 0.5, 0.0])) == pytest.approx(0.5)
    # Unequal steps of log10 s: 1 wide at mean 0.75, 2 wide at mean 0.25.
    sizes, tv = torch.tensor([1e-3, 1e-2, 1.0]), torch.tensor([1.0, 0.5, 0.0])
    assert m.density(sizes, tv) == pytest.approx((0.75 + 0.5) / 3, abs=1e-6)


@given(
    st.lists(st.integers(1, 10_000), min_size=2, max_size=12, unique=True),
    st.floats(0, 1),
    st.data(),
)
@settings(max_examples=60)
def test_density_is_a_mean_of_the_curve(numerators, level, data):
    sizes = np.array(sorted(numerators)) / 10_000
    assert m.density(sizes, np.full(len(sizes), level)) == pytest.approx(level, abs=1e-12)
    tv = np.array(data.draw(st.lists(st.floats(0, 1), min_size=len(sizes), max_size=len(sizes))))
    area = 0.0
    for i in range(len(sizes) - 1):
        area += (tv[i] + tv[i + 1]) / 2 * math.log10(sizes[i + 1] / sizes[i])
    span = math.log10(sizes[-1] / sizes[0])
    assert m.density(sizes, tv) == pytest.approx(area / span, abs=1e-9)


@pytest.mark.parametrize(
    ("sizes", "tv", "words"),
    [
        ([0.5], [0.1], "at least two sizes; got 1"),
        ([], [], "sizes are empty"),
        ([0.1, 0.1], [0.1, 0.1], "must rise strictly; got 0.1 after 0.1"),
        ([0.5, 0.1], [0.1, 0.1], "must rise strictly; got 0.1 after 0.5"),
        ([0.0, 0.1], [0.1, 0.1], r"must lie in \(0, 1\]; got 0.0"),
        ([0.1, 3.0], [0.1, 0.1], r"must lie in \(0, 1\]; got 3.0"),
        ([0.1, math.nan], [0.1, 0.1], r"must lie in \(0, 1\]; got nan"),
        ([0.1, 1.0], [0.1, math.nan], r"tv must lie in \[0, 1\]; got nan"),
        ([0.1, 1.0], [0.1, 1.1], r"tv must lie in \[0, 1\]; got 1.1"),
        ([0.1, 1.0], [-0.1, 1.0], r"tv must lie in \[0, 1\]; got -0.1"),
    ],
)
def test_density_refuses_bad_curves(sizes, tv, words):
    with pytest.raises(ValueError, match=words):
        m.density(np.array(sizes, dtype=float), np.array(tv, dtype=float))


def test_auc_paper_by_hand():
    # Over log10 s = -2, -1, 0: (1 + 0.5) / 2 + (0.5 + 0) / 2, not divided by the range of 2.
    tv = np.array([1.0, 0.5, 0.0])
    assert m.auc_paper(np.array([0.01, 0.1, 1.0]), tv) == pytest.approx(1.0)
    # No edge at all stands at 1e-8, 8 decades below the whole graph; so does fewer than 1 in 1e8.
    for none in (0.0, 1e-12):
        assert m.auc_paper(np.array([none, 1.0]), np.array([1.0, 0.5])) == pytest.approx(6.0)
    # Two sizes of equally many edges have no area between them.
    repeated = m.auc_paper(np.array([0.01, 0.01, 0.1, 1.0]), np.array([1.0, 1.0, 0.5, 0.0]))
    assert repeated == pytest.approx(1.0)


@given(st.lists(st.integers(0, 200), min_size=2, max_size=12), st.data())
@settings(max_examples=60)
def test_auc_paper_is_an_area_in_decades(edges, data):
    achieved = np.array(sorted(edges)) / 200
    tv = np.array(data.draw(st.lists(st.floats(0, 1), min_size=len(edges), max_size=len(edges))))
    area = 0.0
    for i in range(len(edges) - 1):
        low, high = (max(s, 1e-8) for s in achieved[i : i + 2])
        area += (tv[i] + tv[i + 1]) / 2 * math.log10(high / low)
    assert m.auc_paper(achieved, tv) == pytest.approx(area, abs=1e-9)
    assert m.auc_paper(torch.from_numpy(achieved), torch.from_numpy(tv)) == pytest.approx(area)
    if len(set(edges)) == len(edges) and achieved[0] > 0:
        spanned = math.log10(achieved[-1] / achieved[0])
        assert m.density(achieved, tv) * spanned == pytest.approx(area, abs=1e-9)


@pytest.mark.parametrize(
    ("achieved", "tv", "words"),
    [
        ([0.5], [0.1], "at least two sizes; got 1"),
        ([0.5, 0.1], [0.1, 0.1], "must not fall; got 0.1 after 0.5"),
        ([-0.1, 0.1], [0.1, 0.1], r"must lie in \[0, 1\]; got -0.1"),
        ([0.1, 3.0], [0.1, 0.1], r"must lie in \[0, 1\]; got 3.0"),
        ([0.1, math.nan], [0.1, 0.1], r"must lie in \[0, 1\]; got nan"),
        ([0.1, 1.0], [0.1, math.nan], r"tv must lie in \[0, 1\]; got nan"),
    ],
)
def test_auc_paper_refuses_bad_curves(achieved, tv, words):
    with pytest.raises(ValueError, match=words):
        m.auc_paper(np.array(achieved, dtype=float), np.array(tv, dtype=float))


SAMPLE = np.array([0.001, 0.01, 0.1, 1.0])


@given(st.lists(st.booleans(), min_size=1, max_size=8))
@settings(max_examples=100)
def test_sizes_that_are_enough_against_a_loop(flags):
    sizes = np.arange(1, len(flags) + 1) / len(flags)
    stable, first = math.nan, math.nan
    for i in reversed(range(len(flags))):
        if all(flags[i:]):
            stable = sizes[i]
        if flags[i]:
            first = sizes[i]
    for holds in (np.array(flags), torch.tensor(flags)):
        assert m.smallest_size_from_which(sizes, holds) == pytest.approx(stable, nan_ok=True)
        assert m.first_size_at_which(sizes, holds) == pytest.approx(first, nan_ok=True)


def test_size_for_nucleus_by_hand():
    nuclei = np.array([0.9, 0.1, 0.7, 0.99])  # a match at the smallest size that does not last
    assert m.size_for_nucleus(SAMPLE, nuclei, 0.5) == 0.1
    assert m.size_for_nucleus(SAMPLE, nuclei, 0.05) == 0.001
    assert m.size_for_nucleus(SAMPLE, nuclei, 0.99) == 1.0
    assert math.isnan(m.size_for_nucleus(SAMPLE, np.array([0.9, 0.9, 0.9, 0.8]), 0.9))
    # The first size that shares it, which the authors take, may share it by accident.
    assert m.size_for_nucleus(SAMPLE, nuclei, 0.5, "first") == 0.001
    assert m.size_for_nucleus(SAMPLE, nuclei, 0.95, "first") == 1.0
    assert math.isnan(m.size_for_nucleus(SAMPLE, np.full(4, 0.4), 0.5, "first"))
    with pytest.raises(ValueError, match="rule must be 'stable' or 'first'; got 'last'"):
        m.size_for_nucleus(SAMPLE, nuclei, 0.5, "last")
    # float32(0.7) is less than 0.7
    assert m.size_for_nucleus(SAMPLE, torch.tensor([0.0, 0.7, 0.7, 0.7]), 0.7) == 0.01


def test_sizes_and_flags_are_checked():
    with pytest.raises(ValueError, match="rise strictly"):
        m.smallest_size_from_which(SAMPLE[::-1].copy(), np.ones(4, dtype=bool))
    with pytest.raises(ValueError, match="rise strictly"):
        m.first_size_at_which(SAMPLE[::-1].copy(), np.ones(4, dtype=bool))
    with pytest.raises(ValueError, match="nuclei hold NaN"):
        m.size_for_nucleus(SAMPLE, np.array([0.1, math.nan, 0.1, 0.1]), 0.5)


def test_unequal_shapes_are_refused():
    """Here the run-time type check refuses some of them first; without it each is a ValueError."""
    for call in (
        lambda: m.density(SAMPLE, SAMPLE[:3]),
        lambda: m.density(SAMPLE[:, None], SAMPLE),
        lambda: m.size_for_nucleus(SAMPLE, SAMPLE[:2], 0.5),
        lambda: m.auc_paper(SAMPLE, SAMPLE[:3]),
        lambda: m.first_size_at_which(SAMPLE, np.ones(3, dtype=bool)),
        lambda: m.smallest_size_from_which(SAMPLE, np.ones(3, dtype=bool)),
        lambda: m.smallest_size_from_which(SAMPLE, np.ones(4)),  # pyright: ignore
    ):
        with pytest.raises((ValueError, TypeError), match=r"shape|dimension|one a size|jaxtyping"):
            call()


@pytest.mark.parametrize("p", [0.0, 1.0, -0.1, math.nan])
def test_a_level_outside_0_to_1_is_refused(p):
    with pytest.raises(ValueError, match=r"p must lie in \(0, 1\); got"):
        m.size_for_nucleus(SAMPLE, SAMPLE, p)


EDGES = 50_000
HEAD_MASS = 0.6


def edge_count(size: float) -> int:
    return math.floor(size * EDGES)


def errors(size: float, cliff: float) -> tuple[float, float]:
    """Head and tail error of a curve that falls at a cliff, the tail on to the end."""
    after = size > cliff
    return (0.0 if after else 0.45), (0.4 * (1 - size) if after else 0.5)


def table_of(sizes: list[float], measure: Callable[[float], tuple[float, float]]) -> pd.DataFrame:
    head, tail = np.array([measure(s) for s in sizes]).T
    return pd.DataFrame({"size": sizes, "tv": head + tail, "head_error": head, "tail_error": tail})


def refined(
    sizes: list[float], measure: Callable[[float], tuple[float, float]], most: int = REFINE
) -> list[float]:
    """All rounds of a curve that can be measured at any size."""
    left = most
    while True:
        new = sizes_to_add(table_of(sizes, measure), HEAD_MASS, edge_count, left)
        if not new:
            return sizes
        assert len(new) <= left
        assert not set(new) & set(sizes)
        sizes, left = sorted([*sizes, *new]), left - len(new)


@settings(max_examples=40)
@given(st.floats(2e-3, 0.9))
def test_a_cliff_is_found_to_three_percent_wherever_it_lies(cliff: float) -> None:
    def measure(size: float) -> tuple[float, float]:
        return errors(size, cliff)

    found = refined(list(SIZES), measure)
    assert len(found) <= len(SIZES) + REFINE
    below, above = next((a, b) for a, b in itertools.pairwise(found) if a <= cliff < b)
    narrow = above / below < FINEST
    assert narrow or edge_count(math.sqrt(below * above)) in map(edge_count, (below, above))
    assert restored_from(table_of(found, measure), HEAD_MASS)[0] == above


def test_a_slow_curve_and_a_fine_one_are_left_alone() -> None:
    flat = table_of(list(SIZES), lambda s: (0.0, 0.01 * (1 - s)))
    assert sizes_to_add(flat, HEAD_MASS, edge_count, REFINE) == []
    fine = [0.5 * 1.02**i for i in range(30)]
    steep = table_of(fine, lambda s: errors(s, 0.6))
    assert sizes_to_add(steep, HEAD_MASS, edge_count, REFINE) == []


def test_the_steepest_steps_come_first_then_head_and_tail() -> None:
    # TV moves by 0.3, 0.5 and 0.04 from step to step; the tail is restored within the last.
    table = pd.DataFrame(
        {
            "size": [0.01, 0.04, 0.16, 0.64],
            "head_error": [0.5, 0.3, 0.0, 0.0],
            "tail_error": [0.36, 0.26, 0.06, 0.02],
        }
    )
    table["tv"] = table["head_error"] + table["tail_error"]
    assert sizes_to_add(table, HEAD_MASS, edge_count, 9) == [0.02, 0.08, 0.32]
    assert sizes_to_add(table, HEAD_MASS, edge_count, 2) == [0.02, 0.08]
    assert sizes_to_add(table, HEAD_MASS, edge_count, 1) == [0.08]
    assert sizes_to_add(table, HEAD_MASS, edge_count, 0) == []


def test_a_rise_is_halved_as_a_fall_is() -> None:
    table = pd.DataFrame({"size": [0.01, 0.04], "head_error": [0.0, 0.0], "tail_error": [0.0, 0.2]})
    table["tv"] = table["tail_error"]
    assert sizes_to_add(table, 0.5, edge_count, 5) == [0.02]
    table["tv"] = table["tail_error"] = [0.0, STEP]
    assert sizes_to_add(table, 0.5, edge_count, 5) == []


def test_a_size_that_has_no_edges_of_its_own_is_not_added() -> None:
    table = table_of([0.5, 1.0], lambda s: errors(s, 0.7))
    assert sizes_to_add(table, HEAD_MASS, edge_count, 5) == [0.7071]
    assert sizes_to_add(table, HEAD_MASS, lambda size: 3, 5) == []


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_threshold_outside_0_to_1_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold must lie in"):
        restored_from(table_of([0.5, 1.0], lambda s: errors(s, 0.7)), HEAD_MASS, threshold)


@given(edges=st.integers(1, 10**7), digits=st.integers(1, 5), numerator=st.integers(1, 10**5))
def test_a_fraction_written_in_decimals_is_rounded_down(
    edges: int, digits: int, numerator: int
) -> None:
    written = Fraction(min(numerator, 10**digits), 10**digits)
    assert m.edge_count(float(written), edges) == math.floor(written * edges)


def test_a_size_is_a_count_or_a_fraction() -> None:
    for size, count in ((1, 1), (1.0, 100), (100, 100), (0.005, 0), (0.29, 29)):
        assert m.edge_count(size, 100) == count


@pytest.mark.parametrize("size", [0, -1, 101])
def test_a_number_of_edges_out_of_range_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=rf"must lie in 1\.\.100; got {size}$"):
        m.edge_count(size, 100)


@pytest.mark.parametrize("size", [0.0, -0.5, 1.5, 100.0, math.nan, math.inf])
def test_a_fraction_out_of_range_is_refused(size: float) -> None:
    with pytest.raises(ValueError, match=rf"must lie in \(0, 1\]; got {size} "):
        m.edge_count(size, 100)


@pytest.mark.parametrize("size", [True, False])
def test_what_is_no_size_is_refused(size: bool) -> None:
    with pytest.raises(TypeError, match="or a fraction of them"):
        m.edge_count(size, 100)
