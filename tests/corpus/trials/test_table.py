"""The table of estimators against loops over made-up trials."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

import strace_lens as sl
from tests.corpus.trials.made import ESTIMATORS, trials

SIZES = (0.001, 0.01, 0.05, 0.1, 0.2, 0.4, 0.8)
SEEDS = {"greedy": 1, "other": 3, "best": 3}


def made_up(prompts: int = 5, names: tuple[str, ...] = tuple(SEEDS)) -> sl.Trials:
    """Random numbers in the columns of a trial; the sibling of the last prompt is missing."""
    draw = np.random.default_rng(0)
    runs, traces = [], []
    for prompt in range(prompts):
        for name in names:
            for seed in range(SEEDS[name]):
                key = {"prompt": prompt, "estimator": name, "seed": seed}
                for target in ("own", "wrong")[: 2 - (seed > 0)]:
                    cost = {c: draw.random() for c in ("forward", "backward", "seconds")}
                    top1 = draw.choice([*SIZES, math.nan])
                    facts = {"density": draw.random(), "top1_size": top1, **cost}
                    traces.append({**key, "target": target, **facts})
                start = draw.integers(0, len(SIZES) + 1)  # from which size on it is connected
                for role in ("own", "wrong", "sibling", "noise"):
                    if (role == "wrong" and seed) or (role == "sibling" and prompt == 4):
                        continue
                    for i, size in enumerate(SIZES):
                        row = {**key, "role": role, "size": size, "tv": draw.random()}
                        if role == "own":
                            row |= {"path_share": draw.random(), "compute": draw.random()}
                            row |= {"connected": bool(i >= start)}
                        runs.append(row)
    frame = pd.DataFrame(runs)
    return sl.Trials(frame.astype({"connected": "boolean"}), pd.DataFrame(traces))


def mean_over_seeds(rows: list[dict], column: str) -> dict[int, float]:
    """By prompt."""
    prompts = sorted({r["prompt"] for r in rows})
    return {p: np.mean([r[column] for r in rows if r["prompt"] == p]) for p in prompts}


@pytest.fixture(scope="module")
def made() -> sl.Trials:
    return made_up()


@pytest.fixture(scope="module")
def table(made) -> pd.DataFrame:
    return sl.estimator_table(made).set_index("estimator")


@pytest.mark.parametrize("name", list(SEEDS))
def test_fidelity_and_cost(made, table, name) -> None:
    row = table.loc[name]
    assert (row["prompts"], row["seeds"]) == (5, SEEDS[name])
    mine = [t for t in made.traces.to_dict("records") if t["target"] == "own"]
    greedy = [t for t in mine if t["estimator"] == "greedy"]
    mine = [t for t in mine if t["estimator"] == name]
    for column in ("density", "forward", "backward", "seconds"):
        values = mean_over_seeds(mine, column)
        assert row[column] == pytest.approx(np.mean(list(values.values())))
    densities = mean_over_seeds(mine, "density").values()
    less = [v - g["density"] for v, g in zip(densities, greedy, strict=True)]
    assert row["density_vs_greedy"] == pytest.approx(np.mean(less))
    for t in mine + greedy:
        t["log"] = math.log(1 if math.isnan(t["top1_size"]) else t["top1_size"])
    logs = list(mean_over_seeds(mine, "log").values())
    assert row["top1_size"] == pytest.approx(math.exp(np.mean(logs)))
    ratio = math.exp(np.mean([v - g["log"] for v, g in zip(logs, greedy, strict=True)]))
    assert row["top1_ratio"] == pytest.approx(ratio)
    if SEEDS[name] == 1:
        assert math.isnan(row["density_sd"])
        return
    spread = [np.std([t["density"] for t in mine if t["prompt"] == p], ddof=1) for p in range(5)]
    assert row["density_sd"] == pytest.approx(np.mean(spread))


@pytest.mark.parametrize("name", list(SEEDS))
def test_curves_and_controls(made, table, name) -> None:
    row = table.loc[name]
    mine = [r for r in made.runs.to_dict("records") if r["estimator"] == name]
    role = {k: [r for r in mine if r["role"] == k] for k in ("own", "wrong", "sibling", "noise")}

    def at(rows: list[dict], size: float, column: str = "tv") -> float:
        there = [r for r in rows if r["size"] == size]
        return float(np.mean(list(mean_over_seeds(there, column).values())))

    for size in (0.01, 0.05, 0.1, 0.2, 0.4):
        assert row[f"tv_{size:g}"] == pytest.approx(at(role["own"], size))
    lowest = [
        min(r["tv"] for r in role["wrong"] if r["prompt"] == p and r["size"] <= 0.2)
        for p in range(5)
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
    for p in range(5):
        for seed in range(SEEDS[name]):
            one = [r for r in role["own"] if (r["prompt"], r["seed"]) == (p, seed)]
            connected = [r["size"] for r in one if r["connected"]]  # from one size on: see above
            logs.append(math.log(min(connected, default=1)))
    assert row["connected_size"] == pytest.approx(math.exp(np.mean(logs)))


@pytest.mark.parametrize("column", ["density", "density_vs_greedy", "top1_ratio"])
def test_intervals_are_those_of_a_plain_bootstrap(made, table, column) -> None:
    own = made.traces.query("target == 'own'").copy()
    own["log"] = np.log(own["top1_size"].fillna(1))
    values = own.groupby(["estimator", "prompt"])["log" if "top1" in column else "density"].mean()
    per_prompt = values["best"].to_numpy()
    if column != "density":
        per_prompt = per_prompt - values["greedy"].to_numpy()
    draws = np.random.default_rng(9).choice(per_prompt, (20000, 5)).mean(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    if "top1" in column:
        low, high = np.exp([low, high])
    width = high - low
    assert table.loc["best", f"{column}_low"] == pytest.approx(low, abs=0.03 * width)
    assert table.loc["best", f"{column}_high"] == pytest.approx(high, abs=0.03 * width)


def test_a_seed_gives_the_same_intervals_and_another_seed_others(made, table) -> None:
    assert sl.estimator_table(made).equals(table.reset_index())
    other = sl.estimator_table(made, seed=1).set_index("estimator")
    bounds = [c for c in table if c.endswith(("_low", "_high"))]
    assert not other[bounds].equals(table[bounds])
    assert other.drop(columns=bounds).equals(table.drop(columns=bounds))


def test_one_prompt_gives_no_interval() -> None:
    table = sl.estimator_table(made_up(prompts=1))
    bounds = [c for c in table if c.endswith(("_low", "_high"))]
    assert len(bounds) == 6
    assert table[bounds].isna().all(axis=None)
    assert table[["density", "density_vs_greedy", "top1_ratio"]].notna().all(axis=None)


def test_without_greedy_nothing_is_compared_with_it() -> None:
    table = sl.estimator_table(made_up(names=("best", "other")))
    assert table["estimator"].tolist() == ["best", "other"]
    compared = [c for c in table if "greedy" in c or "ratio" in c]
    assert table[compared].isna().all(axis=None)
    assert table["density_low"].notna().all()


def test_sizes_that_were_not_measured_have_no_column() -> None:
    made = made_up()
    fewer = sl.Trials(made.runs.query("size < 0.1 or size > 0.3"), made.traces)
    table = sl.estimator_table(fewer)
    assert {"tv_0.05", "tv_0.4", "sibling_0.05", "compute_0.01"} <= set(table)
    assert not {"tv_0.1", "tv_0.2", "sibling_0.2", "noise_0.1", "compute_0.2"} & set(table)


def test_a_real_trial_fills_every_column() -> None:
    table = sl.estimator_table(trials())
    assert table["estimator"].tolist() == list(ESTIMATORS)
    empty = table.columns[table.isna().any()].tolist()
    assert empty == ["density_sd"]
    assert table["density_sd"].notna().tolist() == [False, True]
    assert table.loc[0, ["density_vs_greedy", "top1_ratio"]].tolist() == [0, 1]
