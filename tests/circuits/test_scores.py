"""Scores of edges against sorts and sums written out, and sizes that are none."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strace_lens.circuits.graph import ComponentGraph
from strace_lens.circuits.scores import Scores
from tests.circuits.made import GROUPED, graphs

PARALLEL = ComponentGraph("parallel", layers=2, heads=2, kv_heads=2, parallel=True)


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
    count = max(1, round(share * len(order)))
    circuit = scores.top(count, absolute=absolute)
    assert {tuple(c) for c in circuit.kept.nonzero().tolist()} == set(order[:count])
    assert len(circuit) == count
    assert not bool(circuit.keep[~circuit.exists].any())
    assert circuit.metadata["method"] == "random"
    assert circuit.metadata["absolute"] == absolute


@settings(max_examples=25)
@given(scores=some_scores())
def test_larger_tops_hold_smaller_ones(scores: Scores) -> None:
    tops = [scores.top(count).keep for count in range(1, scores.edges + 1, 5)]
    for smaller, larger in itertools.pairwise(tops):
        assert bool((smaller <= larger).all())


def test_a_fraction_is_of_all_edges_and_rounded_down() -> None:
    values = torch.arange(float(GROUPED.destinations * GROUPED.sources)).view(
        GROUPED.destinations, GROUPED.sources
    )
    scores = Scores(GROUPED, values, method="counted")
    assert len(scores.top(1.0)) == scores.edges == GROUPED.edges
    assert len(scores.top(0.5)) == GROUPED.edges // 2
    assert len(scores.top(1e-9)) == 0
    assert scores.top(1).edge_names() == ["m1->logits"]
    negative = Scores(GROUPED, -values, method="counted")
    assert negative.top(1, absolute=False).edge_names() == ["embed->a0.h0<q>"]
    assert negative.top(1).edge_names() == ["m1->logits"]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (-1, r"1\.\.82; got -1"),
        (0, r"1\.\.82; got 0"),
        (83, r"1\.\.82; got 83"),
        (0.0, r"\(0, 1\]; got 0.0"),
        (1.5, r"\(0, 1\]; got 1.5"),
        (-0.1, r"\(0, 1\]; got -0.1"),
        (float("nan"), r"\(0, 1\]; got nan"),
        (3.0, r"\(0, 1\]; got 3.0"),
    ],
)
def test_a_size_out_of_range_is_an_error(size: int | float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scores(GROUPED, torch.zeros(GROUPED.exists.shape), "none").top(size)


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


@settings(max_examples=25)
@given(scores=some_scores())
def test_scores_of_heads_are_sums_over_the_edges_that_leave_them(scores: Scores) -> None:
    table = scores.to_pandas()
    by_node = table.assign(size=table["score"].abs()).groupby("source")[["score", "size"]].sum()
    constant = table.groupby(["source", *(["position"] if "position" in table else [])])["score"]
    once = bool((constant.nunique() == 1).all())
    for row in scores.heads().itertuples():
        if not once:
            found = by_node.loc[f"a{row.layer}.h{row.head}"].tolist()
            assert [row.score, row.absolute_score] == pytest.approx(found)


def test_scores_of_nodes_count_once() -> None:
    of_source = torch.arange(float(GROUPED.sources)) - 4
    values = of_source * GROUPED.exists
    found = Scores(GROUPED, values, "node-patching").heads()
    truth = [float(of_source[GROUPED.source_index(f"a{n}.h{h}")]) for n in (0, 1) for h in range(4)]
    assert found["score"].tolist() == truth
    assert found["absolute_score"].tolist() == [abs(value) for value in truth]
