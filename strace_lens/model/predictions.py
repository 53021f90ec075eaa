"""The next tokens that the model and its traces predict, beside one another."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from strace_lens.model.architecture import Model
from strace_lens.model.prompts import label, own_tokenizer

TOP = 5


class TopToken(NamedTuple):
    """One token's probability under the model and under a trace.

    Attributes:
        token: its text.
        model: probability that the model gives it.
        trace: probability that the trace gives it.
        head: whether it belongs to the head, the model's top-p nucleus.
    """

    token: str
    model: float
    trace: float
    head: bool


def token_texts(model: Model) -> Callable[[int], str]:
    """A token's label by its id (`prompts.label`), each made once."""
    return functools.cache(functools.partial(label, own_tokenizer(model)))


def most_probable(log_probs: Float[Tensor, "row vocab"]) -> Int[Tensor, "row top"]:
    """Ids of the most probable tokens of each row, the first one first, ties by lower id."""
    left = log_probs.clamp_min(torch.finfo(log_probs.dtype).min)  # above what is taken already
    taken = []
    for _ in range(min(TOP, left.shape[-1])):
        taken.append(left.argmax(-1, keepdim=True))  # the first of equal maxima
        left = left.scatter(-1, taken[-1], -torch.inf)
    return torch.cat(taken, -1)


def top_tokens(
    log_probs: Float[Tensor, "row vocab"],
    tokens: Int[Tensor, "row top"],
    token_text: Callable[[int], str],
) -> list[tuple[tuple[str, float], ...]]:
    """Text and probability of some tokens of each row."""
    probabilities = log_probs.gather(-1, tokens).exp().tolist()
    return [
        tuple((token_text(t), p) for t, p in zip(*row, strict=True))
        for row in zip(tokens.tolist(), probabilities, strict=True)
    ]


def paired_top_tokens(
    full: Float[Tensor, " vocab"],
    traces: Float[Tensor, "row vocab"],
    head: Bool[Tensor, " vocab"],
    tokens: Int[Tensor, "row top"],
    token_text: Callable[[int], str],
) -> list[tuple[TopToken, ...]]:
    """The most probable tokens of the model and of each trace, most probable to the model first.

    Args:
        full, traces: log-probabilities of the model and of its traces.
        head: which tokens belong to the head.
        tokens: of `most_probable`, for the traces.
        token_text: of `token_texts`.
    """
    order = full.argsort(descending=True, stable=True)
    place = order.argsort()
    rows = []
    for trace, own in zip(traces, tokens, strict=True):
        shown = torch.cat([order[:TOP], own]).unique()
        shown = shown[place[shown].argsort()]
        columns = (full[shown].exp(), trace[shown].exp(), head[shown])
        texts = map(token_text, shown.tolist())
        rows.append(tuple(map(TopToken, texts, *(c.tolist() for c in columns))))
    return rows
