"""Geometry of made-up hidden states against plain loops."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from strace_lens.corpus.analyses import states as module
from strace_lens.corpus.analyses.states import (
    geometry_by_layer,
    state_curvature,
    state_matrices,
)
from strace_lens.corpus.run_folder import GEOMETRY, Run
from strace_lens.measures.intervals import interval
from tests.corpus.synthetic import synthetic_run

RUN = synthetic_run(prompts=4)


def test_means_over_prompts_by_size_and_layer() -> None:
    table = geometry_by_layer(RUN).set_index(["size", "layer"])
    assert len(table) == len(RUN.grid) * 4
    for (size, layer), row in table.iterrows():
        at = list(RUN.grid).index(size)
        own = {name: values[:, at, layer] for name, values in RUN.geometry.items()}
        for name in ("cosine", "l2", "cka", "velocity"):
            assert row[name] == pytest.approx(own[name].mean())
            assert row[f"{name}_low"] <= row[name] + 1e-12
            assert row[f"{name}_prompts"] == 4
        full = RUN.path["velocity"][:, layer]
        assert row["full_velocity"] == pytest.approx(full.mean())
        ratio = own["velocity"] / full
        assert row["velocity_ratio"] == pytest.approx(ratio.mean())
        assert np.isnan(row["curvature"]) == (layer == 0)


def test_a_sweep_without_hidden_states_has_no_row_and_one_prompt_no_interval() -> None:
    assert geometry_by_layer(synthetic_run(geometry=False)).empty
    assert "cosine" in geometry_by_layer(synthetic_run(geometry=False))
    assert geometry_by_layer(synthetic_run(prompts=1))["cosine_low"].isna().all()


def holed() -> Run:
    """A run with the holes of a real one: no CKA in the last layer, steps that are zero."""
    run = synthetic_run(prompts=5, layers=3, sizes=(0.01, 0.1, 1.0))
    draw = np.random.default_rng(3)
    shape = run.geometry["cosine"].shape
    geometry = {name: values.copy() for name, values in run.geometry.items()}
    geometry |= {"cosine": draw.random(shape), "cka": draw.random(shape)}
    geometry["cka"][..., 2] = np.nan
    geometry["velocity"][[0, 3], 0, 1:] = 0.0
    geometry["curvature"][[0, 3], 0, 1:] = np.nan
    path = {**run.path, "velocity": draw.uniform(1, 3, (5, 3))}
    return replace(run, geometry=geometry, path=path)


def test_prompts_without_a_value_are_left_out_of_its_mean() -> None:
    run = holed()
    for row in geometry_by_layer(run).to_dict("records"):
        at, layer = list(run.grid).index(row["size"]), row["layer"]
        own = {name: run.geometry[name][:, at, layer] for name in GEOMETRY}
        own["velocity_ratio"] = own["velocity"] / run.path["velocity"][:, layer]
        for name, all_values in own.items():
            values = np.array([v for v in all_values if not np.isnan(v)])
            mean = values.mean() if len(values) else np.nan
            expected = [mean, *(float(end) for end in interval(values))]
            ours = [row[name], row[f"{name}_low"], row[f"{name}_high"]]
            assert ours == pytest.approx(expected, nan_ok=True)
            assert row[f"{name}_prompts"] == len(values)
        assert row["prompts"] == 5


def test_holes_are_counted() -> None:
    table = geometry_by_layer(holed()).set_index(["size", "layer"])
    assert table.loc[(0.1, 2), "cka_prompts"] == 0
    assert table.loc[(0.01, 1), "curvature_prompts"] == 3
    assert table.loc[(0.1, 1), "curvature_prompts"] == 5


SIZES = (0.001, 0.01, 0.1, 1.0)


def run_of(states: np.ndarray) -> Run:
    made = synthetic_run(prompts=len(states), sizes=SIZES)
    return replace(made, final_states=states.astype(np.float32))


def states(prompts: int = 12, width: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(prompts, len(SIZES), width)).astype("float32")


def value(run: Run, measure: str, a: int, b: int) -> float:
    table = state_matrices(run)
    here = (
        table["measure"].eq(measure) & table["size_a"].eq(SIZES[a]) & table["size_b"].eq(SIZES[b])
    )
    return float(table.loc[here, "value"].item())


def hsic(k: np.ndarray, m: np.ndarray) -> float:
    """The unbiased estimate of Song et al. 2012, equation 5, as it stands there."""
    n = len(k)
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    one = np.ones(n)
    middle = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return (np.trace(k @ m) + middle - 2 / (n - 2) * one @ k @ m @ one) / (n * (n - 3))


def imbalance(a: np.ndarray, b: np.ndarray) -> float:
    """Glielmo et al. 2022, equation 2: for points without ties."""
    ranks = []
    for i in range(len(a)):
        others = [j for j in range(len(a)) if j != i]
        nearest = min(others, key=lambda j: np.linalg.norm(a[i] - a[j]))
        order = sorted(others, key=lambda j: np.linalg.norm(b[i] - b[j]))
        ranks.append(1 + order.index(nearest))
    return 2 / len(a) * float(np.mean(ranks))


@pytest.mark.parametrize("a", range(len(SIZES)))
@pytest.mark.parametrize("b", range(len(SIZES)))
def test_each_measure_is_its_definition(a: int, b: int) -> None:
    given = states()
    run = run_of(given)
    x, y = (given[:, size].astype(float) for size in (a, b))
    cosines = [u @ v / np.linalg.norm(u) / np.linalg.norm(v) for u, v in zip(x, y, strict=True)]
    assert value(run, "cosine", a, b) == pytest.approx(np.mean(cosines))
    far = [np.linalg.norm(u - v) for u, v in zip(x, y, strict=True)]
    assert value(run, "l2", a, b) == pytest.approx(np.mean(far))
    u, v = x - x.mean(0), y - y.mean(0)
    scale = np.linalg.norm(u.T @ u) * np.linalg.norm(v.T @ v)
    assert value(run, "cka", a, b) == pytest.approx(np.linalg.norm(u.T @ v) ** 2 / scale)
    k, m = x @ x.T, y @ y.T
    unbiased = hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))
    assert value(run, "cka_debiased", a, b) == pytest.approx(unbiased)
    assert value(run, "information_imbalance", a, b) == pytest.approx(imbalance(x, y))


def test_sets_that_have_nothing_in_common() -> None:
    run = run_of(states(prompts=60, width=400))
    assert value(run, "cka", 0, 2) > 0.8  # which is why there is an estimate without bias
    assert abs(value(run, "cka_debiased", 0, 2)) < 0.1
    assert value(run, "information_imbalance", 0, 2) == pytest.approx(1, abs=0.3)


def test_a_rotation_changes_neither_cka_nor_imbalance() -> None:
    given = states(prompts=10)
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))
    given[:, 2] = 3 * given[:, 0] @ turn + 7
    run = run_of(given)
    assert value(run, "cka", 0, 2) == pytest.approx(1, abs=1e-5)
    assert value(run, "cka_debiased", 0, 2) == pytest.approx(1, abs=1e-5)
    assert value(run, "information_imbalance", 0, 2) == pytest.approx(2 / 10)
    assert value(run, "cosine", 0, 2) < 0.9


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_points_that_are_one_tell_nothing(noise: float) -> None:
    given = states()
    given[:, 0] = np.arange(1, 6) + noise * given[:, 0]
    run = run_of(given)
    for a, b in ((0, 2), (2, 0), (0, 0)):
        assert value(run, "information_imbalance", a, b) == pytest.approx(1, abs=1e-9)
        assert math.isnan(value(run, "cka", a, b))
        assert math.isnan(value(run, "cka_debiased", a, b))
    assert value(run, "cka", 1, 2) > 0


def test_imbalance_has_a_direction() -> None:
    """A plane tells of one of its axes all there is to know, and the axis little of the plane."""
    plane = np.random.default_rng(0).normal(size=(200, 2))
    given = np.zeros((200, len(SIZES), 2))
    given[:, 0] = plane * [1, 5]
    given[:, 1, 1] = 5 * plane[:, 1]
    run = run_of(given)
    assert value(run, "information_imbalance", 0, 1) < 0.15
    assert value(run, "information_imbalance", 1, 0) > value(run, "information_imbalance", 0, 1)


def test_ties_of_neighbours_share_their_ranks() -> None:
    line = np.zeros((3, len(SIZES), 1))
    line[:, 0, 0], line[:, 1, 0] = [0, 1, 2], [0, 1, 3]
    # Of the middle point both others are nearest: ranks 1 and 2 of the second size, 1.5 each. The
    # ends have the middle one, which is the first of both: 2/3 x (1 + 1.5 + 1) / 3.
    assert value(run_of(line), "information_imbalance", 0, 1) == pytest.approx(7 / 9)


def test_a_zero_state_has_no_direction_and_few_prompts_no_hsic() -> None:
    given = states(prompts=3)
    given[:, 0] = 0
    run = run_of(given)
    assert value(run, "cosine", 0, 1) == 0
    assert math.isnan(value(run, "cka_debiased", 1, 2))
    assert math.isnan(value(run_of(states(prompts=1)), "information_imbalance", 1, 2))


def test_more_prompts_than_points_are_drawn_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POINTS", 6)
    run = run_of(states())
    table = state_matrices(run, seed=1)
    sets = table["measure"].isin(["cka", "cka_debiased", "information_imbalance"])
    assert set(table.loc[sets, "prompts"]) == {6}
    assert set(table.loc[~sets, "prompts"]) == {12}
    assert table.equals(state_matrices(run, seed=1))
    assert not table.equals(state_matrices(run, seed=2))


def test_the_path_along_sizes_is_its_definition() -> None:
    given = states(prompts=6)
    given[:2, 2] = given[:2, 1]  # two prompts stand still at one step
    table = state_curvature(run_of(given), seed=3).set_index("size")
    steps = np.diff(given.astype(float), axis=1)
    assert table.index.tolist() == list(SIZES[1:])
    for place, size in enumerate(SIZES[1:]):
        lengths = np.linalg.norm(steps[:, place], axis=-1)
        assert table.loc[size, "step"] == pytest.approx(lengths.mean())
        assert table.loc[size, "step_prompts"] == 6
        if place:
            angles = []
            for before, now in zip(steps[:, place - 1], steps[:, place], strict=True):
                if np.linalg.norm(before) and np.linalg.norm(now):
                    scale = np.linalg.norm(before) * np.linalg.norm(now)
                    angles.append(math.acos(before @ now / scale))
            assert table.loc[size, "curvature"] == pytest.approx(np.mean(angles))
            assert table.loc[size, "curvature_prompts"] == len(angles)
            assert len(angles) == (6 if place == 0 else 4)
    assert math.isnan(table["curvature"].iloc[0])


def test_a_sweep_without_hidden_states_has_no_row() -> None:
    bare = synthetic_run(geometry=False)
    assert state_matrices(bare).empty
    assert state_curvature(bare).empty
    assert "value" in state_matrices(bare)
    assert "curvature" in state_curvature(bare)
