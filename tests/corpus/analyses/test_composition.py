"""Composition of a made-up corpus against counts edge by edge, prompt by prompt."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from strace_lens.corpus.analyses.composition import (
    kinds_by_size,
    layers_by_size,
    quarters_by_size,
)
from strace_lens.corpus.run_folder import Run
from strace_lens.measures.intervals import interval
from tests.corpus.synthetic import synthetic_run

RUN = synthetic_run(prompts=5, layers=6)
LOW_SIZES = (1e-3, 4e-3, 1e-2, 0.1, 1.0)
SPARSE = synthetic_run(prompts=6, sizes=LOW_SIZES)  # some of its traces have no edge


def prompt_shares(run: Run, s: int, holds, before: bool = False) -> list[float]:
    """What share of each prompt's edges at a size is of components that hold; only of some."""
    found = []
    for p in range(len(run.prompts)):
        here = run.usage[p, s].astype(int)
        if before and s:
            here = here - run.usage[p, s - 1]
        ours = sum(
            n for n, c in zip(here, run.components.to_dict("records"), strict=True) if holds(c)
        )
        if here.sum():
            found.append(ours / here.sum())
    return found


def check(run: Run, row: dict, holds) -> None:
    s = run.grid.tolist().index(row["size"])
    for column, prompts, ends, before in (
        ("share", "prompts", ("low", "high"), False),
        ("marginal", "marginal_prompts", ("marginal_low", "marginal_high"), True),
    ):
        values = prompt_shares(run, s, holds, before)
        assert row[prompts] == len(values)
        mean = np.mean(values) if values else math.nan
        assert row[column] == pytest.approx(mean, nan_ok=True)
        expected = [float(end) for end in interval(np.array(values))]
        assert [row[end] for end in ends] == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("run", [RUN, SPARSE])
def test_kinds(run: Run) -> None:
    table = kinds_by_size(run)
    assert len(table) == 3 * len(run.grid)
    for row in table.iloc[::5].to_dict("records"):
        check(run, row, lambda c, kind=row["kind"]: c["kind"] == kind)


def test_kinds_are_the_shares_that_the_sweep_wrote() -> None:
    table = kinds_by_size(RUN)
    written = RUN.sizes.query("edges > 0").groupby("size")
    for kind, rows in table.groupby("kind"):
        mean = written[kind].mean()
        ours = rows.set_index("size")["share"].loc[mean.index]
        np.testing.assert_allclose(ours, mean, rtol=1e-12)


def test_some_sizes_leave_prompts_out() -> None:
    prompts = kinds_by_size(SPARSE).groupby("size")["prompts"].first()
    assert prompts.iloc[0] < prompts.iloc[-1] == 6
    assert (kinds_by_size(SPARSE)["marginal_prompts"] <= 6).all()


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 6, 30])
def test_quarters_are_runs_of_layers(layers: int) -> None:
    run = synthetic_run(prompts=2, layers=layers, sizes=(0.05, 1.0))
    table = quarters_by_size(run)
    bounds = table[table["size"] == 1.0][["quarter", "first", "last"]].to_numpy().tolist()
    expected = [q.tolist() for q in np.array_split(np.arange(layers), 4) if len(q)]
    assert bounds == [[i + 1, q[0], q[-1]] for i, q in enumerate(expected)]
    for row in table.to_dict("records"):
        check(run, row, lambda c, r=row: r["first"] <= c["layer"] <= r["last"])


@pytest.mark.parametrize("run", [RUN, SPARSE])
def test_layers(run: Run) -> None:
    table = layers_by_size(run)
    for row in table.iloc[::7].to_dict("records"):
        check(run, row, lambda c, layer=row["layer"]: c["layer"] == layer)
        of = (run.components["layer"] == row["layer"]).to_numpy()
        s = run.grid.tolist().index(row["size"])
        present = run.usage[:, s, of].sum(1) / run.reachable[:, of].sum(1)
        assert row["present"] == pytest.approx(present.mean())
        low, high = interval(present)
        assert [row["present_low"], row["present_high"]] == pytest.approx([float(low), float(high)])
    assert (table.query("size == 1")["present"] == 1).all()


@pytest.mark.parametrize("tabulate", [kinds_by_size, quarters_by_size, layers_by_size])
def test_shares_add_to_one_where_there_are_edges(tabulate) -> None:
    table = tabulate(SPARSE)
    for column, prompts in (("share", "prompts"), ("marginal", "marginal_prompts")):
        sums = table.groupby("size")[column].sum(min_count=1)
        some = table.groupby("size")[prompts].first() > 0
        np.testing.assert_allclose(sums[some], 1)
        assert sums[~some].isna().all()


def test_one_prompt_has_values_and_no_intervals() -> None:
    table = layers_by_size(synthetic_run(prompts=1))
    for column in ("share", "marginal", "present"):
        assert table[column].iloc[-1] >= 0
    ends = ["low", "high", "marginal_low", "marginal_high", "present_low", "present_high"]
    assert table[ends].isna().all(axis=None)


def test_a_model_without_mlps_has_no_such_kind() -> None:
    keep = (RUN.components["kind"] != "mlp").to_numpy()
    bare = replace(
        RUN,
        components=RUN.components[keep].reset_index(drop=True),
        usage=RUN.usage[..., keep],
        reachable=RUN.reachable[:, keep],
    )
    assert kinds_by_size(bare)["kind"].unique().tolist() == ["residual", "attention"]


def test_a_seed_moves_intervals_alone() -> None:
    first, other = kinds_by_size(RUN, seed=0), kinds_by_size(RUN, seed=1)
    assert first["share"].equals(other["share"])
    assert not first["low"].equals(other["low"])
