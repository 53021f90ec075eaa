"""Scores: their order, the circuits they give, and what is refused."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strace_lens.component_graph.scores import Scores, edge_count
from tests.component_graph.made import GROUPED, graphs


@st.composite
def some_scores(draw: st.DrawFn) -> Scores:
    """Few distinct values, so that many edges tie; what is no edge scores highest."""
    graph = draw(graphs())
    positions = draw(st.sampled_from([0, 1, 3]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    shape = [graph.destinations, graph.sources] + [positions] * bool(positions)
    values = torch.randint(-2, 3, shape, generator=generator).float()
    exists = graph.exists if not positions else graph.exists[..., None]
    return Scores(graph, torch.where(exists, values, 9.0), method="random", task="words")


def ranked(scores: Scores, *, absolute: bool) -> list[tuple[int, ...]]:
    """All edges as cells, best first, by a plain sort that keeps the model's order in ties."""
    cells = [
        tuple(cell)
        for cell in torch.ones_like(scores.values).nonzero().tolist()
        if scores.graph.exists[cell[0], cell[1]]
    ]
    values = scores.values.abs() if absolute else scores.values
    return sorted(cells, key=lambda cell: -float(values[cell]))


@settings(max_examples=25)
@given(scores=some_scores(), share=st.floats(0, 1), absolute=st.booleans())
def test_the_top_is_the_best_edges_of_a_sort(scores: Scores, share: float, absolute: bool) -> None:
    order = ranked(scores, absolute=absolute)
    assert scores.edges == len(order)
    count = round(share * len(order))
    circuit = scores.top(count, absolute=absolute)
    assert {tuple(c) for c in circuit.kept.nonzero().tolist()} == set(order[:count])
    assert len(circuit) == count
    assert not bool(circuit.keep[~circuit.exists].any())
    assert circuit.made["method"] == "random"
    assert circuit.made["absolute"] == absolute


@settings(max_examples=25)
@given(scores=some_scores())
def test_larger_tops_hold_smaller_ones(scores: Scores) -> None:
    tops = [scores.top(count).keep for count in range(0, scores.edges + 1, 5)]
    for smaller, larger in itertools.pairwise(tops):
        assert bool((smaller <= larger).all())


def test_a_fraction_is_of_all_edges_and_at_least_one() -> None:
    values = torch.arange(float(GROUPED.destinations * GROUPED.sources)).view(
        GROUPED.destinations, GROUPED.sources
    )
    scores = Scores(GROUPED, values, method="counted")
    assert len(scores.top(1.0)) == scores.edges == GROUPED.edges
    assert len(scores.top(0.5)) == round(GROUPED.edges / 2)
    assert scores.top(1e-9).edge_names() == ["m1->logits"]
    assert scores.top(1).edge_names() == ["m1->logits"]
    assert len(scores.top(0)) == 0
    negative = Scores(GROUPED, -values, method="counted")
    assert negative.top(1, absolute=False).edge_names() == ["embed->a0.h0<q>"]
    assert negative.top(1).edge_names() == ["m1->logits"]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (-1, "0..82; got -1"),
        (83, "0..82; got 83"),
        (0.0, r"\(0, 1\]; got 0.0"),
        (1.5, r"\(0, 1\]; got 1.5"),
        (-0.1, r"\(0, 1\]; got -0.1"),
        (float("nan"), r"\(0, 1\]; got nan"),
        (3.0, r"\(0, 1\]; got 3.0"),
    ],
)
def test_a_size_out_of_range_is_an_error(size: int | float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        edge_count(size, GROUPED.edges)


def test_scores_that_are_none_are_an_error() -> None:
    wanted = (GROUPED.destinations, GROUPED.sources)
    for bad in ("nan", "inf", "-inf"):
        values = torch.zeros(wanted)
        values[4, 1] = float(bad)
        with pytest.raises(ValueError, match="scores of 'eap' hold NaN or infinity"):
            Scores(GROUPED, values, method="eap")
    for shape in ((wanted[1], wanted[0]), (*wanted, 2, 2)):
        with pytest.raises(ValueError, match=r"scores of grouped have shape \(19, 11\)"):
            Scores(GROUPED, torch.zeros(shape), method="eap")
