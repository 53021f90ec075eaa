"""Composition and use of components of a made-up corpus against counting by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strace_lens.corpus.analyses import composition
from strace_lens.corpus.analyses.composition import (
    core,
    gini,
    gini_of,
    kinds_by_size,
    lorenz,
    quarters_by_size,
)
from strace_lens.corpus.run_folder import Run
from strace_lens.measures.intervals import interval, weights
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


@pytest.mark.parametrize("tabulate", [kinds_by_size, quarters_by_size])
def test_shares_add_to_one_where_there_are_edges(tabulate) -> None:
    table = tabulate(SPARSE)
    for column, prompts in (("share", "prompts"), ("marginal", "marginal_prompts")):
        sums = table.groupby("size")[column].sum(min_count=1)
        some = table.groupby("size")[prompts].first() > 0
        np.testing.assert_allclose(sums[some], 1)
        assert sums[~some].isna().all()


def test_one_prompt_has_values_and_no_intervals() -> None:
    table = quarters_by_size(synthetic_run(prompts=1))
    for column in ("share", "marginal"):
        assert table[column].iloc[-1] >= 0
    ends = ["low", "high", "marginal_low", "marginal_high"]
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


RUN_USAGE = synthetic_run(prompts=5)
KINDS = RUN_USAGE.components["kind"].to_numpy()


def gini_by_pairs(values: list[float]) -> float:
    """Mean absolute difference of all pairs over twice the mean."""
    pairs = [abs(a - b) for a in values for b in values]
    return sum(pairs) / len(values) ** 2 / (2 * sum(values) / len(values))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12))
def test_gini_is_half_the_mean_difference_of_pairs(values: list[int]) -> None:
    found = float(gini_of(np.array(values)))
    if sum(values) == 0:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(gini_by_pairs(values), abs=1e-12)


def test_lorenz_curves_rise_from_nothing_to_everything_under_the_diagonal() -> None:
    table = lorenz(RUN_USAGE)
    for (size, kind), one in table.groupby(["size", "kind"]):
        s = int(np.flatnonzero(RUN_USAGE.grid == size)[0])
        edges = sorted(RUN_USAGE.usage[:, s, kind == KINDS].mean(0))
        truth = [0.0, *np.cumsum(edges) / sum(edges)]
        np.testing.assert_allclose(one["use"], truth)
        assert (one["use"] <= one["components"] + 1e-12).all()
        area = np.trapezoid(one["use"], one["components"])
        assert 1 - 2 * area == pytest.approx(gini_by_pairs(edges), abs=1e-12)


def test_gini_of_runs_with_intervals_and_without() -> None:
    table = gini(RUN_USAGE, resamples=200).set_index(["size", "kind"])
    s = len(RUN_USAGE.grid) - 1
    for kind in ("attention", "residual", "mlp"):
        row = table.loc[(1.0, kind)]
        truth = gini_by_pairs(RUN_USAGE.usage[:, s, kind == KINDS].mean(0).tolist())
        assert row["gini"] == pytest.approx(truth)
        assert row["gini"] == pytest.approx(row["graph"])  # at size 1 the trace is the graph
        assert row["low"] <= row["gini"] <= row["high"]
    assert gini(RUN_USAGE, resamples=200).equals(gini(RUN_USAGE, resamples=200))
    alone = gini(synthetic_run(prompts=1), resamples=50)
    assert alone["low"].isna().all()
    assert alone["gini"].notna().any()


def test_the_core_is_what_nearly_all_prompts_use() -> None:
    table = core(RUN_USAGE).set_index(["size", "kind"])
    for s, size in enumerate(RUN_USAGE.grid):
        shared = [(RUN_USAGE.usage[:, s, c] > 0).mean() >= 0.9 for c in range(len(KINDS))]
        for kind in set(KINDS):
            count = sum(there and k == kind for there, k in zip(shared, KINDS, strict=True))
            assert table.loc[(size, kind), "core"] == count
    assert table.loc[(1.0, "mlp"), "share"] == 1


def test_the_interval_is_the_middle_of_resamples_moved_to_the_value() -> None:
    drawn = (weights(5, 60, 4) * 5).round().astype(int)
    above = []
    for row in gini(RUN_USAGE, seed=4, resamples=60).dropna().to_dict("records"):
        here = RUN_USAGE.usage[:, RUN_USAGE.grid.tolist().index(row["size"]), row["kind"] == KINDS]
        repeated = [np.repeat(here, times, axis=0).mean(0).tolist() for times in drawn]
        found = [gini_by_pairs(edges) for edges in repeated if sum(edges)]
        low, high = np.quantile(found, [0.025, 0.975]) - np.mean(found) + row["gini"]
        expected = [min(max(low, 0), 1), min(max(high, 0), 1)]
        assert [row["low"], row["high"]] == pytest.approx(expected, abs=1e-12)
        above.append(np.mean(found) - row["gini"])
    assert np.mean(above) > 0.01  # why they are moved


def test_an_interval_stays_between_0_and_1() -> None:
    run = synthetic_run(prompts=2, layers=2, heads=1, sizes=(0.5, 1.0))
    usage = np.zeros_like(run.usage)
    for prompt, component in enumerate(np.flatnonzero(run.components["kind"] == "mlp")):
        usage[prompt, :, component] = 1
    # Even over both prompts; of resamples, half hold one prompt twice and have a Gini of 1/2.
    row = gini(replace(run, usage=usage)).query("kind == 'mlp'").iloc[0]
    assert (row["gini"], row["low"]) == (0, 0)
    assert row["high"] == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(("prompts", "share", "least"), [(10, 0.9, 9), (25, 0.28, 7)])
def test_a_component_of_just_that_share_is_core(prompts, share, least, monkeypatch) -> None:
    monkeypatch.setattr(composition, "CORE", share)
    run = synthetic_run(prompts=prompts, sizes=(0.5, 1.0))
    usage = np.ones_like(run.usage)
    usage[least:, :, 3] = 0
    usage[least - 1 :, :, 4] = 0
    found = core(replace(run, usage=usage)).query("size == 1.0")
    assert found["core"].sum() == found["components"].sum() - 1
    lost = run.components["kind"].iloc[4]
    assert found.set_index("kind")["share"].lt(1).to_dict() == {
        kind: kind == lost for kind in found["kind"]
    }


def test_traces_without_any_edge_have_no_curve_and_no_core() -> None:
    none = replace(RUN_USAGE, usage=np.zeros_like(RUN_USAGE.usage))
    assert list(lorenz(none)) == list(lorenz(RUN_USAGE))
    assert lorenz(none).empty
    assert gini(none)[["gini", "low", "high"]].isna().all(axis=None)
    assert (core(none)["core"] == 0).all()
