"""Labels, colours and axes that all figures share."""

from __future__ import annotations

import numpy as np
import pytest

from strace_lens.plot.style import (
    COLOURS,
    cell_bounds,
    percent,
    quoted,
    size_axis,
    size_text,
    visible,
)


def test_white_space_of_a_token_is_visible() -> None:
    assert visible(" is") == "·is"
    assert visible("\n\t") == "↵⇥"
    assert quoted(" is\n") == '" is\\n"'


def test_tokens_are_escaped_and_cut() -> None:
    assert visible("<b>&") == "&lt;b&gt;&amp;"
    assert quoted("<b>") == '"&lt;b&gt;"'
    assert visible("abcdefgh", longest=5) == "abcd…"
    assert visible("abcde", longest=5) == "abcde"


def test_every_thing_has_a_colour_of_its_own() -> None:
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_exact_size_and_edges_are_named() -> None:
    assert size_text(0.0012, 1) == "<b>s = 0.0012</b>, 1 edge"
    assert size_text(1.0, 12345) == "<b>s = 1</b>, 12,345 edges"
    assert percent(0.01234) == "1.23 %"


@pytest.mark.parametrize(("smallest", "first"), [(0.3, -5), (1e-5, -5), (3e-7, -7)])
def test_axis_of_sizes_is_logarithmic_with_a_label_a_decade(smallest: float, first: int) -> None:
    axis = size_axis([smallest, 1.0])
    assert axis["type"] == "log"
    assert axis["tickvals"] == pytest.approx([10.0**d for d in range(first, 1)])
    labels = [f"10<sup>−{-d}</sup>" for d in range(first, 0)]
    assert axis["ticktext"] == [*labels, "1"]
    low, high = axis["range"]  # pyright: ignore[reportGeneralTypeIssues]
    assert low < np.log10(smallest)
    assert high > 0


def test_heat_map_columns_meet_half_way_in_log_and_hold_their_size() -> None:
    sizes = np.array([1e-4, 1e-2, 1e-1, 1.0])
    bounds = cell_bounds(sizes)
    assert bounds == pytest.approx([1e-5, 1e-3, 10**-1.5, 10**-0.5, 1.1])
    assert (bounds[:-1] < sizes).all()
    assert (sizes < bounds[1:]).all()


def test_one_size_has_a_heat_map_column() -> None:
    low, high = cell_bounds([0.01])
    assert low < 0.01 < high
