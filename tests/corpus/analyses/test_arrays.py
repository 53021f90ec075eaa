"""Arrays of a run against its frames, row by row."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from strace_lens.corpus.analyses.all import on_shared_prompts
from strace_lens.corpus.analyses.arrays import (
    added,
    at_sizes,
    divide,
    edges_by,
    every_size,
    frame_of,
    shares,
)
from strace_lens.corpus.analyses.density import density_parts
from strace_lens.corpus.analyses.layer_phases import head_and_tail
from strace_lens.corpus.analyses.sizes import per_prompt, prompt_boundaries, size_needed
from strace_lens.corpus.run_folder import Run
from strace_lens.utils.choices import SIZES
from tests.corpus.synthetic import synthetic_run

RUN = synthetic_run(prompts=3)


def test_a_column_is_laid_out_by_prompt_and_size() -> None:
    found = at_sizes(RUN, "tv")
    for row in RUN.sizes.to_dict("records"):
        assert found[row["prompt"], RUN.grid.tolist().index(row["size"])] == row["tv"]


FINE = tuple(float(s) for s in np.geomspace(0.011, 0.39, 12))


def test_every_size_of_a_prompt_is_there_in_order() -> None:
    run = synthetic_run(prompts=3, added=FINE)
    assert run.grid.tolist() == list(SIZES)
    for prompt, table in enumerate(every_size(run)):
        assert table["size"].tolist() == sorted([*SIZES, *FINE])
        assert table["prompt"].eq(prompt).all()
        assert table["size"][table["refined"]].tolist() == list(FINE)
        assert [int(used.sum()) for used in table["usage"]] == table["edges"].tolist()


@pytest.mark.parametrize(
    "analysis",
    [
        size_needed,
        head_and_tail,
        density_parts,
        per_prompt,
        lambda run: prompt_boundaries(run, resamples=0),
    ],
)
def test_what_is_told_of_a_prompt_uses_the_sizes_added_as_those_of_the_grid(analysis) -> None:
    refined = analysis(synthetic_run(prompts=6, added=FINE))
    whole = analysis(synthetic_run(prompts=6, sizes=sorted([*SIZES, *FINE])))
    grid = analysis(synthetic_run(prompts=6))
    if "auc_paper" in refined:  # the area as the authors compute it, who add no sizes
        assert refined["auc_paper"].equals(grid["auc_paper"])
        refined, whole, grid = (x.drop(columns="auc_paper") for x in (refined, whole, grid))
    pd.testing.assert_frame_equal(refined, whole)
    assert not refined.equals(grid)


def test_shared_prompts_keep_the_sizes_added() -> None:
    texts = ["c", "a", "b"]
    one = synthetic_run(prompts=3, added=FINE, texts=texts, name="one")
    two = synthetic_run(prompts=3, texts=["a", "b", "d"], name="two", seed=1)
    first, _ = on_shared_prompts([one, two])

    def of(run: Run, text: str) -> pd.DataFrame:
        return every_size(run)[run.prompts["text"].tolist().index(text)]

    for text in ("a", "b"):
        pd.testing.assert_frame_equal(of(first, text), of(one, text))


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
