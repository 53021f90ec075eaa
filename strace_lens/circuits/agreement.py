"""How rankings of edges agree with each other and with a known circuit; nothing is run.

All functions rank by signed scores, or with `absolute` by the magnitude of those that are effects
(see `Scores.order`), and raise ValueError for scores or circuits of two models, or when only one of
the two has token positions.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata, spearmanr
from torch import Tensor

from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.graph import ComponentGraph
from strace_lens.circuits.scores import Scores


def agreement(a: Scores, b: Scores, *, absolute: bool = True) -> dict[str, float]:
    """`spearman` and `rbo`: how alike two methods rank all edges.

    Spearman's rank correlation, in [-1, 1], weighs all edges alike and gives ties their mean rank;
    it is nan where a method scores all edges the same. Rank-biased overlap, in [0, 1], weighs the
    best edges most: its weight falls off over 1 % of the edges, at least 10.
    """
    _check_same(a, b.graph, b.values)
    x, y = _edge_scores(a, absolute), _edge_scores(b, absolute)
    constant = x.min() == x.max() or y.min() == y.max()
    spearman: Any = None if constant else spearmanr(x, y)
    return {
        "spearman": math.nan if constant else float(spearman.statistic),
        "rbo": rank_biased_overlap(x, y, 1 - 1 / max(10.0, 0.01 * len(x))),
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
        a, b: scores of the items, highest first.
        persistence: p in (0, 1); depths down to about 1 / (1 - p) carry most of the weight.
    """
    mine, other = (rankdata(-x, method="min").astype(np.int64) for x in (a, b))

    def up_to(ranks: np.ndarray) -> np.ndarray:
        """How many items have each rank or a better one."""
        return np.bincount(ranks, minlength=len(a) + 1)[1:].cumsum()

    at = 2 * up_to(np.maximum(mine, other)) / (up_to(mine) + up_to(other))
    weights = persistence ** np.arange(len(a))
    return float((1 - persistence) * (weights @ at) + persistence ** len(a) * at[-1])


def auroc(scores: Scores, truth: Circuit, *, absolute: bool = True) -> float:
    """Probability that a true edge scores above another edge, ties counting half.

    Raises:
        ValueError: the truth holds no edge, or every edge.
    """
    _check_same(scores, truth.graph, truth.keep)
    values, true = _edge_scores(scores, absolute), truth.kept[truth.exists].cpu().numpy()
    if true.all() or not true.any():
        raise ValueError(f"AUROC needs true edges and others; the truth is {truth!r}")
    return share_above(values[true], values[~true])


def share_above(values: Float[np.ndarray, " item"], others: Float[np.ndarray, " other"]) -> float:
    """Share of pairs in which a value is above one of the others, ties counting half.

    The area under the receiver operating characteristic, by the rank statistic of Mann and Whitney
    (1947); 0.5 is chance.
    """
    count = len(values)
    ranks = rankdata(np.concatenate([values, others]))[:count]
    return float((ranks.sum() - count * (count + 1) / 2) / (count * len(others)))


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


def _edge_scores(scores: Scores, absolute: bool) -> Float[np.ndarray, " edge"]:
    values = scores.values[scores.graph.exists_like(scores.values)].detach().cpu().double().numpy()
    return np.abs(values) if absolute and scores.signed else values


def _check_same(scores: Scores, graph: ComponentGraph, cells: Tensor) -> None:
    scores.graph.check_same(graph)
    if scores.values.shape != cells.shape:
        raise ValueError(
            f"edges of shapes {tuple(scores.values.shape)} and {tuple(cells.shape)} do not "
            "compare; use two with the same token positions, or none"
        )
