"""Where a curve is measured again: rounds on curves that are known at every size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strace_lens.measures.refinement import FINEST, REFINE, STEP, restored_from, sizes_to_add
from strace_lens.measures.sizes import SIZES

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
