"""Use of components against counting by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strace_lens.corpus.analyses.means import weights
from strace_lens.corpus.analyses.usage import (
    component_use,
    core,
    core_members,
    gini,
    gini_of,
    lorenz,
)
from tests.corpus.synthetic import synthetic_run

RUN = synthetic_run(prompts=5)
KINDS = RUN.components["kind"].to_numpy()


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


def test_use_counts_prompts_and_edges() -> None:
    table = component_use(RUN).set_index(["size", "component"])
    for s, size in enumerate(RUN.grid):
        for c in range(len(RUN.components)):
            own = [int(RUN.usage[p, s, c]) for p in range(5)]
            row = table.loc[(size, c)]
            assert row["used"] == pytest.approx(sum(x > 0 for x in own) / 5)
            assert row["edges"] == pytest.approx(sum(own) / 5)


def test_lorenz_curves_rise_from_nothing_to_everything_under_the_diagonal() -> None:
    table = lorenz(RUN)
    for (size, kind), one in table.groupby(["size", "kind"]):
        s = int(np.flatnonzero(RUN.grid == size)[0])
        edges = sorted(RUN.usage[:, s, kind == KINDS].mean(0))
        truth = [0.0, *np.cumsum(edges) / sum(edges)]
        np.testing.assert_allclose(one["use"], truth)
        assert (one["use"] <= one["components"] + 1e-12).all()
        area = np.trapezoid(one["use"], one["components"])
        assert 1 - 2 * area == pytest.approx(gini_by_pairs(edges), abs=1e-12)


def test_gini_of_runs_with_intervals_and_without() -> None:
    table = gini(RUN, resamples=200).set_index(["size", "kind"])
    s = len(RUN.grid) - 1
    for kind in ("attention", "residual", "mlp"):
        row = table.loc[(1.0, kind)]
        truth = gini_by_pairs(RUN.usage[:, s, kind == KINDS].mean(0).tolist())
        assert row["gini"] == pytest.approx(truth)
        assert row["gini"] == pytest.approx(row["graph"])  # at size 1 the trace is the graph
        assert row["low"] <= row["gini"] <= row["high"]
    assert gini(RUN, resamples=200).equals(gini(RUN, resamples=200))
    alone = gini(synthetic_run(prompts=1), resamples=50)
    assert alone["low"].isna().all()
    assert alone["gini"].notna().any()


def test_the_core_is_what_nearly_all_prompts_use() -> None:
    table = core(RUN).set_index(["size", "kind"])
    for s, size in enumerate(RUN.grid):
        shared = [(RUN.usage[:, s, c] > 0).mean() >= 0.9 for c in range(len(KINDS))]
        names = [n for n, there in zip(RUN.components["name"], shared, strict=True) if there]
        assert core_members(RUN, size) == names
        for kind in set(KINDS):
            count = sum(there and k == kind for there, k in zip(shared, KINDS, strict=True))
            assert table.loc[(size, kind), "core"] == count
    assert table.loc[(1.0, "mlp"), "share"] == 1
    with pytest.raises(ValueError, match=r"size 0\.3 was not measured"):
        core_members(RUN, 0.3)
    with pytest.raises(ValueError, match="share"):
        core(RUN, share=0.0)


def test_the_share_present_is_of_each_prompts_own_graph() -> None:
    reachable, usage = RUN.reachable.copy(), RUN.usage.copy()
    reachable[2, 5] = 0  # no edge of this component in one graph
    usage[2, :, 5] = 0
    table = component_use(replace(RUN, reachable=reachable, usage=usage))
    for row in table.iloc[::7].to_dict("records"):
        s, c = RUN.grid.tolist().index(row["size"]), row["component"]
        if c != 5:
            parts = [usage[p, s, c] / reachable[p, c] for p in range(5)]
            assert row["present"] == pytest.approx(sum(parts) / 5)
    assert set(table[table["present"].isna()]["component"]) == {5}
    assert table[["used", "edges"]].notna().all(axis=None)


def test_the_interval_is_the_middle_of_resamples_moved_to_the_value() -> None:
    drawn = (weights(5, 60, 4) * 5).round().astype(int)
    above = []
    for row in gini(RUN, seed=4, resamples=60).dropna().to_dict("records"):
        here = RUN.usage[:, RUN.grid.tolist().index(row["size"]), row["kind"] == KINDS]
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
def test_a_component_of_just_that_share_is_core(prompts, share, least) -> None:
    run = synthetic_run(prompts=prompts, sizes=(0.5, 1.0))
    usage = np.ones_like(run.usage)
    usage[least:, :, 3] = 0
    usage[least - 1 :, :, 4] = 0
    names = run.components["name"].tolist()
    found = core_members(replace(run, usage=usage), 1.0, share)
    assert found == [name for name in names if name != names[4]]


def test_traces_without_any_edge_have_no_curve_and_no_core() -> None:
    none = replace(RUN, usage=np.zeros_like(RUN.usage))
    assert list(lorenz(none)) == list(lorenz(RUN))
    assert lorenz(none).empty
    assert gini(none)[["gini", "low", "high"]].isna().all(axis=None)
    assert (core(none)["core"] == 0).all()
