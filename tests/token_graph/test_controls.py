"""The random control: what may follow what, and that chance alone decides the rest."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strace_lens.token_graph.controls import random_ranks
from strace_lens.token_graph.edges import (
    KINDS,
    UNREACHABLE,
    EdgeTensors,
    GraphShape,
    edge_list,
    is_complete,
)
from tests.cases import SHAPES


def edges_in_order(ranks: EdgeTensors, shape: GraphShape) -> list[tuple]:
    """(kind, source, target) of each ranked edge, nodes as (level, token)."""
    chosen = ranks.map(lambda x: x != UNREACHABLE)
    edges = edge_list(shape, chosen)
    columns = (edges.source_level, edges.source_token, edges.target_level, edges.target_token)
    rows = torch.stack((edges.kind, *columns), dim=1)[ranks.flat()[chosen.flat()].argsort()]
    return [(KINDS[k], (sl, st), (tl, tt)) for k, sl, st, tl, tt in rows.tolist()]


@settings(max_examples=100)
@given(SHAPES, st.integers(0, 2**31))
def test_grows_from_the_output_with_residual_and_mlp_edges_first(shape: GraphShape, seed: int):
    ranks = random_ranks(shape, seed)
    assert is_complete(ranks, shape)
    edges = edges_in_order(ranks, shape)
    # In-edges of each node that must be taken before any attention edge once it is reached.
    lifted = Counter(target for kind, _, target in edges if kind != "attention")
    output = (shape.levels - 1, shape.tokens - 1)
    reached, waiting = {output}, lifted[output]
    for kind, source, target in edges:
        assert target in reached
        if kind == "attention":
            assert waiting == 0
        else:
            waiting -= 1
        if source not in reached:
            reached.add(source)
            waiting += lifted[source]


@pytest.mark.parametrize(("parallel", "mlp"), [(False, True), (True, True), (False, False)])
def test_growth_first_follows_the_column_of_the_last_token(parallel: bool, mlp: bool):
    shape = GraphShape(layers=4, heads=2, tokens=6, parallel=parallel, mlp=mlp)
    column = shape.layers * (shape.joins + int(mlp))
    edges = edges_in_order(random_ranks(shape, 3), shape)
    assert {kind for kind, _, _ in edges[:column]} <= {"residual", "mlp"}
    assert {target[1] for _, _, target in edges[:column]} == {shape.tokens - 1}
    assert edges[column][0] == "attention"


def test_a_seed_gives_the_same_ranks_and_another_seed_others():
    shape = GraphShape(layers=2, heads=2, tokens=5)
    torch.manual_seed(11)
    first = random_ranks(shape, 7).flat()
    torch.manual_seed(12)
    state = torch.get_rng_state()
    assert torch.equal(first, random_ranks(shape, 7).flat())
    assert torch.equal(state, torch.get_rng_state())  # the caller's generator is left alone
    assert not torch.equal(first, random_ranks(shape, 8).flat())


def test_attention_edges_come_in_uniformly_random_order():
    shape = GraphShape(layers=1, heads=2, tokens=2, mlp=False)
    draws = 600
    first = Counter()
    for seed in range(draws):
        attention = random_ranks(shape, seed).attention[0, :, 1]
        first[int((attention == 1).flatten().nonzero())] += 1  # rank 0 is the residual edge
    # Four candidates, each Binomial(600, 1/4): mean 150, standard deviation 10.6.
    assert set(first) == {0, 1, 2, 3}
    assert all(abs(n - draws / 4) < 45 for n in first.values())
