"""How rankings of edges agree with each other and with a known circuit; nothing is run.

All functions rank by signed scores, or with `absolute` by the magnitude of those that are effects
(see `Scores.order`), and raise ValueError for scores or circuits of two models, or when only one of
the two has token positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import mannwhitneyu, rankdata, spearmanr
from torch import Tensor

from strace_lens.circuits.circuit import Circuit, Scores
from strace_lens.circuits.graph import ComponentGraph

# ------------------------------------------------------------------ two rankings


def overlap(
    a: Scores, b: Scores, sizes: Sequence[int | float], *, absolute: bool = True
) -> tuple[float, ...]:
    """Jaccard index of the best edges of two rankings, one a size.

    Args:
        a: a score an edge.
        b: another, of the same graph.
        sizes: numbers of edges (int) or fractions of all (float), as `Scores.top` takes them.
        absolute: rank effects by magnitude.
    """
    return tuple(
        a.top(size, absolute=absolute).jaccard(b.top(size, absolute=absolute)) for size in sizes
    )


def agreement(
    a: Scores, b: Scores, *, absolute: bool = True, persistence: float | None = None
) -> dict[str, float]:
    """`spearman` and `rbo`: how alike two methods rank all edges.

    Spearman's rank correlation, in [-1, 1], weighs all edges alike and gives ties their mean rank;
    it is nan where a method scores all edges the same. Rank-biased overlap, in [0, 1], weighs the
    best edges most: see `rank_biased_overlap`.

    Args:
        a: a score an edge.
        b: another, of the same graph.
        absolute: rank effects by magnitude.
        persistence: of the rank-biased overlap; by default its weight falls off over 1 % of the
            edges (at least 10): 1 - 1 / that many.
    """
    _check_same(a, b.graph, b.values)
    x, y = _edge_scores(a, absolute), _edge_scores(b, absolute)
    if persistence is None:
        persistence = 1 - 1 / max(10.0, 0.01 * len(x))
    constant = x.min() == x.max() or y.min() == y.max()
    spearman: Any = None if constant else spearmanr(x, y)
    return {
        "spearman": math.nan if constant else float(spearman.statistic),
        "rbo": rank_biased_overlap(x, y, persistence),
    }


def rank_biased_overlap(
    a: Float[np.ndarray, " item"], b: Float[np.ndarray, " item"], persistence: float
) -> float:
    """Rank-biased overlap of two complete rankings of the same items; 1 for the same ranking.

    Webber, Moffat and Zobel (2010), "A similarity measure for indefinite rankings", equation 30
    (extrapolated): (1 - p) sum over depths d of p^(d-1) A(d), plus p^n A(n), where the agreement
    A(d) is the share of items that both hold in their first d. Tied items all stand at the first
    of their places, so that A(d) = 2 |both| / (|first of a| + |first of b|), as there (section
    4.5) and in Corsi and Urbano (2024), "The Treatment of Ties in Rank-Biased Overlap".

    Args:
        a: scores, highest first.
        b: scores of the same items.
        persistence: p in (0, 1); depths down to about 1 / (1 - p) carry most of the weight.

    Raises:
        ValueError: a persistence out of range, or no items.
    """
    if not 0 < persistence < 1:
        raise ValueError(f"persistence must lie in (0, 1); got {persistence}")
    if not len(a):
        raise ValueError("no items to compare")
    mine, other = (rankdata(-x, method="min").astype(np.int64) for x in (a, b))

    def up_to(ranks: np.ndarray) -> np.ndarray:
        """How many items have each rank or a better one."""
        return np.bincount(ranks, minlength=len(a) + 1)[1:].cumsum()

    at = 2 * up_to(np.maximum(mine, other)) / (up_to(mine) + up_to(other))
    weights = persistence ** np.arange(len(a))
    return float((1 - persistence) * (weights @ at) + persistence ** len(a) * at[-1])


# ------------------------------------------------------------------ a ranking and the truth


def auroc(scores: Scores, truth: Circuit, *, absolute: bool = True) -> float:
    """Probability that a true edge scores above another edge, ties counting half.

    Area under the receiver operating characteristic, by the rank statistic of Mann and Whitney
    (1947); 0.5 is chance.

    Raises:
        ValueError: the truth holds no edge, or every edge.
    """
    values, true = _edge_scores(scores, absolute), _truth(scores, truth)
    others = len(true) - int(true.sum())
    if others in (0, len(true)):
        raise ValueError(f"AUROC needs true edges and others; the truth is {truth!r}")
    return share_above(values[true], values[~true])


def share_above(values: Float[np.ndarray, " item"], others: Float[np.ndarray, " other"]) -> float:
    """Share of pairs in which a value is above one of the others, ties counting half."""
    return float(
        mannwhitneyu(values, others, method="asymptotic").statistic / (len(values) * len(others))
    )


def precision_at_true_size(scores: Scores, truth: Circuit, *, absolute: bool = True) -> float:
    """Share of true edges among as many of the best edges as there are true ones.

    Equal to the recall at that size.

    Raises:
        ValueError: the truth holds no edge.
    """
    return 1 - len(missed_edges(scores, truth, absolute=absolute)) / len(truth)


def missed_edges(scores: Scores, truth: Circuit, *, absolute: bool = True) -> tuple[str, ...]:
    """Names of the true edges that are not among as many of the best edges.

    Raises:
        ValueError: the truth holds no edge.
    """
    _check_same(scores, truth.graph, truth.keep)
    if not len(truth):
        raise ValueError("the truth holds no edge, so none can be found or missed")
    found = scores.top(len(truth), absolute=absolute)
    missed = truth.kept.cpu() & ~found.keep.cpu()
    return tuple(Circuit(truth.graph, missed).edge_names())


# ------------------------------------------------------------------ edges as one axis


def _edge_scores(scores: Scores, absolute: bool) -> Float[np.ndarray, " edge"]:
    exists = Circuit(scores.graph, torch.ones_like(scores.values, dtype=torch.bool)).exists
    values = scores.values[exists].detach().cpu().double().numpy()
    return np.abs(values) if absolute and scores.signed else values


def _truth(scores: Scores, truth: Circuit) -> Bool[np.ndarray, " edge"]:
    _check_same(scores, truth.graph, truth.keep)
    return truth.kept[truth.exists].cpu().numpy()


def _check_same(scores: Scores, graph: ComponentGraph, cells: Tensor) -> None:
    scores.graph.check_same(graph)
    if scores.values.shape != cells.shape:
        raise ValueError(
            f"edges of shapes {tuple(scores.values.shape)} and {tuple(cells.shape)} do not "
            "compare; use two with the same token positions, or none"
        )
