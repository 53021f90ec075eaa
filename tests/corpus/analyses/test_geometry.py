"""Geometry of hidden states over a corpus against loops over prompts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from strace_lens.corpus.analyses.geometry import geometry_by_layer
from strace_lens.corpus.run_folder import GEOMETRY, Run
from strace_lens.measures.intervals import interval
from tests.corpus.synthetic import synthetic_run

RUN = synthetic_run(prompts=4)


def test_means_over_prompts_by_size_and_layer() -> None:
    table = geometry_by_layer(RUN).set_index(["size", "layer"])
    assert len(table) == len(RUN.grid) * 4
    for (size, layer), row in table.iterrows():
        here = (RUN.geometry["size"] == size) & (RUN.geometry["layer"] == layer)
        own = RUN.geometry[here]
        for name in ("cosine", "l2", "cka", "velocity"):
            assert row[name] == pytest.approx(own[name].mean())
            assert row[f"{name}_low"] <= row[name] + 1e-12
            assert row[f"{name}_prompts"] == 4
        full = RUN.path[RUN.path["layer"] == layer]
        assert row["full_velocity"] == pytest.approx(full["velocity"].mean())
        ratio = own["velocity"].to_numpy() / full["velocity"].to_numpy()
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
    geometry = run.geometry.assign(
        cosine=draw.random(len(run.geometry)), cka=draw.random(len(run.geometry))
    )
    geometry.loc[geometry["layer"] == 2, "cka"] = np.nan
    still = (geometry["size"] == 0.01) & geometry["prompt"].isin([0, 3]) & (geometry["layer"] > 0)
    geometry.loc[still, ["velocity", "curvature"]] = [0.0, np.nan]
    path = run.path.assign(velocity=draw.uniform(1, 3, len(run.path)))
    return replace(run, geometry=geometry, path=path)


@pytest.mark.parametrize("shuffle", [False, True])
def test_prompts_without_a_value_are_left_out_of_its_mean(shuffle: bool) -> None:
    run = holed()
    full = run.path.set_index(["prompt", "layer"])["velocity"]
    given = run
    if shuffle:
        parts = {"geometry": run.geometry.sample(frac=1, random_state=0)}
        given = replace(run, path=run.path.sample(frac=1, random_state=1), **parts)
    for row in geometry_by_layer(given).to_dict("records"):
        here = (run.geometry["size"] == row["size"]) & (run.geometry["layer"] == row["layer"])
        rows = run.geometry[here].to_dict("records")
        own = {name: [one[name] for one in rows] for name in GEOMETRY}
        own["velocity_ratio"] = [
            one["velocity"] / full[one["prompt"], row["layer"]] for one in rows
        ]
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


def test_the_full_model_is_told_of_the_same_prompts() -> None:
    run = holed()
    table = geometry_by_layer(replace(run, geometry=run.geometry.query("prompt != 1")))
    assert (table["prompts"] == 4).all()
    own = run.path.query("prompt != 1 and layer == 0")["velocity"].mean()
    assert table["full_velocity"][0] == pytest.approx(own)
