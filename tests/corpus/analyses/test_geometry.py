"""Geometry of hidden states over a corpus against loops over prompts."""

from __future__ import annotations

import numpy as np
import pytest

from strace_lens.corpus.analyses.geometry import geometry_by_layer
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
