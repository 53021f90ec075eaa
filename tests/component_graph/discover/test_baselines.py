"""The random ranking: uniform, seeded and without a pass."""

from __future__ import annotations

import pytest
import torch

from strace_lens.component_graph.discover.baselines import random
from strace_lens.component_graph.experiment import make_experiment
from tests import cases
from tests.component_graph.made import tiny_task, uneven_task


def test_random_is_uniform_and_seeded() -> None:
    experiment = make_experiment(cases.model_of("llama"), tiny_task())
    exists = experiment.graph.exists
    first, again, other = (random(experiment, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not first[~exists].any()
    assert 0.4 < float(first[exists].mean()) < 0.6
    assert experiment.passes.forward_rows == 0
    by_position = random(experiment, positions=True)
    assert by_position.shape == (*exists.shape, 6)
    assert by_position[exists].unique().numel() > 0.99 * 6 * experiment.graph.edges


def test_random_positions_need_one_length() -> None:
    experiment = make_experiment(cases.model_of("llama"), uneven_task())
    with pytest.raises(ValueError, match="one length"):
        random(experiment, positions=True)
