"""A model whose every edge has an exact, known effect: attention that only averages.

Without norms, MLPs and query-key weights a head adds the average of the tokens so far through
W_V W_O, so logits are linear in what any one edge carries. A gradient then gives an edge's ablation
exactly, whatever is put in its place, and the effects of edges that share no path add up: those
into the logits sum to the whole difference. Writers fill some directions of the stream and readers
read some, so a part of the edges carries exactly nothing.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.component_graph.task import Task
from strace_lens.known.weights import Weights

LAYERS, HEADS, D_HEAD, VOCABULARY, LENGTH = 3, 3, 4, 12, 6
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
        W_V=normal(*shape) * reads / (_READ * D_HEAD) ** 0.5,
        W_O=normal(LAYERS, HEADS, D_HEAD, d_model) * writes / D_HEAD**0.5,
        W_U=normal(d_model, VOCABULARY) * blocks(_BLOCKS // 2)[:, None] / d_model**0.5,
        mlps=None,
        causal=True,
    )


def linear_task(pairs: int = 32, seed: int = 0) -> Task:
    """Random tokens, a random right answer and a random wrong one, measured by logit difference."""
    if pairs < 1:
        raise ValueError(f"a task needs at least one pair; got pairs={pairs}")
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (2, pairs, LENGTH), generator=generator)
    order = torch.stack([torch.randperm(VOCABULARY, generator=generator) for _ in range(pairs)])
    return Task(
        name="linear",
        clean=tokens[0],
        corrupted=tokens[1],
        lengths=torch.full((pairs,), LENGTH),
        answers=order[:, :1],
        wrong=order[:, 1:2],
        metric="logit_difference",
        made={"seed": seed},
    )


def exact_effects(
    weights: Weights, task: Task, ablation: str = "resample"
) -> Float[Tensor, "pair destination source"]:
    """Metric of the full model less that with one edge ablated, in closed form, for every pair.

    What an edge carries less its replacement, through the average of the destination's head and
    through every path from there to the answers' logits at the last token.

    Raises:
        ValueError: an ablation that is none of "zero", "mean" and "resample".
    """
    clean, corrupted = _sources(weights, task.clean), _sources(weights, task.corrupted)
    if ablation == "zero":
        replacement = torch.zeros_like(clean)
    elif ablation == "mean":
        replacement = torch.cat([clean, corrupted], 1).mean(1, keepdim=True)
    elif ablation == "resample":
        replacement = corrupted
    else:
        raise ValueError(f"unknown ablation {ablation!r}; choose from zero, mean, resample")
    worth = _worth(weights, task)
    effects = torch.einsum("sptm,dptm->pds", clean - replacement, worth)
    layers, heads = weights.W_V.shape[:2]
    written = 1 + heads * (torch.arange(len(worth)) // (3 * heads))
    return effects * (torch.arange(1 + layers * heads) < written[:, None])


def _averages(length: int) -> Float[Tensor, "query key"]:
    """The pattern of a head whose scores are all zero."""
    return torch.ones(length, length, dtype=torch.float64).tril() / torch.arange(1, length + 1)[:, None]


def _sources(weights: Weights, tokens: Tensor) -> Float[Tensor, "source pair pos d_model"]:
    """What every source writes, in the component graph's order."""
    pattern = _averages(tokens.shape[1])
    sources = [(weights.W_E[tokens] + weights.W_pos[: tokens.shape[1]]).double()]
    for ov in (weights.W_V.double() @ weights.W_O.double()):
        stream = torch.stack(sources).sum(0)
        sources += list(torch.einsum("qk,pkm,hmn->hpqn", pattern, stream, ov))
    return torch.stack(sources)


def _worth(weights: Weights, task: Task) -> Float[Tensor, "destination pair pos d_model"]:
    """What one unit at each input of each destination adds to the metric."""
    pairs, length = task.clean.shape
    pattern = _averages(length)
    W_U = weights.W_U.double()
    stream = torch.zeros(pairs, length, len(W_U), dtype=torch.float64)
    stream[:, -1] = (W_U[:, task.answers[:, 0]] - W_U[:, task.wrong[:, 0]]).T
    worth = [stream[None]]
    for ov in reversed(weights.W_V.double() @ weights.W_O.double()):
        value = torch.einsum("qk,pqn,hmn->hpkm", pattern, stream, ov)
        silent = torch.zeros_like(value)  # nothing read as a query or a key changes the pattern
        worth.insert(0, torch.cat([silent, silent, value]))
        stream = stream + value.sum(0)
    return torch.cat(worth)
