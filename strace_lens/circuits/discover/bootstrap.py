"""A bootstrap of scores over pairs: which edges would keep their sign in another sample of pairs.

After the bootstrap of Nikankin et al. (2025), "BlackboxNLP-2025 MIB Shared Task: Improving Circuit
Faithfulness via Better Edge Selection" (arXiv 2510.25786), which keeps edges whose attribution
scores are consistent over resamples of the prompts.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.measures.intervals import weights

SIGNS = ("any", "positive")
"""Signs that an edge may have to be kept."""

_AT_ONCE = 2**22  # sums of resamples held at a time: 32 MB


def positive_share(
    values: Float[Tensor, "pair edge"], resamples: int, seed: int
) -> Float[Tensor, " edge"]:
    """In what share of the resamples of pairs the mean score of each edge is above zero.

    A mean of exactly zero counts half, so that `1 - share` is the share of those below.
    """
    # Counts instead of shares, so that a sum that is zero is not rounded to another number.
    drawn = np.rint(weights(len(values), resamples, seed) * len(values))
    step = max(1, _AT_ONCE // resamples)
    parts = []
    for block in values.double().cpu().split(step, dim=1):
        sums = drawn @ block.numpy()
        parts.append(((sums > 0).mean(0) + (sums >= 0).mean(0)) / 2)
    return torch.from_numpy(np.concatenate(parts))


def consistent_first(
    values: Float[Tensor, "pair edge"],
    *,
    share: float,
    sign: str = "any",
    resamples: int = 1000,
    seed: int = 0,
) -> Float[Tensor, " edge"]:
    """Average scores over pairs and rank edges with an inconsistent sign behind all others.

    Args:
        values: score of each edge on each pair.
        share: share of the resamples in which an edge must have the sign of its mean to be kept.
        sign: "any", or "positive" to keep only edges that help.
        resamples: number of resamples, each of as many pairs as there are, with replacement.
        seed: seed of the resamples.

    Returns:
        The mean over pairs of each edge that is kept. The others are divided by one number, so
        that the largest of them is half as large as the smallest that is kept, if it was larger.

    Raises:
        ValueError: fewer than two pairs, an unknown sign, a share outside [0, 1], or no resample.
    """
    if sign not in SIGNS:
        raise ValueError(f"unknown sign {sign!r}; choose from {', '.join(SIGNS)}")
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1]; got {share}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1; got {resamples}")
    if len(values) < 2:
        raise ValueError("a bootstrap over pairs needs at least two; give the task more pairs")
    mean, positive = values.double().mean(0).cpu(), positive_share(values, resamples, seed)
    held = torch.where(mean > 0, positive, 1 - positive)
    kept = (held >= share) & (mean != 0)
    if sign == "positive":
        kept &= mean > 0
    if bool(kept.all()) or not bool(kept.any()):
        return mean
    least, largest = mean[kept].abs().min(), mean[~kept].abs().max().clamp_min(1e-300)
    return torch.where(kept, mean, mean * (least / (2 * largest)).clamp_max(1))
