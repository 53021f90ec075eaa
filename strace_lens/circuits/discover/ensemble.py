"""Ensembles: the scores that several methods give an edge, combined into one.

After the parallel ensembles of "BlackboxNLP-2025 MIB Shared Task: Exploring Ensemble Strategies for
Circuit Localization Methods" (arXiv 2510.06811), which take means, minima and maxima of scores.
Since the scores of two methods differ in scale, each is first divided by its root mean square over
edges; ranks need no scaling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from strace_lens.circuits.graph import EdgeValues

HOWS = ("rank", "mean", "min", "max")


def combined(
    members: Sequence[EdgeValues],
    exists: Bool[Tensor, "destination source"],
    *,
    signed: Sequence[bool],
    how: str = "rank",
    weights: Sequence[float] | None = None,
) -> EdgeValues:
    """Combine the scores of several methods into one score per edge.

    Args:
        members: the scores of each method.
        exists: which cells are edges.
        signed: for each method, whether its scores are effects; if not, only their order counts.
        how: "rank": the mean of the ranks by magnitude, 1 for the edge of the largest, with the
            sign for which the members' ranks have the larger sum; "mean", "min" or "max" of the
            scores over their root mean square. If only the order of one member counts, ranks have
            no sign.
        weights: weights of the members in a mean, by default equal.

    Raises:
        ValueError: an unknown `how`, weights that do not fit, a sum of weights that is not
            positive, weights with a minimum or maximum, or a `how` other than "rank" with a member
            of which only the order counts.
    """
    if how not in HOWS:
        raise ValueError(f"how must be one of {', '.join(HOWS)}; got {how!r}")
    if weights is not None and how in ("min", "max"):
        raise ValueError(f"a {how} has no weights; got {list(weights)}")
    share = [1.0] * len(members) if weights is None else [float(w) for w in weights]
    sound = all(math.isfinite(w) and w >= 0 for w in share)
    if len(share) != len(members) or not sound or not sum(share) > 0:
        raise ValueError(
            f"weights must be {len(members)} numbers of at least 0, not all 0; got {weights}"
        )
    if how != "rank" and not all(signed):
        raise ValueError(f"the scores of a member have only an order: use how='rank', not {how!r}")
    edges = torch.stack([values.cpu()[exists].double() for values in members])
    if how == "rank":
        ranks = [
            mean_ranks(values.abs() if own else values)
            for values, own in zip(edges, signed, strict=True)
        ]
        found = _mean(torch.stack(ranks), share)
        if all(signed):
            # Ranks with their signs would cancel where one member of three takes the other side,
            # and put an edge of great effect below all that matter little to each of them.
            found = found * _mean(torch.stack(ranks) * edges.sign(), share).sign()
    else:
        edges = edges / edges.square().mean(1, keepdim=True).sqrt().clamp_min(1e-30)
        ends = {"min": edges.amin(0), "max": edges.amax(0)}
        found = ends[how] if how in ends else _mean(edges, share)
    values = torch.zeros(exists.shape)
    values[exists] = found.float()
    return values


def _mean(rows: Float[Tensor, "member edge"], weights: Sequence[float]) -> Float[Tensor, " edge"]:
    """The mean over members by their weights."""
    return (rows * torch.tensor(weights, dtype=rows.dtype)[:, None]).sum(0) / sum(weights)


def mean_ranks(values: Float[Tensor, " edge"]) -> Float[Tensor, " edge"]:
    """Ranks in (0, 1], the largest value's 1; values that are equal share the mean of theirs."""
    _, place, ties = values.unique(return_inverse=True, return_counts=True)
    ties = ties.double()
    return (ties.cumsum(0) - (ties - 1) / 2)[place] / len(values)
