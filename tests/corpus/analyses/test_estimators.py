"""Estimators compared: every number of their tables against loops over made-up runs."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from strace_lens.corpus.analyses.all import ANALYSES, analyse
from strace_lens.corpus.analyses.estimators import (
    LOGARITHMIC,
    estimator_curves,
    estimator_phases,
    estimator_table,
    estimator_traces,
)
from strace_lens.corpus.analyses.layer_phases import head_and_tail
from strace_lens.corpus.run_folder import Run
from strace_lens.density.change_points import change_points
from strace_lens.measures.intervals import interval
from strace_lens.measures.sizes import (
    DENSITY_SIZES,
    ESTIMATOR_SIZES,
    density,
    smallest_size_from_which,
)
from tests.corpus.synthetic import controlled_run, synthetic_run

SEEDS = {"greedy": 1, "fisher": 3, "pruned": 2}
PROMPTS = 7


def made(prompts: int = PROMPTS, names: tuple[str, ...] = tuple(SEEDS)) -> list[Run]:
    numbers = {name: number for number, name in enumerate(SEEDS)}
    return [controlled_run(name, prompts, SEEDS[name], numbers[name]) for name in names]


RUNS = made()
TABLE = estimator_table(RUNS).set_index("run")
PHASES = estimator_phases(RUNS)


def run_of(name: str) -> Run:
    (run,) = [run for run in RUNS if run.name == name]
    return run


def mean_over_seeds(rows: list[dict], column: str) -> dict[int, float]:
    """By prompt."""
    prompts = sorted({r["prompt"] for r in rows})
    return {p: np.mean([r[column] for r in rows if r["prompt"] == p]) for p in prompts}


def own_traces(name: str) -> list[dict]:
    """Of each prompt and seed: density, logarithm of the size of top-1, passes."""
    found = []
    for _, one in run_of(name).controls.query("role == 'own'").groupby(["prompt", "seed"]):
        sizes, top1 = one["size"].to_numpy(), one["top1"].to_numpy()
        size = smallest_size_from_which(sizes, top1)
        first = one.iloc[0]
        found.append(
            {
                **{c: first[c] for c in ("prompt", "seed", "forward", "backward")},
                "density": density(sizes, one["tv"].to_numpy()),
                "log": 0.0 if math.isnan(size) else math.log(size),
            }
        )
    return found


@pytest.mark.parametrize("name", list(SEEDS))
def test_fidelity_and_cost(name) -> None:
    row, mine, greedy = TABLE.loc[name], own_traces(name), own_traces("greedy")
    assert (row["prompts"], row["seeds"]) == (PROMPTS, SEEDS[name])
    for column in ("density", "forward", "backward"):
        values = mean_over_seeds(mine, column)
        assert row[column] == pytest.approx(np.mean(list(values.values())))
    densities = mean_over_seeds(mine, "density").values()
    less = [v - g["density"] for v, g in zip(densities, greedy, strict=True)]
    assert row["density_vs_greedy"] == pytest.approx(np.mean(less))
    logs = list(mean_over_seeds(mine, "log").values())
    assert row["top1_size"] == pytest.approx(math.exp(np.mean(logs)))
    ratio = math.exp(np.mean([v - g["log"] for v, g in zip(logs, greedy, strict=True)]))
    assert row["top1_ratio"] == pytest.approx(ratio)
    if SEEDS[name] == 1:
        assert math.isnan(row["density_sd"])
        return
    spread = [
        np.std([t["density"] for t in mine if t["prompt"] == p], ddof=1) for p in range(PROMPTS)
    ]
    assert row["density_sd"] == pytest.approx(np.mean(spread))


@pytest.mark.parametrize("name", list(SEEDS))
def test_curves_and_controls(name) -> None:
    row, mine = TABLE.loc[name], run_of(name).controls.to_dict("records")
    role = {k: [r for r in mine if r["role"] == k] for k in ("own", "wrong", "sibling", "noise")}

    def at(rows: list[dict], size: float, column: str = "tv") -> float:
        there = [r for r in rows if r["size"] == size]
        return float(np.mean(list(mean_over_seeds(there, column).values())))

    for size in (0.01, 0.05, 0.1, 0.2, 0.4):
        assert row[f"tv_{size:g}"] == pytest.approx(at(role["own"], size))
    lowest = [
        min(r["tv"] for r in role["wrong"] if r["prompt"] == p and r["size"] <= 0.2)
        for p in range(PROMPTS)
    ]
    assert row["wrong_tv_mean"] == pytest.approx(np.mean(lowest))
    assert row["wrong_tv_min"] == min(lowest)
    own = {(r["prompt"], r["seed"], r["size"]): r["tv"] for r in role["own"]}
    changes = [
        {**r, "tv": abs(r["tv"] - own[r["prompt"], r["seed"], r["size"]])} for r in role["noise"]
    ]
    for size in (0.05, 0.1, 0.2):
        assert row[f"sibling_{size:g}"] == pytest.approx(at(role["sibling"], size))
        assert row[f"noise_{size:g}"] == pytest.approx(at(changes, size))
    for size in (0.01, 0.05, 0.2):
        assert row[f"compute_{size:g}"] == pytest.approx(at(role["own"], size, "compute"))
    shares = [r["path_share"] for r in role["own"] if r["size"] >= 0.01]
    assert row["path_share_mean"] == pytest.approx(np.mean(shares))
    assert row["path_share_min"] == min(shares)
    logs = []
    for p in range(PROMPTS):
        for seed in range(SEEDS[name]):
            one = [r for r in role["own"] if (r["prompt"], r["seed"]) == (p, seed)]
            connected = [r["size"] for r in one if r["connected"]]  # from one size on: see there
            logs.append(math.log(min(connected, default=1)))
    assert row["connected_size"] == pytest.approx(math.exp(np.mean(logs)))


@pytest.mark.parametrize("column", ["density", "density_vs_greedy", "top1_ratio"])
def test_intervals_are_those_of_a_plain_bootstrap(column) -> None:
    key = "log" if "top1" in column else "density"
    per_prompt = np.array(list(mean_over_seeds(own_traces("pruned"), key).values()))
    if column != "density":
        per_prompt = per_prompt - [trace[key] for trace in own_traces("greedy")]
    draws = np.random.default_rng(9).choice(per_prompt, (20000, PROMPTS)).mean(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    if "top1" in column:
        low, high = np.exp([low, high])
    width = high - low
    assert TABLE.loc["pruned", f"{column}_low"] == pytest.approx(low, abs=0.03 * width)
    assert TABLE.loc["pruned", f"{column}_high"] == pytest.approx(high, abs=0.03 * width)


def test_a_seed_gives_the_same_intervals_and_another_seed_others() -> None:
    assert estimator_table(RUNS).equals(TABLE.reset_index())
    other = estimator_table(RUNS, seed=1).set_index("run")
    bounds = [c for c in TABLE if c.endswith(("_low", "_high"))]
    assert not other[bounds].equals(TABLE[bounds])
    assert other.drop(columns=bounds).equals(TABLE.drop(columns=bounds))


def test_one_prompt_gives_no_interval() -> None:
    table, phases = estimator_table(made(prompts=1)), estimator_phases(made(prompts=1))
    bounds = [c for c in table if c.endswith(("_low", "_high"))]
    assert len(bounds) == 6
    assert table[bounds].isna().all(axis=None)
    assert table[["density", "density_vs_greedy", "top1_ratio"]].notna().all(axis=None)
    assert phases[["low", "high", "vs_greedy_low", "vs_greedy_high"]].isna().all(axis=None)
    assert phases.query("quantity == 'graph_depth'")[["mean", "vs_greedy"]].notna().all(axis=None)


def test_without_greedy_nothing_is_compared_with_it() -> None:
    runs = made(names=("fisher", "pruned"))
    table, phases = estimator_table(runs), estimator_phases(runs)
    assert table["run"].tolist() == ["fisher", "pruned"]
    compared = [c for c in table if "greedy" in c or "ratio" in c]
    assert table[compared].isna().all(axis=None)
    assert table["density_low"].notna().all()
    assert phases[["vs_greedy", "vs_greedy_low", "vs_greedy_high"]].isna().all(axis=None)


def test_a_run_is_compared_with_greedy_of_the_same_kept_kinds_alone() -> None:
    kept = controlled_run("fisher", PROMPTS, 1, 4, name="fisher-keep-attention")
    kept.manifest["options"]["keep"] = ["attention"]
    table = estimator_table([*RUNS, kept]).set_index("run")
    assert math.isnan(table.loc["fisher-keep-attention", "density_vs_greedy"])
    assert table.loc["fisher", "density_vs_greedy"] == TABLE.loc["fisher", "density_vs_greedy"]


def test_runs_are_paired_by_the_texts_of_their_prompts() -> None:
    greedy, fisher = made(names=("greedy", "fisher"))
    mirror = {p: PROMPTS - 1 - p for p in range(PROMPTS)}
    moved = fisher.prompts.assign(sha256=fisher.prompts["sha256"].to_numpy()[::-1])
    turned = controlled_run("fisher", PROMPTS, SEEDS["fisher"], 1)
    turned.prompts["sha256"] = moved["sha256"]
    (row,) = estimator_table([greedy, turned]).query("run == 'fisher'").to_dict("records")
    values = mean_over_seeds(own_traces("fisher"), "density")
    base = mean_over_seeds(own_traces("greedy"), "density")
    assert row["density_vs_greedy"] == pytest.approx(
        np.mean([values[p] - base[mirror[p]] for p in range(PROMPTS)])
    )


def test_sizes_that_were_not_measured_have_no_column() -> None:
    runs = [
        controlled_run(name, 3, SEEDS[name], sizes=(0.001, 0.01, 0.05, 0.4, 0.8))
        for name in ("greedy", "fisher")
    ]
    table, phases = estimator_table(runs), estimator_phases(runs)
    assert {"tv_0.05", "tv_0.4", "sibling_0.05", "compute_0.01"} <= set(table)
    assert not {"tv_0.1", "tv_0.2", "sibling_0.2", "noise_0.1", "compute_0.2"} & set(table)
    assert {"mlp_0.01", "depth_0.05"} <= set(phases["quantity"])
    assert not {"mlp_0.2", "depth_0.2"} & set(phases["quantity"])


def test_density_of_the_default_grid_is_over_its_even_part() -> None:
    assert len(DENSITY_SIZES) == 25
    assert np.ptp(np.diff(np.log(DENSITY_SIZES))) < 1e-12
    assert sorted({*DENSITY_SIZES, 0.01, 0.05, 0.1, 0.2, 0.4}) == list(ESTIMATOR_SIZES)
    run = controlled_run("greedy", 1, sizes=ESTIMATOR_SIZES)
    own = run.controls.query("role == 'own'")
    even = own[own["size"].isin(DENSITY_SIZES)]
    value = density(even["size"].to_numpy(), even["tv"].to_numpy())
    traces = estimator_traces(run)
    assert traces["target"].tolist() == ["own", "wrong"]
    assert traces["density"][0] == value
    assert value != density(own["size"].to_numpy(), own["tv"].to_numpy())


def of_prompts(name: str) -> dict[str, list[float]]:
    """Some quantities of each prompt's phases, by loops."""
    run, found = run_of(name), {}
    layers = run.components["layer"].to_numpy()
    head = head_and_tail(run)
    for quantity in ("head_size", "tail_depth", "block_depth_gap", "graph_depth"):
        found[quantity] = head[quantity].tolist()
    for p in range(PROMPTS):
        rows = run.sizes.query("prompt == @p")
        phases = {q.name: q for q in change_points(rows["size"].to_numpy(), rows["tv"].to_numpy())}
        construction, refinement = phases.get("construction"), phases.get("refinement")
        assert construction is not None  # or this test sees nothing
        fall = construction.tv_start - construction.tv_stop
        pace = fall / math.log10(construction.stop / construction.start)
        slow = math.nan
        if refinement is not None:
            fall = refinement.tv_start - refinement.tv_stop
            slow = fall / math.log10(refinement.stop / refinement.start)
        at = list(run.grid).index(0.05)
        edges = run.usage[p, at]
        block = run.components["kind"].ne("residual").to_numpy()
        inside = edges[block].sum()
        among = layers[block] @ edges[block] / inside if inside else math.nan
        for quantity, value in {
            "construction_start": construction.start,
            "construction_stop": construction.stop,
            "construction_tv": construction.tv_stop,
            "construction_pace": pace,
            "refinement_pace": slow,
            "attention_0.05": edges[run.components["kind"].eq("attention")].sum() / edges.sum(),
            "depth_0.05": edges @ layers / edges.sum() / layers.max(),
            "block_depth_0.05": among / layers.max(),
        }.items():
            found.setdefault(quantity, []).append(float(value))
    return found


@pytest.mark.parametrize("name", ["greedy", "pruned"])
def test_phases_are_means_over_prompts_and_paired_comparisons(name) -> None:
    mine, greedy = of_prompts(name), of_prompts("greedy")
    for quantity, values in mine.items():
        (row,) = PHASES.query("run == @name and quantity == @quantity").to_dict("records")
        forth, back = (np.log, np.exp) if quantity in LOGARITHMIC else (np.array, np.array)
        numbers, base = forth(values), forth(greedy[quantity])
        for column, of in (("mean", numbers), ("vs_greedy", numbers - base)):
            there = of[~np.isnan(of)]
            ends = ("low", "high") if column == "mean" else (f"{column}_low", f"{column}_high")
            assert row[column] == pytest.approx(back(there.mean()), nan_ok=True)
            for end, expected in zip(ends, interval(there), strict=True):
                assert row[end] == pytest.approx(float(back(expected)), nan_ok=True)
        assert row["prompts"] == np.count_nonzero(~np.isnan(values))


def test_every_quantity_of_every_run_has_a_row() -> None:
    quantities = PHASES["quantity"].unique()
    assert len(PHASES) == len(quantities) * len(RUNS)
    assert not PHASES.duplicated(["run", "quantity"]).any()
    assert PHASES["run"].unique().tolist() == list(SEEDS)


@pytest.mark.parametrize("name", ["greedy", "fisher"])
def test_curves_are_means_over_prompts_with_intervals(name) -> None:
    run = run_of(name)
    curves = estimator_curves(run)
    sources = {"tv": ("own", "tv"), "wrong_tv": ("wrong", "tv"), "compute": ("own", "compute")}
    for quantity, (role, column) in sources.items():
        rows = curves[curves["quantity"] == quantity]
        assert rows["size"].tolist() == list(run.grid)
        for row in rows.to_dict("records"):
            controls = run.controls
            there = controls[controls["role"].eq(role) & controls["size"].eq(row["size"])]
            there = there.to_dict("records")
            values = np.array(list(mean_over_seeds(there, column).values()))
            assert row["mean"] == pytest.approx(values.mean())
            low, high = interval(values)
            assert (row["low"], row["high"]) == pytest.approx((float(low), float(high)))
            assert row["prompts"] == PROMPTS
    depth = curves.query("quantity == 'depth'")
    there = run.sizes.groupby("size")["mean_layer"].agg(["mean", "count"])
    there = there[there["count"] == PROMPTS]
    assert depth["size"].tolist() == there.index.tolist()
    last = run.components["layer"].max()
    assert depth["mean"].tolist() == pytest.approx((there["mean"] / last).tolist())


@pytest.mark.extended
def test_only_runs_with_controls_add_tables() -> None:
    texts = RUNS[0].prompts["text"].tolist()
    plain = synthetic_run(PROMPTS, sizes=tuple(RUNS[0].grid), name="plain", texts=texts)
    names = {"estimator_table", "estimator_phases", "estimator_traces", "estimator_curves"}
    assert set(analyse([plain], progress=lambda *_: None)) == {*ANALYSES, "claims"}
    both = analyse([RUNS[0], plain], progress=lambda *_: None)
    assert names <= set(both)
    assert all(set(both[name]["run"]) == {"greedy"} for name in names)
    assert isinstance(both["estimator_table"], pd.DataFrame)
