"""The next tokens that the model and its traces predict, beside one another."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens import measures
from strace_lens.architecture import Model
from strace_lens.prompts import own_tokenizer

TOP = 5


class Beside(NamedTuple):
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
    """A token's text by its id; the id itself where the model has no tokenizer."""
    tokenizer = own_tokenizer(model)
    return str if tokenizer is None else lambda token: tokenizer.decode([token])


def top_tokens(
    log_probs: Float[Tensor, "row vocab"], token_text: Callable[[int], str]
) -> list[tuple[tuple[str, float], ...]]:
    """The most probable tokens of each row, as pairs of text and probability."""
    order = log_probs.sort(descending=True, stable=True)
    tokens, probabilities = order.indices[:, :TOP].tolist(), order.values[:, :TOP].exp().tolist()
    return [
        tuple((token_text(t), p) for t, p in zip(*row, strict=True))
        for row in zip(tokens, probabilities, strict=True)
    ]


def beside(
    full: Float[Tensor, "1 vocab"],
    traces: Float[Tensor, "row vocab"],
    head: float,
    token_text: Callable[[int], str],
) -> list[tuple[Beside, ...]]:
    """The most probable tokens of the model and of each trace, most probable to the model first.

    Args:
        full: log-probabilities of the model.
        traces: log-probabilities of its traces.
        head: p of the head.
        token_text: of `token_texts`.
    """
    (in_head,) = measures.in_nucleus(full, head)
    order = full[0].argsort(descending=True, stable=True)
    place = order.argsort()
    favourites = traces.argsort(dim=-1, descending=True, stable=True)[:, :TOP]
    rows = []
    for trace, own in zip(traces, favourites, strict=True):
        tokens = torch.cat([order[:TOP], own]).unique()
        tokens = tokens[place[tokens].argsort()]
        columns = (full[0, tokens].exp(), trace[tokens].exp(), in_head[tokens])
        texts = map(token_text, tokens.tolist())
        rows.append(tuple(map(Beside, texts, *(c.tolist() for c in columns))))
    return rows


def head_masses(
    full: Float[Tensor, "1 vocab"], traces: Float[Tensor, "row vocab"], head: float
) -> list[float]:
    """Probability that each trace gives the head of the model's distribution."""
    return traces.exp().masked_fill(~measures.in_nucleus(full, head), 0.0).sum(-1).tolist()
