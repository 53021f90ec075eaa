"""Traces as pandas frames and subgraphs as networkx graphs, there and back."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import strace_lens as sl
from strace_lens.model.prompts import Prompt
from strace_lens.traces.edges import UNREACHABLE, GraphShape, edge_list, hook_name, ranks_of
from strace_lens.traces.exchange import subgraph_from_networkx, trace_from_pandas
from strace_lens.traces.trace import Trace
from tests import tiny
from tests.cases import SHAPES
from tests.plot import made


def random_trace(shape: GraphShape, seed: int) -> Trace:
    """Any ranking of the edges, which is a trace, with importances that are not in its order."""
    generator = torch.Generator().manual_seed(seed)
    reach = shape.reachable().flat()
    ranks = torch.full(reach.shape, UNREACHABLE, dtype=torch.int32)
    ranks[reach] = torch.randperm(shape.edges, generator=generator).int()
    importance = torch.rand(reach.shape, generator=generator) * reach
    strings = tuple(f"t{i}" for i in range(shape.tokens))
    prompt = Prompt("".join(strings), tuple(range(shape.tokens)), strings)
    made_of = {"model": "any"}
    return Trace(shape, prompt, shape.split(ranks), made_of, shape.split(importance))


@pytest.mark.extended
@given(shape=SHAPES, seed=st.integers(0, 999))
def test_a_trace_comes_back_from_its_frame_in_any_order_of_rows(shape, seed) -> None:
    trace = random_trace(shape, seed)
    table = trace.to_pandas().sample(frac=1, random_state=seed)
    back = trace_from_pandas(table, like=trace)
    assert torch.equal(back.ranks.flat(), trace.ranks.flat())
    assert torch.equal(back.importance.flat(), trace.importance.flat())
    assert (back.prompt, back.shape, dict(back.metadata)) == (trace.prompt, shape, {"model": "any"})


def test_a_ranking_of_ones_own_is_not_said_to_be_the_searches() -> None:
    trace = made.curve().trace
    table = trace.to_pandas()
    assert trace.metadata["order"] == "best-first"
    assert trace_from_pandas(table, like=trace).metadata == trace.metadata
    reverse = trace_from_pandas(table.assign(rank=table["rank"].iloc[::-1].to_numpy()), trace)
    given = {"order": "given in the table", "importance": "given in the table"}
    assert (
        reverse.metadata == {n: trace.metadata[n] for n in ("model", "weights", "versions")} | given
    )
    assert repr(reverse).endswith("tokens, given in the table)")
    other = trace_from_pandas(table.assign(importance=2 * table["importance"]), like=trace)
    assert other.metadata == {**trace.metadata, "importance": "given in the table"}
    assert repr(other).endswith("tokens, best-first)")


def test_a_trace_comes_back_from_a_csv_file(tmp_path) -> None:
    trace = made.curve().trace
    trace.to_pandas().to_csv(tmp_path / "trace.csv", index=False)
    back = trace_from_pandas(pd.read_csv(tmp_path / "trace.csv"), like=trace)
    assert torch.equal(back.ranks.flat(), trace.ranks.flat())


@given(shape=SHAPES, seed=st.integers(0, 99), size=st.floats(0.01, 1))
def test_a_frame_says_of_each_edge_what_the_graph_does(shape, seed, size) -> None:
    trace = random_trace(shape, seed)
    table = trace.to_pandas(size)
    assert table["rank"].tolist() == list(range(trace.edge_count(size)))
    edges = edge_list(shape, shape.reachable())
    reach = shape.reachable()
    ranks = torch.cat([r[k] for r, k in zip(trace.ranks, reach, strict=True)])
    for row in table.head(5).to_dict("records"):
        (place,) = (ranks == row["rank"]).nonzero()[:, 0].tolist()
        level, token = int(edges.source_level[place]), int(edges.source_token[place])
        assert (row["source"], row["source_position"]) == (hook_name(shape, level), token)
        assert row["source_token"] == f"t{token}"
        assert row["layer"] == int(edges.layer[place])
        assert pd.isna(row["head"]) == (row["kind"] != "attention")


def test_a_graph_of_another_trace_is_ranked_by_a_frame() -> None:
    graph = sl.token_graph(tiny.bridge("llama"), tiny.PROMPT)
    table = made.curve().trace.to_pandas().drop(columns="importance")
    back = trace_from_pandas(table, like=graph)
    assert torch.equal(back.ranks.flat(), made.curve().trace.ranks.flat())
    assert back.importance is None
    assert back.metadata["order"] == "given in the table"


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (lambda t: t.drop(columns="target"), "columns are missing: target"),
        (lambda t: t.iloc[1:], "rank 0 is missing: a trace ranks all"),
        (lambda t: t.assign(rank=0), "rows 0 and 1 have the same rank"),
        (lambda t: t.assign(rank=-1), r"row 0: rank -1 lies outside 0\.\."),
        (lambda t: pd.concat([t, t.tail(1)]), "name the same edge"),
        (lambda t: t.assign(kind="wire"), "row 0: kind 'wire' is none of the graph"),
        (lambda t: t.assign(source_position=99), "is none of the [0-9,]+ that reach the output"),
        (lambda t: t.assign(importance=float("nan")), "importance nan is no number"),
    ],
)
def test_a_frame_that_is_no_trace_is_refused_by_its_row(table, reason) -> None:
    trace = made.curve().trace
    with pytest.raises(ValueError, match=reason):
        trace_from_pandas(table(trace.to_pandas()), like=trace)


# Rows 0 to 11 of this trace are the attention edges of layer 0, by head, query and key.
SMALL = GraphShape(2, 2, 3)
IN_ORDER = Trace(
    SMALL,
    Prompt("abc", (0, 1, 2), tuple("abc")),
    ranks_of(SMALL.reachable().flat().nonzero()[:, 0], SMALL),
)


@pytest.mark.parametrize(
    ("row", "column", "value", "reason"),
    [
        (4, "source", "blocks.7.hook_x", r"source 'blocks\.7\.hook_x' is none of the graph"),
        (3, "head", None, "edge 'attention of layer 0, .* is none of the 30 that reach"),
        (3, "head", 2, "edge 'attention of layer 0 head 2, "),
        (5, "layer", 1, "edge 'attention of layer 1 head 0, "),
        (0, "source_position", 1, "edge .*@1 to .*@0'"),  # a key behind its query
        (5, "target_position", 3, "edge .*@3'"),
        (5, "target_position", 1.5, "target_position 1.5 is no whole number"),
        (5, "target_position", "x", "target_position 'x' is no number"),
        (7, "rank", 30, r"rank 30 lies outside 0\.\.29"),
        (7, "rank", None, "rank None is no number"),
    ],
)
def test_the_one_cell_that_is_wrong_is_named(row, column, value, reason) -> None:
    table = IN_ORDER.to_pandas().astype({column: object})
    table.loc[row, column] = value
    with pytest.raises(ValueError, match=f"row {row}: {reason}"):
        trace_from_pandas(table, like=IN_ORDER)


def test_edges_removed_in_networkx_are_gone() -> None:
    graph = IN_ORDER.first(20).to_networkx()
    edges = list(graph.edges(keys=True, data="kind"))
    heads = [edge[:3] for edge in edges if edge[3] == "attention"]
    graph.remove_edges_from(heads)
    back = subgraph_from_networkx(graph)
    assert back.edges == 20 - len(heads) > 0
    assert not bool(back.kept.attention.any())


@pytest.mark.extended
@given(shape=SHAPES, seed=st.integers(0, 99), size=st.floats(0.01, 1))
def test_a_subgraph_comes_back_from_networkx(shape, seed, size) -> None:
    subgraph = random_trace(shape, seed).subgraph(size)
    back = subgraph_from_networkx(subgraph.to_networkx())
    kept = subgraph.kept.flat()
    assert torch.equal(back.kept.flat(), kept)
    assert torch.equal(back.ranks.flat()[kept], subgraph.ranks.flat()[kept])
    assert (back.ranks.flat()[~kept] == UNREACHABLE).all()


def test_a_graph_of_other_origin_is_refused() -> None:
    graph = made.curve().trace.first(4).to_networkx()
    del graph.graph["shape"]
    with pytest.raises(ValueError, match="does not say which token graph"):
        subgraph_from_networkx(graph)
    graph = made.curve().trace.first(4).to_networkx()
    edge = next(iter(graph.edges(keys=True)))
    del graph.edges[edge]["kind"]
    with pytest.raises(ValueError, match="has no attribute kind"):
        subgraph_from_networkx(graph)
    graph = IN_ORDER.first(4).to_networkx()
    graph.add_edge("input", "output", kind="mlp", layer=0, rank=9)
    with pytest.raises(ValueError, match="edge input -> output: nodes are pairs"):
        subgraph_from_networkx(graph)
    graph = IN_ORDER.first(4).to_networkx()
    graph.graph["prompt"] = Prompt("ab", (0, 1), tuple("ab"))
    with pytest.raises(ValueError, match="the prompt has 2 tokens, its graph 3"):
        subgraph_from_networkx(graph)
