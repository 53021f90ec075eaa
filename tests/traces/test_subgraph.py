"""Subgraphs as sets of named edges, by Python's own sets; as masks, by the oracle."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import strace_lens as sl
from strace_lens.model.prompts import Prompt
from strace_lens.traces.edges import UNREACHABLE, GraphShape
from strace_lens.traces.exchange import subgraph_from_networkx
from strace_lens.traces.subgraph import Subgraph
from strace_lens.traces.trace import Trace, subgraph_of_edges
from tests import cases, oracle, tiny
from tests.cases import model_of, relative_error

TOKENS = tiny.token_ids(7)
SHAPES = [
    GraphShape(2, 2, 3),
    GraphShape(3, 1, 4, parallel=True),
    GraphShape(2, 3, 2, mlp=False),
]


def random_subgraph(shape: GraphShape, seed: int, share: float = 0.5) -> Subgraph:
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(shape.places, generator=generator)
    kept = (draw < share) & shape.reachable().flat()
    ranks = torch.full((shape.places,), UNREACHABLE, dtype=torch.int32)
    reachable = shape.reachable().flat()
    generator.manual_seed(0)  # one trace for all
    ranks[reachable] = torch.randperm(shape.edges, generator=generator).int()
    strings = tuple("abcd"[: shape.tokens])
    prompt = Prompt("".join(strings), tuple(range(shape.tokens)), strings)
    return Subgraph(
        shape, prompt, shape.split(kept), shape.split(ranks), {"model": "toy", "seed": 0}
    )


@settings(max_examples=25)
@given(shape=st.sampled_from(SHAPES), seed=st.integers(0, 999), share=st.floats(0, 1))
def test_subgraphs_combine_as_the_sets_of_their_names(
    shape: GraphShape, seed: int, share: float
) -> None:
    a, b = random_subgraph(shape, seed, share), random_subgraph(shape, seed + 1)
    ours, theirs = set(a.edge_names()), set(b.edge_names())
    every = set(random_subgraph(shape, 0, 1.1).edge_names())
    assert len(a) == a.edges == len(ours)
    assert len(every) == shape.edges
    assert set((a | b).edge_names()) == ours | theirs
    assert set((a & b).edge_names()) == ours & theirs
    assert set((a - b).edge_names()) == ours - theirs
    assert set((~a).edge_names()) == every - ours
    assert {name for name in every if name in a} == ours
    assert (a | b).metadata == a.metadata


def test_names_come_first_ranked_first() -> None:
    subgraph = random_subgraph(SHAPES[0], 3)
    table = subgraph.to_pandas()
    assert table["rank"].is_monotonic_increasing
    mlp = [
        f"m{row.layer}@{row.source_position}" for row in table.query("kind == 'mlp'").itertuples()
    ]
    assert [name for name in subgraph.edge_names() if name.startswith("m")] == mlp
    assert subgraph_of_edges(subgraph, subgraph.edge_names()).edge_names() == subgraph.edge_names()


def test_what_does_not_combine_is_refused_by_name() -> None:
    mine = random_subgraph(SHAPES[0], 0)
    other = dataclasses.replace(mine.prompt, ids=(5, 6, 7), text="xyz")
    with pytest.raises(ValueError, match="two prompts have no edge in common: 'abc' and 'xyz'"):
        mine | dataclasses.replace(mine, prompt=other)
    with pytest.raises(ValueError, match="two models do not combine: toy and another"):
        mine & dataclasses.replace(mine, metadata={"model": "another"})
    deeper = dataclasses.replace(random_subgraph(GraphShape(3, 2, 3), 0), prompt=mine.prompt)
    with pytest.raises(ValueError, match="two shapes do not combine"):
        mine - deeper
    with pytest.raises(TypeError, match="unsupported operand"):
        mine | {"m0@1"}
    with pytest.raises(TypeError, match="edges go by name"):
        assert 3 in mine
    with pytest.raises(ValueError, match="is no name of an edge"):
        assert "m0" in mine


def test_a_rank_that_is_not_known_is_missing() -> None:
    part = subgraph_from_networkx(random_subgraph(SHAPES[0], 1).to_networkx())
    other = ~part
    assert not part.to_pandas()["rank"].isna().any()
    assert other.to_pandas()["rank"].isna().all()
    assert {data["rank"] for *_, data in other.to_networkx().edges(data=True)} == {None}
    assert len(other.to_pandas()) == len(other)


def test_heads_count_the_edges_of_each_head_and_what_they_weigh() -> None:
    model = model_of("llama")
    trace = sl.extract(sl.token_graph(model, TOKENS))
    for size in (0.3, 40, 1.0):
        table, heads = trace.to_pandas(size).query("kind == 'attention'"), trace.heads(size)
        whole = trace.to_pandas().query("kind == 'attention'")
        total = table["importance"].astype(float).sum()
        assert len(heads) == trace.shape.layers * trace.shape.heads
        for row in heads.itertuples():
            ours = table.query("layer == @row.layer and head == @row.head")
            every = whole.query("layer == @row.layer and head == @row.head")
            assert row.edges == len(ours)
            assert row.share_of_head == pytest.approx(len(ours) / len(every))
            weight = ours["importance"].astype(float).sum()
            assert row.importance == pytest.approx(weight)
            assert row.share_of_importance == pytest.approx(weight / total)
    pd.testing.assert_frame_equal(trace.heads(), (trace.subgraph(1.0)).heads())
    bare = dataclasses.replace(trace, importance=None)
    assert list(bare.heads(0.3).columns) == ["layer", "head", "edges", "share_of_head"]


@pytest.mark.parametrize("name", ["llama", "gptj", "gpt2", *cases.HOOKED[:1]])
def test_a_run_with_hooks_of_any_set_is_the_masked_stream(name: str) -> None:
    """Of unions and complements too, which are prefixes of no ranking."""
    model = model_of(name)
    trace = sl.extract(sl.token_graph(model, TOKENS))
    some = trace.subgraph(0.6) - trace.between(5, 60)
    for subgraph in (some, ~some | trace.subgraph(3)):
        hooks = subgraph.hooks(model)
        with torch.no_grad():
            ours = model.run_with_hooks(trace.prompt.tensor[None], fwd_hooks=hooks)[0, -1]
        assert relative_error(ours, oracle.masked_logits(name, TOKENS, subgraph.kept)) < 1e-4


def test_hooks_refuse_another_model() -> None:
    trace = sl.extract(sl.token_graph(model_of("llama"), TOKENS))
    with pytest.raises(ValueError, match=r"a subgraph of tiny-llama .* does not fit tiny-gptj"):
        trace.subgraph(0.1).hooks(model_of("gptj"))


def test_sizes_are_counts_or_fractions() -> None:
    trace: Trace = sl.extract(sl.token_graph(model_of("llama"), TOKENS))
    assert len(trace.subgraph(7)) == len(trace.to_pandas(7)) == 7
    assert len(trace.subgraph(0.5)) == trace.edges // 2
    assert len(trace.subgraph(1)) == 1
    with pytest.raises(ValueError, match=rf"1\.\.{trace.edges}; got 0"):
        trace.subgraph(0)
    with pytest.raises(TypeError, match="got True"):
        trace.heads(True)
