"""What ablating each edge of the linear model does to its metric, in closed form."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from strace_lens.circuits.task import Task
from strace_lens.ground_truth.weights import Weights


def exact_effects(
    weights: Weights, task: Task, ablation: str = "resample"
) -> Float[Tensor, "pair destination source"]:
    """Metric of the full model less that with one edge ablated, in closed form, for every pair.

    What an edge carries less its replacement, through the average of the destination's head and
    through every path from there to the logits at the last token, along the direction from the
    corrupted logits to the clean ones.

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
    difference = (clean - corrupted).sum(0)[:, -1] @ weights.W_U.double()
    towards = difference / difference.square().sum(-1, keepdim=True)
    worth = _worth(weights, towards, task.clean.shape[1])
    effects = torch.einsum("sptm,dptm->pds", clean - replacement, worth)
    layers, heads = weights.W_V.shape[:2]
    written = 1 + heads * (torch.arange(len(worth)) // (3 * heads))
    return effects * (torch.arange(1 + layers * heads) < written[:, None])


def _averages(length: int) -> Float[Tensor, "query key"]:
    """The pattern of a head whose scores are all zero."""
    before = torch.ones(length, length, dtype=torch.float64).tril()
    return before / before.sum(1, keepdim=True)


def _sources(
    weights: Weights, tokens: Int[Tensor, "pair pos"]
) -> Float[Tensor, "source pair pos d_model"]:
    """What every source writes, in the component graph's order."""
    pattern = _averages(tokens.shape[1])
    sources = [(weights.W_E[tokens] + weights.W_pos[: tokens.shape[1]]).double()]
    for ov in weights.W_V.double() @ weights.W_O.double():
        stream = torch.stack(sources).sum(0)
        sources += list(torch.einsum("qk,pkm,hmn->hpqn", pattern, stream, ov))
    return torch.stack(sources)


def _worth(
    weights: Weights, towards: Float[Tensor, "pair out"], length: int
) -> Float[Tensor, "destination pair pos d_model"]:
    """What one unit at each input of each destination adds to the logits along `towards`."""
    pattern = _averages(length)
    last = towards @ weights.W_U.double().T
    stream = functional.pad(last[:, None], (0, 0, length - 1, 0))
    worth = [stream[None]]
    for ov in (weights.W_V.double() @ weights.W_O.double()).flip(0):
        value = torch.einsum("qk,pqn,hmn->hpkm", pattern, stream, ov)
        silent = torch.zeros_like(value)  # what is read as query or key changes no pattern
        worth.insert(0, torch.cat([silent, silent, value]))
        stream = stream + value.sum(0)
    return torch.cat(worth)
