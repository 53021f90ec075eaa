"""The random ranking: uniform, seeded and without a pass."""

from __future__ import annotations

import pytest
import torch

from strace_lens.component_graph.discover.baselines import random
from strace_lens.component_graph.experiment import prepare
from tests import cases
from tests.component_graph.made import tiny_task, uneven_task


def test_random_is_uniform_and_seeded() -> None:
    problem = prepare(cases.model_of("llama"), tiny_task())
    exists = problem.graph.exists
    first, again, other = (random(problem, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not first[~exists].any()
    assert 0.4 < float(first[exists].mean()) < 0.6
    assert problem.passes.forward_rows == 0
    by_position = random(problem, positions=True)
    assert by_position.shape == (*exists.shape, 6)
    assert by_position[exists].unique().numel() > 0.99 * 6 * problem.graph.edges


def test_random_positions_need_one_length() -> None:
    problem = prepare(cases.model_of("llama"), uneven_task())
    with pytest.raises(ValueError, match="one length"):
        random(problem, positions=True)
