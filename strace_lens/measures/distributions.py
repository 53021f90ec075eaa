"""Measures of how near a trace's next-token distribution is to the full model's.

Pure functions of rows of log-probabilities (s-Trace, arXiv 2605.27033, section "measures"). Rows
are batched: `full` is usually one row that is broadcast over the rows of `trace`, one row a size or
a control. Inputs are the outputs of `log_softmax` in any float dtype. Each row is checked, then
widened to float64 and renormalised, so that the rounding of the input dtype does not show up as
lost mass. Results are float64, and on the CPU where the device has no float64 (mps). A row whose
sum misses 1 by more than 16 steps of its dtype (1e-4 at least), and shapes that do not broadcast,
raise ValueError. Working memory is a few float64 copies of `trace`.

Order: "most probable" always means descending log-probability, ties to the lowest token id.
Information is in nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NUCLEI = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)
"""Levels p at which the nuclei of two distributions are compared."""

MASS_TOLERANCE = 1e-6
"""A nucleus reaches p from p - MASS_TOLERANCE on: float32 rounding of an exact hit does not count
as a miss. Levels p of nuclei are compared with it too."""

# ------------------------------------------------------------------ rows of log-probabilities


def _normalised(
    log_probs: Float[Tensor, "*row vocab"],
) -> tuple[Float[Tensor, "*row vocab"], Float[Tensor, "*row vocab"]]:
    """Log-probabilities and probabilities in float64, each row checked and made to sum to 1."""
    if log_probs.numel() == 0:
        raise ValueError(f"log-probabilities of shape {tuple(log_probs.shape)} hold no values")
    device = "cpu" if log_probs.device.type == "mps" else log_probs.device
    wide = log_probs.to(device, torch.float64)
    probs = wide.exp()
    sums = probs.sum(-1, keepdim=True)
    # A log-probability of -20 is rounded by up to 10 steps; a uniform row rounds all alike.
    tolerance = max(1e-4, 16 * torch.finfo(log_probs.dtype).eps)
    good = (sums[..., 0] - 1).abs() <= tolerance  # False for NaN
    if not bool(good.all()):
        row = tuple(int(i) for i in (~good).nonzero()[0])
        values, where = wide[row], f"row {row}" if row else "the only row"
        if bool(values.isnan().any()):
            raise ValueError(f"log-probabilities of {where} hold NaN; check the model's logits")
        if bool(values.isposinf().any()):
            raise ValueError(f"log-probabilities of {where} hold +inf; check the model's logits")
        raise ValueError(
            f"probabilities of {where} sum to {float(sums[row]):.6g}, not to 1 within "
            f"{tolerance:.3g}; pass the output of log_softmax"
        )
    return wide - sums.log(), probs.div_(sums)


class _Pair(NamedTuple):
    """The model's distribution p and a trace's q: log-probabilities and probabilities."""

    log_p: Float[Tensor, "*#row vocab"]
    p: Float[Tensor, "*#row vocab"]
    log_q: Float[Tensor, "*row vocab"]
    q: Float[Tensor, "*row vocab"]


def _pair(full: Float[Tensor, "*#row vocab"], trace: Float[Tensor, "*row vocab"]) -> _Pair:
    same_vocab = full.shape[-1:] == trace.shape[-1:]
    try:
        fits = same_vocab and torch.broadcast_shapes(full.shape, trace.shape) == trace.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"full of shape {tuple(full.shape)} does not broadcast to trace of shape "
            f"{tuple(trace.shape)}; pass one full row, or one for each row of trace"
        )
    return _Pair(*_normalised(full), *_normalised(trace))


# ------------------------------------------------------------------ distances


def total_variation(
    full: Float[Tensor, "*#row vocab"], trace: Float[Tensor, "*row vocab"]
) -> Float[Tensor, "*row"]:
    """Total variation 1/2 sum |p - q|, in [0, 1]."""
    _, p, _, q = _pair(full, trace)
    return (p - q).abs().sum(-1) / 2


def named_total_variation(
    full: Float[Tensor, "*#row vocab"], trace: Float[Tensor, "*row vocab"], tokens: Sequence[int]
) -> Float[Tensor, "*row"]:
    """Total variation of the distributions over some tokens and all others as one, in [0, 1].

    It is at most `total_variation`, and for one token the difference of its probabilities.

    Raises:
        ValueError: an id out of the vocabulary.
    """
    _, p, _, q = _pair(full, trace)
    bad = next((i for i in tokens if not 0 <= i < p.shape[-1]), None)
    if bad is not None:
        raise ValueError(f"token id {bad} lies outside the vocabulary of {p.shape[-1]}")
    gaps = (p - q)[..., list(dict.fromkeys(tokens))]
    return (gaps.abs().sum(-1) + gaps.sum(-1).abs()) / 2


def kl_divergence(
    full: Float[Tensor, "*#row vocab"], trace: Float[Tensor, "*row vocab"]
) -> Float[Tensor, "*row"]:
    """Kullback-Leibler divergence KL(full || trace) in nats, in [0, inf].

    Worked out from log-probabilities, so it is right where a probability underflows. A token that
    full gives probability 0 (-inf) contributes 0; one that only trace gives 0 makes the row inf.
    """
    log_p, p, log_q, _ = _pair(full, trace)
    outside = log_p.isneginf()
    only_full = log_q.isneginf() & ~outside
    terms = (p * (log_p - log_q)).masked_fill(outside | log_q.isneginf(), 0.0)
    # Rounding of equal rows can give -1e-17.
    return terms.sum(-1).clamp_min(0.0).masked_fill(only_full.any(-1), math.inf)


def jensen_shannon(
    full: Float[Tensor, "*#row vocab"], trace: Float[Tensor, "*row vocab"]
) -> Float[Tensor, "*row"]:
    """Jensen-Shannon divergence in nats, in [0, ln 2]; symmetric; not its square root.

    Worked out as the entropy of the mean less the mean entropy: exact to about 1e-15 absolute.
    """
    _, p, _, q = _pair(full, trace)
    entr = torch.special.entr  # -x ln x, 0 at 0
    mixed = entr((p + q) / 2).sum(-1)
    return (mixed - (entr(p).sum(-1) + entr(q).sum(-1)) / 2).clamp(0.0, math.log(2))


def entropy(full: Float[Tensor, "*row vocab"]) -> Float[Tensor, "*row"]:
    """Entropy of each row in nats, in [0, ln vocab]."""
    _, p = _normalised(full)
    return torch.special.entr(p).sum(-1)


# ------------------------------------------------------------------ most probable tokens


def top1_agreement(
    full: Float[Tensor, "*#row vocab"], trace: Float[Tensor, "*row vocab"]
) -> Bool[Tensor, "*row"]:
    """Whether the most probable token is the same; a tie goes to the lowest token id."""
    log_p, _, log_q, _ = _pair(full, trace)
    # argmax returns the first of equal maxima (stated in PyTorch's reference).
    return log_p.argmax(-1) == log_q.argmax(-1)


# ------------------------------------------------------------------ nuclei


def _count_to_reach(mass: Float[Tensor, "*row token"], p: float) -> Int[Tensor, "*row"]:
    """First count whose cumulative mass reaches p; one more than there are tokens if none does."""
    return (mass < p - MASS_TOLERANCE).sum(-1) + 1


def shared_nucleus(
    full: Float[Tensor, "*#row vocab"], trace: Float[Tensor, "*row vocab"]
) -> Float[Tensor, "*row"]:
    """Largest p in NUCLEI whose ordered top-p sets are the same in full and trace; 0 if none.

    The same means the same tokens in the same order and as many of them. A smaller p need not be
    shared: its two sets may differ in length.

    Only the rows of `full` are sorted; `trace` is read in that order up to full's 99 % nucleus.
    """
    log_p, p, log_q, q = _pair(full, trace)
    rows = trace.shape[:-1]
    order = torch.argsort(log_p, dim=-1, descending=True, stable=True)
    mass_p = p.gather(-1, order).cumsum(-1)
    bound = int(_count_to_reach(mass_p, NUCLEI[-1]).max())

    tokens = order[..., :bound].expand(*rows, bound)
    values = log_q.gather(-1, tokens)
    mass_q = q.gather(-1, tokens).cumsum(-1)
    falls = values[..., :-1] > values[..., 1:]
    tied_by_id = (values[..., :-1] == values[..., 1:]) & (tokens[..., :-1] < tokens[..., 1:])
    in_order = 1 + (falls | tied_by_id).long().cumprod(-1).sum(-1)

    ids = torch.arange(log_q.shape[-1], device=log_q.device)
    shared = torch.zeros(rows, dtype=torch.float64, device=log_q.device)
    for level in reversed(NUCLEI):
        size = _count_to_reach(mass_p, level).expand(rows)
        open_rows = (shared == 0) & (in_order >= size) & (_count_to_reach(mass_q, level) == size)
        if not bool(open_rows.any()):
            continue
        # The first `size` tokens are in trace's order among themselves; they are its first ones if
        # no other token comes before the last of them.
        last = tokens[open_rows].gather(-1, size[open_rows].unsqueeze(-1) - 1)
        rest, value = log_q[open_rows], log_q[open_rows].gather(-1, last)
        before = (rest > value) | ((rest == value) & (ids < last))
        shared[open_rows] = (before.sum(-1) == size[open_rows] - 1).double() * level
    return shared


def in_nucleus(full: Float[Tensor, "*row vocab"], p: float = 0.5) -> Bool[Tensor, "*row vocab"]:
    """Which tokens belong to the top-p nucleus of each row.

    Raises:
        ValueError: p outside (0, 1).
    """
    return _in_nucleus(*_normalised(full), p)


def _in_nucleus(
    log_probs: Float[Tensor, "*row vocab"], probs: Float[Tensor, "*row vocab"], p: float
) -> Bool[Tensor, "*row vocab"]:
    if not 0 < p < 1:
        raise ValueError(f"p must lie in (0, 1); got {p}")
    order = torch.argsort(log_probs, dim=-1, descending=True, stable=True)
    size = _count_to_reach(probs.gather(-1, order).cumsum(-1), p)
    inside = torch.arange(probs.shape[-1], device=probs.device) < size.unsqueeze(-1)
    return torch.zeros_like(inside).scatter(-1, order, inside)


def head_tail_error(
    full: Float[Tensor, "*#row vocab"], trace: Float[Tensor, "*row vocab"], p: float = 0.5
) -> tuple[Float[Tensor, "*row"], Float[Tensor, "*row"]]:
    """Error in the head and in the tail of the full model's distribution.

    The head is the full model's top-p nucleus, the tail every other token. Each error is
    1/2 sum |p - q| over its tokens, so the two add to the total variation.

    Returns:
        (head error, tail error).

    Raises:
        ValueError: p outside (0, 1).
    """
    log_full, of_full, _, of_trace = _pair(full, trace)
    head = _in_nucleus(log_full, of_full, p)
    error = (of_full - of_trace).abs() / 2
    return error.masked_fill(~head, 0.0).sum(-1), error.masked_fill(head, 0.0).sum(-1)


def head_mass(full: Float[Tensor, "*row vocab"], p: float = 0.5) -> Float[Tensor, "*row"]:
    """Mass of the top-p nucleus of each row: at least p (within MASS_TOLERANCE), at most 1.

    Raises:
        ValueError: p outside (0, 1).
    """
    log_probs, probs = _normalised(full)
    return probs.masked_fill(~_in_nucleus(log_probs, probs, p), 0.0).sum(-1).clamp_max(1.0)
