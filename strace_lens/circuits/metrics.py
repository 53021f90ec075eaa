"""Metrics of a task: one number for the model's output on each row; higher is better.

A metric is a function of logits and of what they are compared with (`Reference`). All but
`answer_rank` are differentiable. Half precision is converted to float32 before anything is summed.
Rows whose metric is not defined (no answer, equal clean and corrupted outputs) raise ValueError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Logits = Float[Tensor, "row read vocab"]
"""At the last position of a prompt (read = 1) or at every one."""

PerRow = Float[Tensor, " row"]


class Reference(NamedTuple):
    """What rows of logits are measured against; of ids, -1 stands where a row has fewer."""

    clean: Logits  # of the full model
    corrupted: Logits  # the same on the corrupted prompt
    answers: Int[Tensor, "row answer"]  # ids of the right tokens
    incorrect: Int[Tensor, "row wrong"]


Metric = Callable[[Logits, Reference], PerRow]


def logit_difference(logits: Logits, reference: Reference) -> PerRow:
    """Mean logit of the answers less that of the wrong ones, at the last position read.

    Wang et al. (2023), "Interpretability in the Wild", have one answer and one wrong one.
    """
    last = _wide(logits)[:, -1]
    right, right_count = _picked(last, reference.answers, "answer")
    wrong, wrong_count = _picked(last, reference.incorrect, "wrong answer")
    return right.sum(-1) / right_count - wrong.sum(-1) / wrong_count


def probability_difference(logits: Logits, reference: Reference) -> PerRow:
    """Summed probability of the answers less that of the wrong ones, at the last position read.

    Hanna et al. (2023), "How does GPT-2 compute greater-than?".
    """
    last = _wide(logits)[:, -1].softmax(-1)
    right, _ = _picked(last, reference.answers, "answer")
    wrong, _ = _picked(last, reference.incorrect, "wrong answer")
    return right.sum(-1) - wrong.sum(-1)


def kl_divergence(logits: Logits, reference: Reference) -> PerRow:
    """Minus KL(clean || row) in nats, the mean over the positions read; 0 at the clean output.

    Conmy et al. (2023), "Towards Automated Circuit Discovery".
    """
    clean = _wide(reference.clean).log_softmax(-1)
    gap = _wide(logits).log_softmax(-1) - clean
    return (clean.exp() * gap).sum(-1).mean(-1)


def answer_rank(logits: Logits, reference: Reference) -> PerRow:
    """Minus the rank of the best answer among all tokens, at the last position read; 0 is first.

    Equal logits are ranked by token id, the lowest first. Not differentiable.
    """
    last = _wide(logits.detach())[:, -1]
    picked, _ = _picked(last, reference.answers, "answer", fill=-torch.inf)
    best = picked.amax(-1, keepdim=True)
    beyond = last.shape[-1]
    ids = reference.answers.to(last.device).masked_fill(picked != best, beyond)
    lowest = ids.masked_fill(ids < 0, beyond).amin(-1, keepdim=True)
    earlier = torch.arange(beyond, device=last.device) < lowest
    return -((last > best) | ((last == best) & earlier)).sum(-1).to(last.dtype)


def fraction_recovered(logits: Logits, reference: Reference) -> PerRow:
    """How far the output is from the corrupted one (0) towards the clean one (1); linear.

    (row - corrupted) . (clean - corrupted) / |clean - corrupted|^2, over all positions read and
    all tokens. It needs no answers.
    """
    corrupted = _wide(reference.corrupted).flatten(1)
    towards = _wide(reference.clean).flatten(1) - corrupted
    length = towards.square().sum(-1)
    _expect_all(length > 0, "has equal clean and corrupted outputs; nothing to recover")
    return ((_wide(logits).flatten(1) - corrupted) * towards).sum(-1) / length


METRICS: dict[str, Metric] = {
    "logit_difference": logit_difference,
    "probability_difference": probability_difference,
    "kl_divergence": kl_divergence,
    "answer_rank": answer_rank,
    "recovered": fraction_recovered,
}
"""The metrics, by name."""

NEEDS: Mapping[str, tuple[str, ...]] = {
    "logit_difference": ("answers", "incorrect"),
    "probability_difference": ("answers", "incorrect"),
    "kl_divergence": (),
    "answer_rank": ("answers",),
    "recovered": (),
}
"""Which token ids of a task each metric reads."""


def answers_win(logits: Logits, reference: Reference) -> Bool[Tensor, " row"]:
    """Whether the best answer beats the best wrong one at the last position read.

    Where a row names no wrong ones, all other tokens are.
    """
    last = _wide(logits)[:, -1]
    best, _ = _picked(last, reference.answers, "answer", fill=-torch.inf)
    best = best.amax(-1)
    wins = answer_rank(logits, reference) == 0
    named = (reference.incorrect >= 0).any(-1).to(last.device)
    if bool(named.any()):
        wrong = reference.incorrect.to(last.device)
        values = last.gather(-1, wrong.clamp_min(0)).masked_fill(wrong < 0, -torch.inf)
        wins = torch.where(named, best > values.amax(-1), wins)
    return wins


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _picked(
    values: Float[Tensor, "row vocab"],
    ids: Int[Tensor, "row picked"],
    what: str,
    fill: float = 0.0,
) -> tuple[Float[Tensor, "row picked"], Int[Tensor, " row"]]:
    """Values at the ids, `fill` where an id is -1, and how many ids each row has."""
    ids = ids.to(values.device)
    here = ids >= 0
    _expect_all(here.any(-1), f"names no {what}; use a metric that needs none")
    picked = values.gather(-1, ids.clamp_min(0))
    return torch.where(here, picked, fill), here.sum(-1)


def _expect_all(good: Bool[Tensor, " row"], what: str) -> None:
    if not bool(good.all()):
        raise ValueError(f"row {int((~good).nonzero()[0, 0])} {what}")
