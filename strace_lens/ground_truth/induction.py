"""A small model trained on repeated tokens until it has one induction circuit and nothing else.

Two attention-only layers of four heads, trained on sequences that repeat a block of random tokens
of random length (so that positions alone cannot tell what comes next), with a penalty on the root
of each head's norm of W_V W_O. A group penalty on the norm itself may still share the work among
heads, because halves cost as much as a whole; the root, which is concave, leaves one live head in
each layer: one attends to the previous token, the other to the token after an earlier copy of the
current one. Olsson et al. (2022), "In-context Learning and Induction Heads".
"""

from __future__ import annotations

import functools
import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from strace_lens.circuits.task import Task
from strace_lens.ground_truth.training import minimize, random_start
from strace_lens.ground_truth.weights import Weights

LAYERS, HEADS, D_MODEL, D_HEAD, VOCABULARY, LENGTH = 2, 4, 64, 16, 32, 24
_SHORTEST, _LONGEST = 4, 12  # tokens of the repeated block

STEPS, ROWS, RATE, PENALTY = 800, 64, 3e-3, 0.05


def repeated_blocks(
    rows: int, generator: torch.Generator
) -> tuple[Int[Tensor, "row pos"], Int[Tensor, " row"]]:
    """Sequences of `LENGTH` + 1 tokens that repeat a block without repeats, and its length."""
    period = torch.randint(_SHORTEST, _LONGEST + 1, (rows,), generator=generator)
    shuffled = torch.rand(rows, VOCABULARY, generator=generator).argsort(1)
    return shuffled.gather(1, torch.arange(LENGTH + 1) % period[:, None]), period


def induction_weights(seed: int = 0) -> Weights:
    """Weights of the trained model, in about 10 s of one core; the same seed gives the same."""
    return _train(seed)


@functools.lru_cache(maxsize=4)
def _train(seed: int) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    weights = random_start(
        generator,
        vocabulary=VOCABULARY,
        context=LENGTH,
        outputs=VOCABULARY,
        layers=LAYERS,
        heads=HEADS,
        d_model=D_MODEL,
        d_head=D_HEAD,
    )

    def loss() -> Float[Tensor, ""]:
        tokens, period = repeated_blocks(ROWS, generator)
        return copy_loss(weights, tokens, period) + PENALTY * _penalty(weights)

    minimize(weights, loss, steps=STEPS, rate=RATE)
    return weights


def induction_task(pairs: int = 32, seed: int = 0) -> Task:
    """Repeated random tokens, corrupted by others repeated at the same distance.

    The answer is the token that comes next in the clean prompt, the wrong one that of the corrupted
    prompt; measured by logit difference.
    """
    # Not the generator of the training: its rows come from the same seeds.
    generator = torch.Generator().manual_seed(2**20 + seed)
    clean, period = repeated_blocks(pairs, generator)
    shift = torch.randint(1, VOCABULARY, (pairs, VOCABULARY), generator=generator)
    # Each token becomes another: a permutation, moved on where it leaves the answer as it is.
    other = shift.argsort(1)
    rows = torch.arange(pairs)
    same = other[rows, clean[:, -1]] == clean[:, -1]
    other = torch.where(same[:, None], (other + 1) % VOCABULARY, other)
    corrupted = other.gather(1, clean)
    return Task(
        name="induction-trained",
        clean=clean[:, :-1],
        corrupted=corrupted[:, :-1],
        lengths=torch.full((pairs,), LENGTH),
        answers=clean[:, -1:],
        incorrect=corrupted[:, -1:],
        metric="logit_difference",
        metadata={"seed": seed, "periods": period.tolist()},
    )


def copy_loss(
    weights: Weights, tokens: Int[Tensor, "row pos"], period: Int[Tensor, " row"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy, in nats, of what follows a token that was there before."""
    inputs, following = tokens[:, :-1], tokens[:, 1:]
    known: Bool[Tensor, "row pos"] = torch.arange(inputs.shape[1]) >= period[:, None]
    return functional.cross_entropy(_logits(weights, inputs)[known], following[known])


def _logits(w: Weights, tokens: Int[Tensor, "row pos"]) -> Float[Tensor, "row pos vocab"]:
    """The forward pass of an attention-only model, without the hooks, which take most of the time.

    That it is the model's own is tested.
    """
    length = tokens.shape[1]
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    stream = w.W_E[tokens] + w.W_pos[:length]
    for W_Q, W_K, W_V, W_O in zip(w.W_Q, w.W_K, w.W_V, w.W_O, strict=True):
        q, k, v = (torch.einsum("rpm,hme->rhpe", stream, W) for W in (W_Q, W_K, W_V))
        scores = q @ k.transpose(2, 3) / math.sqrt(D_HEAD)
        pattern = scores.masked_fill(later, -torch.inf).softmax(-1)
        stream = stream + torch.einsum("rhpe,hem->rpm", pattern @ v, W_O)
    return stream @ w.W_U


def _penalty(weights: Weights) -> Float[Tensor, ""]:
    norms = (weights.W_V @ weights.W_O).flatten(2).norm(dim=2)
    return (norms + 1e-3).sqrt().sum()  # the root of zero has no gradient
