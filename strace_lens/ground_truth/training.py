"""Weights drawn at random and trained in one way: what the trained known circuits share."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.ground_truth.weights import Weights

_WARM_UP = 50  # steps


def random_start(
    generator: torch.Generator,
    *,
    vocabulary: int,
    context: int,
    outputs: int,
    layers: int,
    heads: int,
    d_model: int,
    d_head: int,
    d_mlp: int | None = None,
    causal: bool = True,
) -> Weights:
    """Random weights of these sizes, with MLPs only where `d_mlp` is given."""

    def normal(*shape: int, scale: float) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    inward, read = (layers, heads, d_model, d_head), d_model**-0.5
    attention = {
        "W_E": normal(vocabulary, d_model, scale=0.5),
        "W_pos": normal(context, d_model, scale=0.5),
        "W_Q": normal(*inward, scale=read),
        "W_K": normal(*inward, scale=read),
        "W_V": normal(*inward, scale=read),
        "W_O": normal(layers, heads, d_head, d_model, scale=0.5 * d_head**-0.5),
        "W_U": normal(d_model, outputs, scale=read),
    }
    if d_mlp is None:
        return Weights(**attention, causal=causal)
    return Weights(
        **attention,
        W_in=normal(layers, d_model, d_mlp, scale=2**0.5 * read),
        b_in=torch.zeros(layers, d_mlp),
        W_out=normal(layers, d_mlp, d_model, scale=0.5 * d_mlp**-0.5),
        b_out=torch.zeros(layers, d_model),
        causal=causal,
    )


def minimize(
    weights: Weights, loss: Callable[[], Float[Tensor, ""]], *, steps: int, rate: float
) -> None:
    """Train weights in place by Adam, on one thread; in the end they need no gradient.

    Args:
        weights: all of their tensors are trained.
        loss: of the weights as they are at a step.
        steps: how many.
        rate: the highest learning rate, after a short rise; then it falls by half a cosine to zero.
    """
    trained = [x for x in vars(weights).values() if isinstance(x, Tensor)]
    optimizer = torch.optim.Adam(trained, lr=rate, betas=(0.9, 0.98))

    def share(step: int) -> float:
        return min(1.0, (step + 1) / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    with _one_thread(), torch.enable_grad():
        for x in trained:
            x.requires_grad_()
        for _ in range(steps):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
            schedule.step()
    for x in trained:
        x.requires_grad_(False)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One thread adds in one order, and for tensors this small it is also faster."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
