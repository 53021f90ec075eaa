"""Names of edges: one for each, read back, none for what is no edge."""

from __future__ import annotations

import pytest

from strace_lens.traces.edges import GraphShape, edge_table
from strace_lens.traces.names import edge_id, edge_names

SHAPES = [
    GraphShape(2, 2, 3),
    GraphShape(3, 1, 4, parallel=True),
    GraphShape(2, 3, 2, mlp=False),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_edge_has_a_name_of_its_own_that_says_its_ends(shape: GraphShape) -> None:
    reachable = shape.reachable()
    names = edge_names(shape, reachable)
    table = edge_table(shape, list("abcd"[: shape.tokens]), reachable)
    assert len(set(names)) == len(names) == shape.edges
    for name, row in zip(names, table.to_dict("records"), strict=True):
        layer, key, query = row["layer"], row["source_position"], row["target_position"]
        if row["kind"] == "attention":
            assert name == f"a{layer}.h{row['head']}@{key}->{query}"
        elif row["kind"] == "mlp":
            assert name == f"m{layer}@{query}"
        else:
            assert name == f"r{layer}.{row['target'].rpartition('_')[2]}@{query}"


@pytest.mark.parametrize("shape", SHAPES)
def test_a_name_leads_back_to_its_edge(shape: GraphShape) -> None:
    reachable = shape.reachable()
    ids = reachable.flat().nonzero()[:, 0].tolist()
    assert [edge_id(shape, name) for name in edge_names(shape, reachable)] == ids


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("a0.h1", SHAPES[0], "is no name of an edge; write 'a3.h2@5->9'"),
        ("a0.h1@0 -> 1", SHAPES[0], "is no name of an edge"),
        ("blocks.0.hook_resid_mid", SHAPES[0], "'r3.mid@5' or 'r3.post@5'$"),
        ("r0@1", SHAPES[1], "'m3@5' or 'r3.post@5'$"),
        ("a2.h0@0->2", SHAPES[0], "2 layers, 2 heads and 3 tokens"),
        ("a0.h2@0->2", SHAPES[0], "none of the 30 edges"),
        ("a0.h0@2->1", SHAPES[0], "none of the 30 edges"),  # backwards
        ("a1.h0@0->1", SHAPES[0], "none of the 30 edges"),  # cannot reach the output
        ("m0@3", SHAPES[0], "none of the 30 edges"),
        ("r0.mid@0", SHAPES[1], "none of the"),
        ("m0@0", SHAPES[2], "none of the"),
    ],
)
def test_a_name_of_no_edge_is_refused(name: str, shape: GraphShape, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        edge_id(shape, name)
