"""The integer program against every subset of a tiny graph's edges, and orders between two."""

from __future__ import annotations

import itertools

import pytest
import torch

from strace_lens.circuits import integer_program
from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.graph import ComponentGraph
from strace_lens.circuits.scores import Scores
from strace_lens.circuits.select_edges import Selection, best_connected, ratio_order

SMALL = (
    ComponentGraph("one", layers=1, heads=2, kv_heads=1, mlp=True),
    ComponentGraph("attention", layers=2, heads=1, kv_heads=1, mlp=False),
)


def scores_of(graph: ComponentGraph, seed: int, *, signed: bool = True) -> Scores:
    values = torch.randn(graph.exists.shape, generator=torch.Generator().manual_seed(seed))
    return Scores(graph, values * graph.exists, "drawn", signed=signed)


def best_by_hand(scores: Scores, size: int, *, absolute: bool) -> float:
    """The greatest sum over all subsets of which no edge is off a path."""
    values = scores.values.abs() if absolute else scores.values
    cells, best = scores.graph.exists.nonzero().tolist(), 0.0
    for count in range(1, size + 1):
        for chosen in itertools.combinations(cells, count):
            keep = torch.zeros_like(scores.graph.exists)
            for cell in chosen:
                keep[tuple(cell)] = True
            if len(Circuit(scores.graph, keep).connected()) == count:
                best = max(best, float(values[keep].sum()))
    return best


@pytest.mark.parametrize("graph", SMALL, ids=str)
@pytest.mark.parametrize("absolute", [True, False])
def test_it_is_the_best_of_all_subsets(graph: ComponentGraph, absolute: bool) -> None:
    better = 0
    for seed in range(4):
        scores = scores_of(graph, seed)
        for size in (2, 3)[: 1 + (seed == 0)]:
            found = best_connected(scores, size, absolute=absolute)
            assert len(found) <= size
            assert len(found.connected()) == len(found)
            values = scores.values.abs() if absolute else scores.values
            worth = float(values[found.keep].sum())
            assert worth == pytest.approx(best_by_hand(scores, size, absolute=absolute))
            greedy = scores.top(size, absolute=absolute).connected()
            better += worth > float(values[greedy.keep].sum()) + 1e-6
    assert better > 0


@pytest.mark.parametrize("absolute", [True, False])
def test_few_columns_give_the_optimum_of_the_whole_program(
    absolute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The program with a column for each edge is the one that brute force checks above.
    graph = ComponentGraph("three", layers=3, heads=4, kv_heads=2)
    fewer = []
    for seed in range(3):
        scores = scores_of(graph, seed)
        values = scores.values.abs() if absolute else scores.values
        for size in (1, 4, 12, 40):
            whole = best_connected(scores, size, absolute=absolute)
            with monkeypatch.context() as patched:
                patched.setattr(integer_program, "ALL", 0)
                patched.setattr(integer_program, "_MORE", 0)
                few = best_connected(scores, size, absolute=absolute)
            assert len(few) <= size
            assert len(few.connected()) == len(few)
            worth = float(values[few.keep].sum())
            assert worth == pytest.approx(float(values[whole.keep].sum()), rel=1e-5)
            fewer.append(worth < float(values[scores.top(size, absolute=absolute).keep].sum()))
    assert any(fewer)  # else the best edges are connected anyway


def test_a_graph_of_many_edges_is_solved_in_columns() -> None:
    graph = ComponentGraph("many", layers=8, heads=6, kv_heads=3)
    assert graph.edges > 2 * integer_program.ALL
    scores = scores_of(graph, 0)
    found = best_connected(scores, 60)
    assert len(found.connected()) == len(found) == 60
    worth, top = (float(scores.values.abs()[c.keep].sum()) for c in (found, scores.top(60)))
    loose = float(scores.values.abs()[scores.top(60).connected().keep].sum())
    assert loose < worth < top


def test_a_solver_that_has_no_time_says_so() -> None:
    scores = scores_of(ComponentGraph("many", layers=8, heads=6, kv_heads=3), 0)
    with pytest.raises(RuntimeError, match=r"no best circuit of 60 of [\d,]+ edges was found"):
        best_connected(scores, 60, seconds=0.0)


def test_all_edges_and_one() -> None:
    scores = scores_of(ComponentGraph("two", layers=2, heads=2, kv_heads=1), 0)
    assert len(best_connected(scores, scores.graph.edges)) == scores.graph.edges
    assert len(best_connected(scores, 1.0)) == scores.graph.edges
    assert len(best_connected(scores, 1e-6)) == 0
    assert len(best_connected(scores, 1)) == 1  # from the embedding to the logits


def test_bad_sizes_and_scores_by_position_are_refused() -> None:
    scores = scores_of(SMALL[0], 0)
    with pytest.raises(ValueError, match=r"must lie in 1\.\.\d+; got 1200"):
        best_connected(scores, 1200)
    wide = Scores(scores.graph, scores.values[..., None].expand(-1, -1, 2), "drawn")
    with pytest.raises(ValueError, match="alike at every position"):
        best_connected(wide, 2)


# ------------------------------------------------------------------ by sign and by magnitude


def by_ratio(scores: Scores, size: int, share: float) -> set[int]:
    """Cells of the edges that help most, so many by share, and of the largest that are left."""
    values = {int(at): float(scores.values.flatten()[at]) for at in scores.order().tolist()}
    positive = sorted((at for at in values if values[at] > 0), key=lambda at: -values[at])
    first = positive[: int(share * size + 1e-9)]
    rest = sorted((at for at in values if at not in first), key=lambda at: -abs(values[at]))
    return {*first, *rest[: size - len(first)]}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.75, 1.0])
def test_of_every_size_a_share_is_by_sign_and_the_rest_by_magnitude(share: float) -> None:
    scores = scores_of(ComponentGraph("two", layers=2, heads=2, kv_heads=1), 3)
    order = ratio_order(scores, share).tolist()
    assert sorted(order) == sorted(scores.order().tolist())
    selection = Selection(scores, how=f"ratio:{share}")
    for size in range(1, scores.graph.edges + 1):
        wanted = by_ratio(scores, size, share)
        assert set(order[:size]) == wanted
        circuit = selection.circuit(size, absolute=True)
        assert set(circuit.keep.flatten().nonzero()[:, 0].tolist()) == wanted
        assert selection.same_by_sign(size)
    if share == 0:
        assert order == scores.order(absolute=True).tolist()
    if share == 1:
        positive = int((scores.values > 0).sum())
        assert order[:positive] == scores.order(absolute=False).tolist()[:positive]


def test_a_program_selects_at_every_size() -> None:
    scores = scores_of(SMALL[0], 5)
    selection = Selection(scores, how="program")
    for size in range(1, scores.graph.edges):
        for absolute in (True, False):
            found = selection.circuit(size, absolute=absolute)
            assert torch.equal(found.keep, best_connected(scores, size, absolute=absolute).keep)
        assert not selection.same_by_sign(size)
    assert selection.same_by_sign(0)
    assert selection.same_by_sign(scores.graph.edges)


def test_rankings_by_sign_and_magnitude_are_told_apart_by_the_edges_that_they_keep() -> None:
    scores = scores_of(SMALL[0], 5)
    for how in ("top", "greedy"):
        selection = Selection(scores, how=how)
        for size in range(1, scores.graph.edges + 1):
            one = selection.circuit(size, absolute=True)
            other = selection.circuit(size, absolute=False)
            assert selection.same_by_sign(size) == torch.equal(one.keep, other.keep)
        assert selection.same_by_sign(0)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("ratio:1.5", r"a number in \[0, 1\], as 'ratio:0.7'; got 'ratio:1.5'"),
        ("ratio:half", "got 'ratio:half'"),
        ("ratios", "unknown selection 'ratios'; choose from top, greedy, ratio, program"),
    ],
)
def test_bad_ratios_are_refused(how: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Selection(scores_of(SMALL[0], 0), how=how)


def test_scores_without_signs_have_no_ratio() -> None:
    with pytest.raises(ValueError, match="scores of drawn have no sign, only an order"):
        Selection(scores_of(SMALL[0], 0, signed=False), how="ratio")
