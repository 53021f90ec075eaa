"""A model whose every edge has an exact, known effect: attention that only averages.

Without norms, MLPs and query-key weights a head adds the average of the tokens so far through
W_V W_O, so the logits are linear in what any one edge carries. A gradient then gives an edge's
ablation exactly, whatever is put in its place, and effects of edges that share no path add up:
those into the logits to the whole difference, those into a head to that head's. Writers fill some
directions of the stream and readers read some, so many edges carry exactly nothing.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.circuits.task import Task
from strace_lens.ground_truth.weights import Weights

LAYERS, HEADS, D_HEAD, VOCABULARY, LENGTH = 3, 3, 4, 32, 6
_BLOCKS = 8  # of the stream, D_HEAD directions each
_READ = 2  # blocks that a head reads


def linear_weights(seed: int = 0) -> Weights:
    """Random weights of the linear model; the same seed gives the same."""
    generator = torch.Generator().manual_seed(seed)
    d_model = _BLOCKS * D_HEAD

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def blocks(count: int) -> Float[Tensor, " d_model"]:
        """One in the directions of some random blocks of the stream, zero elsewhere."""
        chosen = torch.randperm(_BLOCKS, generator=generator)[:count]
        return torch.zeros(_BLOCKS).index_fill(0, chosen, 1.0).repeat_interleave(D_HEAD)

    shape = (LAYERS, HEADS, d_model, D_HEAD)
    reads = torch.stack([blocks(_READ) for _ in range(LAYERS * HEADS)]).view(*shape[:3], 1)
    writes = torch.stack([blocks(_READ) for _ in range(LAYERS * HEADS)]).view(*shape[:2], 1, -1)
    return Weights(
        W_E=normal(VOCABULARY, d_model) * blocks(_BLOCKS // 2),
        W_pos=torch.zeros(LENGTH, d_model),
        W_Q=torch.zeros(shape),
        W_K=torch.zeros(shape),
        # Twice the scale at which a head would write as much as it reads, for what averaging loses.
        W_V=2 * normal(*shape) * reads / (_READ * D_HEAD) ** 0.5,
        W_O=normal(LAYERS, HEADS, D_HEAD, d_model) * writes / D_HEAD**0.5,
        W_U=normal(d_model, VOCABULARY) * blocks(_BLOCKS // 2)[:, None] / d_model**0.5,
    )


def linear_task(pairs: int = 32, seed: int = 0) -> Task:
    """Random tokens beside others, measured by the share of the way from corrupted to clean.

    That metric is linear in the logits, and an edge that carries anything mostly helps it.
    """
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(VOCABULARY, (pairs, LENGTH), generator=generator)
    moved = torch.randint(1, VOCABULARY, (pairs, LENGTH), generator=generator)
    none = torch.full((pairs, 1), -1)
    return Task(
        name="linear",
        clean=clean,
        corrupted=(clean + moved) % VOCABULARY,
        lengths=torch.full((pairs,), LENGTH),
        answers=none,
        incorrect=none,
        metric="recovered",
        metadata={"seed": seed},
    )
