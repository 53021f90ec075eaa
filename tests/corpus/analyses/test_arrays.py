"""Arrays of a run against its frames, row by row."""

from __future__ import annotations

import numpy as np

from strace_lens.corpus.analyses.arrays import added, at_sizes, divide, edges_by, frame_of, shares
from tests.corpus.synthetic import synthetic_run

RUN = synthetic_run(prompts=3)


def test_a_column_is_laid_out_by_prompt_and_size() -> None:
    found = at_sizes(RUN, "tv")
    for row in RUN.sizes.to_dict("records"):
        assert found[row["prompt"], RUN.grid.tolist().index(row["size"])] == row["tv"]


def test_groups_add_up_their_components() -> None:
    of = np.arange(len(RUN.components)) % 3
    counts, graph = edges_by(RUN, of, 4)
    for group in range(4):
        members = [c for c in range(len(of)) if of[c] == group]
        for p in range(3):
            assert graph[p, group] == sum(RUN.reachable[p, c] for c in members)
            for s in range(len(RUN.grid)):
                assert counts[p, s, group] == sum(RUN.usage[p, s, c] for c in members)


def test_added_shares_and_quotients() -> None:
    counts = np.array([[[0, 0], [1, 3], [1, 3], [5, 3]]])
    assert added(counts).tolist() == [[[0, 0], [1, 3], [0, 0], [4, 0]]]
    np.testing.assert_array_equal(
        shares(counts)[0], [[np.nan, np.nan], [0.25, 0.75], [0.25, 0.75], [0.625, 0.375]]
    )
    np.testing.assert_array_equal(
        divide(np.array([[1.0], [0.0]]), np.array([2.0, 0.0])), [[0.5, np.nan], [0.0, np.nan]]
    )


def test_a_frame_has_a_row_for_each_size_and_part() -> None:
    values = np.arange(6.0).reshape(2, 3)
    frame = frame_of(np.array([0.1, 1.0]), {"kind": ["a", "b", "c"]}, {"x": values})
    assert frame["size"].tolist() == [0.1] * 3 + [1.0] * 3
    assert frame["kind"].tolist() == ["a", "b", "c"] * 2
    assert frame["x"].tolist() == list(range(6))
