from __future__ import annotations

import torch

from strace_lens.ground_truth.training import minimize, random_start
from strace_lens.ground_truth.weights import Weights


def start(seed: int, d_mlp: int | None = None) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return random_start(
        generator,
        vocabulary=3,
        context=4,
        outputs=2,
        layers=2,
        heads=3,
        d_model=6,
        d_head=2,
        d_mlp=d_mlp,
    )


def test_random_weights_have_the_sizes_asked_for() -> None:
    weights = start(0, d_mlp=5)
    assert weights.W_Q.shape == (2, 3, 6, 2)
    assert weights.W_U.shape == (6, 2)
    assert weights.W_in is not None
    assert weights.W_in.shape == (2, 6, 5)
    assert start(0).W_in is None
    assert torch.equal(start(0).W_E, weights.W_E)
    assert not torch.equal(start(1).W_E, weights.W_E)


def test_training_goes_downhill_and_leaves_threads_and_gradients_as_they_were() -> None:
    weights, threads = start(0), torch.get_num_threads()

    def loss() -> torch.Tensor:
        assert torch.get_num_threads() == 1
        return (weights.W_U - 1).square().sum() + (weights.W_O + 2).square().sum()

    with torch.no_grad():
        minimize(weights, loss, steps=200, rate=0.2)
    assert float((weights.W_U - 1).abs().max()) < 0.01
    assert float((weights.W_O + 2).abs().max()) < 0.01
    assert not weights.W_U.requires_grad
    assert torch.get_num_threads() == threads
