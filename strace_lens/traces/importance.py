"""How much each in-edge of a node matters to it, by eight measures.

Every function takes the in-edges of one sublayer of one layer, for all nodes at once, and returns
one number per edge. A pattern entry is non-negative, so the norm of an attention edge is that
scalar times the norm of what the head writes: T*H*d + T^2*H work, and never a [T, T, H, d] tensor.
Proximity and `ifr`, which do not factor, are computed in blocks of queries within a byte budget.
Source: s-Trace (arXiv 2605.27033), section "edge importance", and its authors' code for `ifr`,
`normf` and the scale of `leverage`; Information Flow Routes (arXiv 2403.00824).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import scipy.linalg
import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.model.forward import byte_budget
from strace_lens.model.hold import verb
from strace_lens.traces.edges import EdgeTensors
from strace_lens.traces.graph import InEdges, TokenGraph
from strace_lens.utils.choices import parse_importance


class SublayerImportance(NamedTuple):
    """Importance of the in-edges of one sublayer; parts the sublayer lacks are None."""

    residual: Float[Tensor, " pos"]
    mlp: Float[Tensor, " pos"] | None
    attention: Float[Tensor, "head query key"] | None


class Options(NamedTuple):
    """What an importance may need beside the edges: a byte budget and a source of randomness."""

    memory_budget: int
    generator: torch.Generator


def norm(edges: InEdges, options: Options, *, order: int) -> SublayerImportance:
    """||e||_p over the sum of the in-edges' norms, p = 1 or 2."""
    return _sum_to_one(_norms(edges, order))


def normf(edges: InEdges, options: Options) -> SublayerImportance:
    """||e||_1 / ||node||_1, the edge's norm relative to that of the node it enters.

    The shares of a node's in-edges add up to more than 1 where these cancel each other, so nodes
    whose inputs cancel are searched earlier than under `l1`. Within one node the order of edges is
    that of `l1`. An edge into a node that is zero counts 0. Both norms are L1, as in the authors'
    code.
    """
    node = edges.node.norm(p=1, dim=-1)
    return _with(torch.div, _norms(edges, 1), node.masked_fill(node == 0, torch.inf))


def proximity(edges: InEdges, options: Options) -> SublayerImportance:
    """max(0, ||node||_1 - ||node - e||_1), normalised to sum 1 (Information Flow Routes)."""
    near = _nearness(edges, options.memory_budget)
    return _sum_to_one(_with(torch.maximum, near, torch.zeros_like(near.residual)))


def ifr(edges: InEdges, options: Options) -> SublayerImportance:
    """Proximity shifted instead of clamped, as in the authors' code, normalised to sum 1.

    The proximity of an edge, ||node||_1 - ||node - e||_1, is negative if the node lies farther from
    the edge than from zero. The absolute value of the smallest proximity among a node's in-edges is
    added to all of them, so that edges which `proximity` clamps to 0 keep their order. The shift
    is upwards too where the smallest is positive. Where all in-edges of a node have the same
    proximity, they have equal shares if it is positive; otherwise all are shifted to 0 and each
    counts 0 (the authors' code divides 0 by 0 there).
    """
    near = _nearness(edges, options.memory_budget)
    lowest = near.residual if near.mlp is None else near.residual.minimum(near.mlp)
    if near.attention is not None:
        acausal = torch.ones_like(near.attention[0], dtype=torch.bool).triu(1)
        lowest = lowest.minimum(near.attention.masked_fill(acausal, torch.inf).amin((0, 2)))
    shifted = _with(torch.add, near, lowest.abs())
    if shifted.attention is not None:
        shifted.attention.tril_()
    return _sum_to_one(shifted)


def cosine(edges: InEdges, options: Options) -> SublayerImportance:
    """(1 + cos(e, node)) / 2; an edge that carries nothing has no direction and counts 0."""
    unit_node = torch.nn.functional.normalize(edges.node, dim=-1)

    def similarity(vector: Float[Tensor, "pos d_model"]) -> Float[Tensor, " pos"]:
        unit = torch.nn.functional.normalize(vector, dim=-1)
        return _half_above((unit * unit_node).sum(-1), vector.any(-1))

    attention = None
    if edges.coefficient is not None and edges.written is not None:
        # Scaling by a positive coefficient turns no vector: the cosine is that of what is written.
        unit = torch.nn.functional.normalize(edges.written, dim=-1)
        turned = torch.einsum("khd,qd->hqk", unit, unit_node)
        carries = (edges.coefficient > 0) & edges.written.any(-1).T[:, None]
        attention = _half_above(turned, carries)
    mlp = None if edges.mlp is None else similarity(edges.mlp)
    return SublayerImportance(similarity(edges.residual), mlp, attention)


def leverage(edges: InEdges, options: Options, *, k: int) -> SublayerImportance:
    """Squared row norms of the top-k left singular vectors of a node's in-edge matrix.

    They are divided by their sum, which is k, or the rank of the matrix where that is smaller, so
    that the scores of every node sum to 1. Computed in float64 from the smaller Gram matrix of each
    node, one node at a time.
    """
    dense = [e for e in (edges.residual, edges.mlp) if e is not None]
    scores = torch.zeros(len(edges.node), len(dense), dtype=edges.node.dtype)
    attention = None if edges.coefficient is None else torch.zeros(edges.coefficient.shape)
    for query in range(len(edges.node)):
        rows = torch.stack([e[query] for e in dense]).cpu().double()
        if edges.coefficient is not None and edges.written is not None:
            weight = edges.coefficient[:, query, : query + 1].T[..., None]
            written = (weight * edges.written[: query + 1]).flatten(0, 1).cpu().double()
            rows = torch.cat([rows, written])
        score = _leverage_scores(rows, k).to(scores.dtype)
        scores[query] = score[: len(dense)]
        if attention is not None:
            attention[:, query, : query + 1] = score[len(dense) :].view(query + 1, -1).T
    mlp = None if edges.mlp is None else scores[:, 1]
    return _sum_to_one(SublayerImportance(scores[:, 0], mlp, attention))


def random(edges: InEdges, options: Options) -> SublayerImportance:
    """Uniform on (0, 1), from the seed alone: the importance that knows nothing."""

    def draw(like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=options.generator)

    return SublayerImportance(
        draw(edges.residual[:, 0]),
        None if edges.mlp is None else draw(edges.mlp[:, 0]),
        None if edges.coefficient is None else draw(edges.coefficient),
    )


IMPORTANCES: dict[str, Callable[..., SublayerImportance]] = {
    "l1": partial(norm, order=1),
    "l2": partial(norm, order=2),
    "normf": normf,
    "proximity": proximity,
    "ifr": ifr,
    "cosine": cosine,
    "leverage": leverage,
    "random": random,
}
"""Functions that compute importances, by name; `leverage` takes a number, as in "leverage(3)".

In the code of the authors of s-Trace `l1`, `l2`, `normf`, `ifr`, `cosine` and `leverage(k)` are
called `norm`, `norm_l2`, `normf`, `ifr`, `cosim` and `lev_k`; `proximity` is that of Information
Flow Routes.
"""


@verb
def edge_importance(
    graph: TokenGraph, name: str = "l1", *, seed: int = 0, memory_budget: int | None = None
) -> EdgeTensors:
    """Compute the importance of every edge of a token graph, as float32 tensors on the CPU.

    Args:
        graph: the token graph.
        name: a key of `IMPORTANCES`; "leverage(k)" uses the top k singular vectors (default 1).
        seed: seed of the random importance.
        memory_budget: bytes that `proximity` and `ifr` may use at a time for edge vectors; by
            default it depends on the device (`byte_budget`).

    Raises:
        ValueError: an unknown importance.

    Example:
        >>> sl.edge_importance(graph, "proximity").attention.shape  # layer, head, query, key
        torch.Size([30, 9, 5, 5])
    """
    function = importance_function(name)
    budget = byte_budget(memory_budget, graph.activations.nodes.device)
    options = Options(budget, torch.Generator().manual_seed(seed))
    result = graph.shape.full(0.0, torch.float32)
    for edges in graph.in_edges():
        scores = function(edges, options)
        result.residual[edges.layer, edges.sublayer] = scores.residual
        if scores.mlp is not None:
            result.mlp[edges.layer] = scores.mlp
        if scores.attention is not None:
            result.attention[edges.layer] = scores.attention
    return result


def importance_function(name: str) -> Callable[[InEdges, Options], SublayerImportance]:
    """The importance of a name, "leverage(3)" included."""
    base, k = parse_importance(name)
    return partial(leverage, k=k or 1) if base == "leverage" else IMPORTANCES[base]


def _norms(edges: InEdges, order: int) -> SublayerImportance:
    """||e||_p of every in-edge."""
    attention = None
    if edges.coefficient is not None and edges.written is not None:
        written = edges.written.norm(p=order, dim=-1)
        attention = edges.coefficient * written.T[:, None]
    mlp = None if edges.mlp is None else edges.mlp.norm(p=order, dim=-1)
    return SublayerImportance(edges.residual.norm(p=order, dim=-1), mlp, attention)


def _nearness(edges: InEdges, budget: int) -> SublayerImportance:
    """||node||_1 - ||node - e||_1 of every in-edge; 0 for pairs of tokens that are none."""
    node = edges.node
    size = node.abs().sum(-1)

    def nearness(vector: Float[Tensor, "pos d_model"]) -> Float[Tensor, " pos"]:
        return size - (node - vector).abs().sum(-1)

    attention = None
    if edges.coefficient is not None and edges.written is not None:
        attention = torch.zeros_like(edges.coefficient)
        # Vectors of the attention edges, for as many queries at a time as the budget allows.
        for rows in torch.arange(len(node)).split(max(1, budget // edges.written.nbytes)):
            stop = int(rows[-1]) + 1
            coefficient = edges.coefficient[:, rows, :stop].permute(1, 2, 0)
            vectors = coefficient[..., None] * edges.written[:stop]
            distance = vectors.sub_(node[rows, None, None]).abs_().sum(-1)
            attention[:, rows, :stop] = (size[rows, None, None] - distance).permute(2, 0, 1)
        attention.tril_()  # the blocks hold later tokens too
    mlp = None if edges.mlp is None else nearness(edges.mlp)
    return SublayerImportance(nearness(edges.residual), mlp, attention)


def _half_above(cosines: Tensor, carries: Tensor) -> Tensor:
    return torch.where(carries, (1 + cosines.clamp(-1, 1)) / 2, 0.0)


def _leverage_scores(rows: Float[Tensor, "edge d_model"], k: int) -> Float[Tensor, " edge"]:
    wide = rows.shape[0] <= rows.shape[1]
    gram = rows @ rows.T if wide else rows.T @ rows
    n = len(gram)
    top = scipy.linalg.eigh(gram.cpu().numpy(), subset_by_index=(max(0, n - k), n - 1))
    values, vectors = (torch.from_numpy(x).to(rows.device) for x in top)
    alive = values > values.max() * torch.finfo(gram.dtype).eps * n
    left = vectors if wide else rows @ vectors / values.clamp_min(1e-300).sqrt()
    return (left.square() * alive).sum(-1)


def _sum_to_one(scores: SublayerImportance) -> SublayerImportance:
    total = scores.residual if scores.mlp is None else scores.residual + scores.mlp
    if scores.attention is not None:
        total = total + scores.attention.sum((0, 2))
    # A node none of whose edges carries anything (all zeros) gives each importance 0, not NaN.
    return _with(torch.div, scores, total.clamp_min(torch.finfo(total.dtype).tiny))


def _with(
    combine: Callable[[Tensor, Tensor], Tensor],
    scores: SublayerImportance,
    of_node: Float[Tensor, " pos"],
) -> SublayerImportance:
    """Every score combined with a number of the node that its edge enters."""
    return SublayerImportance(
        combine(scores.residual, of_node),
        None if scores.mlp is None else combine(scores.mlp, of_node),
        None if scores.attention is None else combine(scores.attention, of_node[:, None]),
    )
