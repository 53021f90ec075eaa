"""Agreement and AUROC against counts by hand, plain loops and scipy."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from strace_lens.circuits.agreement import (
    agreement,
    auroc,
    missed_edges,
    rank_biased_overlap,
)
from strace_lens.circuits.circuit import (
    Circuit,
    circuit_of_edges,
    empty_circuit,
    full_circuit,
)
from strace_lens.circuits.graph import ComponentGraph
from strace_lens.circuits.scores import Scores

GRAPH = ComponentGraph("made", layers=1, heads=1, kv_heads=1)  # embed, a0.h0, m0
EDGES = (
    *("embed->a0.h0<q>", "embed->a0.h0<k>", "embed->a0.h0<v>", "embed->m0", "a0.h0->m0"),
    *("embed->logits", "a0.h0->logits", "m0->logits"),
)
OTHER = ComponentGraph("other", layers=2, heads=1, kv_heads=1)


def scores(*values: float, graph: ComponentGraph = GRAPH) -> Scores:
    """Scores of the edges in the order of `EDGES`; what is no edge holds a lure."""
    made = torch.where(graph.exists, 0.0, 99.0)
    made[graph.exists] = torch.tensor(values, dtype=torch.float32)
    return Scores(graph, made, "made")


LISTS = st.lists(st.integers(-3, 3), min_size=len(EDGES), max_size=len(EDGES))

# ------------------------------------------------------------------ rank-biased overlap


def test_rank_biased_overlap_worked_by_hand():
    # Rankings ABC and BAC: the first one agrees in 0 of 1, then 2 of 2, then 3 of 3.
    a, b = np.array([3.0, 2.0, 1.0]), np.array([2.0, 3.0, 1.0])
    p = 0.8
    by_hand = (1 - p) * (0 + p * 1 + p**2 * 1) + p**3 * 1
    assert rank_biased_overlap(a, b, p) == pytest.approx(by_hand)
    assert by_hand == pytest.approx(p)  # they differ in the first place alone, which weighs 1 - p


def test_rank_biased_overlap_with_ties_worked_by_hand():
    # A, then B and C tied, against A, B, C: 1 of 1; then 3 and 2 items that share 2; then all.
    a, b = np.array([2.0, 1.0, 1.0]), np.array([3.0, 2.0, 1.0])
    p = 0.5
    by_hand = (1 - p) * (1 + p * (2 * 2 / 5) + p**2) + p**3
    assert rank_biased_overlap(a, b, p) == pytest.approx(by_hand)


def slow_overlap(a: list[int], b: list[int], p: float) -> float:
    def first(scores: list[int], depth: int) -> set[int]:
        return {i for i, x in enumerate(scores) if sum(y > x for y in scores) < depth}

    at = []
    for depth in range(1, len(a) + 1):
        mine, other = first(a, depth), first(b, depth)
        at.append(2 * len(mine & other) / (len(mine) + len(other)))
    return (1 - p) * sum(p**d * x for d, x in enumerate(at)) + p ** len(a) * at[-1]


@settings(max_examples=40)
@given(a=LISTS, b=LISTS, p=st.floats(0.05, 0.95))
def test_rank_biased_overlap_is_the_sum_over_depths(a, b, p):
    x, y = np.array(a, dtype=float), np.array(b, dtype=float)
    found = rank_biased_overlap(x, y, p)
    assert found == pytest.approx(slow_overlap(a, b, p))
    assert found == pytest.approx(rank_biased_overlap(y, x, p))
    assert rank_biased_overlap(x, 2 * x + 1, p) == pytest.approx(1)
    assert 0 < found <= 1 + 1e-12


@settings(max_examples=40)
@given(a=LISTS, b=LISTS)
def test_agreement_is_spearman_and_rank_biased_overlap_of_the_edges(a, b):
    found = agreement(scores(*a), scores(*b), absolute=False)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert math.isnan(found["spearman"])
    else:
        assert found["spearman"] == pytest.approx(spearmanr(a, b).statistic)
    assert found["rbo"] == pytest.approx(slow_overlap(a, b, 0.9))
    by_size = agreement(scores(*a), scores(*b))
    assert by_size["rbo"] == pytest.approx(slow_overlap([abs(x) for x in a], [*map(abs, b)], 0.9))


# ------------------------------------------------------------------ against the truth


@settings(max_examples=40)
@given(values=LISTS, true=st.sets(st.sampled_from(EDGES), min_size=1, max_size=len(EDGES) - 1))
def test_auroc_is_the_share_of_pairs_in_the_right_order(values, true):
    truth = circuit_of_edges(GRAPH, true)
    by_name = dict(zip(EDGES, values, strict=True))
    pairs = list(itertools.product(true, set(EDGES) - true))
    right = sum((by_name[t] > by_name[o]) + 0.5 * (by_name[t] == by_name[o]) for t, o in pairs)
    assert auroc(scores(*values), truth, absolute=False) == pytest.approx(right / len(pairs))
    reverse = scores(*(-v for v in values))
    assert auroc(reverse, truth, absolute=False) == pytest.approx(1 - right / len(pairs))


def test_auroc_by_magnitude():
    truth = circuit_of_edges(GRAPH, EDGES[:2])
    made = scores(-9, 8, 1, 2, 3, 4, 5, 6)
    assert auroc(made, truth, absolute=False) == pytest.approx(6 / 12)
    assert auroc(made, truth) == 1.0
    order = dataclasses.replace(made, signed=False)  # no magnitudes where only the order counts
    assert auroc(order, truth) == pytest.approx(6 / 12)


def test_missed_edges_worked_by_hand():
    truth = circuit_of_edges(GRAPH, [EDGES[i] for i in (2, 3, 5, 7)])
    made = scores(8, -7, 6, 1, 5, 4, 0, 2)
    # The best four: edges 0, 1, 2 and 4 by magnitude, 0, 2, 4 and 5 by sign.
    assert missed_edges(made, truth) == (EDGES[7], EDGES[5], EDGES[3])
    assert missed_edges(made, truth, absolute=False) == (EDGES[7], EDGES[3])
    assert missed_edges(made, full_circuit(GRAPH)) == ()


def test_edges_by_position():
    values = torch.zeros(*GRAPH.exists.shape, 2)
    keep = torch.zeros(*GRAPH.exists.shape, 2, dtype=torch.bool)
    d, s = GRAPH.parse_edge("a0.h0->m0")
    values[d, s] = torch.tensor([1.0, 2.0])
    keep[d, s, 0] = True
    made, truth = Scores(GRAPH, values, "made"), Circuit(GRAPH, keep)
    assert missed_edges(made, truth) == ("a0.h0->m0@0",)
    assert auroc(made, truth) == pytest.approx(14 / 15)
    assert agreement(made, made) == pytest.approx({"spearman": 1.0, "rbo": 1.0})


# ------------------------------------------------------------------ bad input

ONE, TWO = scores(*range(8)), Scores(OTHER, torch.zeros(OTHER.exists.shape), "two")
BY_POSITION = Scores(GRAPH, torch.zeros(*GRAPH.exists.shape, 3), "by position")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: agreement(ONE, TWO), "belongs to other"),
        (lambda: auroc(ONE, full_circuit(OTHER)), "belongs to other"),
        (lambda: missed_edges(ONE, full_circuit(OTHER)), "belongs to other"),
        (lambda: agreement(ONE, BY_POSITION), "do not compare"),
        (lambda: auroc(BY_POSITION, full_circuit(GRAPH)), "do not compare"),
        (lambda: missed_edges(BY_POSITION, full_circuit(GRAPH)), "do not compare"),
        (lambda: auroc(ONE, full_circuit(GRAPH)), "true edges and others"),
        (lambda: auroc(ONE, empty_circuit(GRAPH)), "true edges and others"),
        (lambda: missed_edges(ONE, empty_circuit(GRAPH)), "holds no edge"),
    ],
)
def test_bad_input_is_one_clear_error(call, words):
    with pytest.raises(ValueError, match=words):
        call()
