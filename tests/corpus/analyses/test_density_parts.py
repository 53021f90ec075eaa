"""Plateau and half size against curves whose answers are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from strace_lens.corpus.analyses.density_parts import density_parts, part_correlations
from strace_lens.plot.corpus.density_parts import plot_density_parts
from tests.corpus.synthetic import synthetic_run

SIZES = (0.001, 0.01, 0.1, 1.0)


def run_of(*curves: list[float]):
    plain = synthetic_run(prompts=len(curves), sizes=SIZES)
    return replace(plain, sizes=plain.sizes.assign(tv=np.concatenate(curves)))


def test_half_of_the_plateau_is_crossed_between_sizes() -> None:
    found = density_parts(
        run_of([0.8, 0.8, 0.2, 0.0], [0.8, 0.1, 0.6, 0.0], [0.5, 0.5, 0.5, 0.5], [0.0] * 4)
    )
    assert found["plateau"].tolist() == [0.8, 0.8, 0.5, 0.0]
    # From 0.8 at 10^-2 to 0.2 at 10^-1 it is 0.4 after two thirds of the decade.
    assert found["half_size"][0] == pytest.approx(10 ** (-2 + 2 / 3))
    assert found["half_size"][1] == pytest.approx(10 ** (-1 + 1 / 3))  # the last crossing counts
    assert found["half_size"][2:].isna().all()


def test_correlations_are_those_of_scipy() -> None:
    run = synthetic_run(prompts=12)
    parts = density_parts(run)
    table = part_correlations(run, resamples=100).set_index(["part", "what"])
    for part in ("plateau", "half_size"):
        for what in ("entropy", "tokens", "loss"):
            both = parts[[part, what]].dropna()
            rho = spearmanr(both[part], both[what]).statistic
            assert table.loc[(part, what), "rho"] == pytest.approx(rho)
            assert table.loc[(part, what), "prompts"] == len(both)


def test_the_figure_holds_every_prompt() -> None:
    run = synthetic_run(prompts=12)
    parts = density_parts(run).assign(run=run.name)
    correlations = part_correlations(run, resamples=100).assign(run=run.name)
    fig = plot_density_parts(parts, correlations)
    assert list(fig.data[0].y) == parts["plateau"].tolist()
    assert list(fig.data[1].y) == parts["half_size"].tolist()
    alone = synthetic_run(prompts=1)
    fig = plot_density_parts(
        density_parts(alone).assign(run="x"), part_correlations(alone).assign(run="x")
    )
    assert "no ρ" in fig.layout.annotations[0].text
    assert not plot_density_parts(parts.iloc[:0], correlations).data
