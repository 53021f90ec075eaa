"""Backward pruning: starting at the full graph, the edges that matter least are removed first.

Scores of the full graph say what matters while every edge is present. As edges are removed, others
take over, so Fisher scores (`fisher`) are estimated again at each trace on the way down. The edges
removed at a step rank behind those that remain, so the traces are nested by construction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from strace_lens.model.architecture import Model
from strace_lens.model.hold import fixed_weights, verb
from strace_lens.model.targets import TargetLike
from strace_lens.traces.ablation import ZERO, Replacement
from strace_lens.traces.best_first import connected_order
from strace_lens.traces.edges import order_of, ranks_of
from strace_lens.traces.fisher import fisher_scores
from strace_lens.traces.fit import fit_to, fitted_trace
from strace_lens.traces.graph import TokenGraph
from strace_lens.traces.schedule import kept_last, schedule_ablatable
from strace_lens.traces.trace import Trace, check_size
from strace_lens.utils.choices import GRADIENT_BUDGET
from strace_lens.utils.progress import Progress, reporting

PROBES = 3
FACTOR = 0.7
SMALLEST = 1e-4


@verb
def prune(
    model: Model,
    graph: TokenGraph,
    *,
    probes: int = PROBES,
    factor: float = FACTOR,
    decay: float = 0.5,
    smallest: float = SMALLEST,
    keep: Sequence[str] = (),
    target: Float[Tensor, " vocab"] | TargetLike | None = None,
    replacement: Replacement = ZERO,
    seed: int = 0,
    memory_budget: int = GRADIENT_BUDGET,
    progress: Progress | None = None,
    allow_other_model: bool = False,
) -> Trace:
    """Rank edges by pruning the graph step by step, with new scores at each step.

    The parameters `keep`, `target`, `replacement`, `seed`, `memory_budget`, `progress` and
    `allow_other_model` are as for `estimate`. Kinds that are kept rank last, and pruning starts
    from all edges that can be ablated (`schedule_ablatable`).

    Args:
        model: the model from which the graph was read.
        graph: the token graph of a prompt.
        probes: backward passes per step; a target that names tokens takes only one.
        factor: share of the remaining edges that each step keeps.
        decay: weight of earlier steps in the running mean of the scores that decides.
        smallest: size below which no trace is scored; its edges keep their last order.

    Raises:
        ValueError: as for `estimate`; also if an option is out of range, or if the kinds of edges
            to keep leave nothing to fit.
        UnsupportedModelError: the weights are quantised.

    Example:
        >>> pruned = sl.prune(model, graph, factor=0.5)
        >>> sl.density_curve(model, pruned, controls=False).density
    """
    if not 0 < factor < 1:
        raise ValueError(f"factor must lie in (0, 1), as the share a step keeps; got {factor}")
    if not 0 <= decay < 1:
        raise ValueError(f"decay must lie in [0, 1); got {decay}")
    fit = fit_to(
        model,
        graph,
        target,
        replacement,
        memory_budget,
        keep=keep,
        allow_other_model=allow_other_model,
    )
    probes = fit.probes(probes)
    shape = graph.shape
    residual = shape.full(False, torch.bool)
    residual = residual._replace(residual=~residual.residual).flat()
    order = shape.reachable().flat().nonzero()[:, 0]
    if fit.keep:
        order = order_of(kept_last(ranks_of(order, shape), shape, fit.keep))
    count, kept = fit.ablatable, order[fit.ablatable :]
    fewest = math.ceil(check_size(smallest) * len(order))
    generator = torch.Generator().manual_seed(seed)
    mean = torch.zeros(len(residual))
    steps = 0
    total = prune_steps(factor, smallest)
    with fixed_weights(model), reporting(progress, "pruning", total) as advance:
        while count >= fewest:
            ranks = ranks_of(order, shape)
            found = fisher_scores(fit, ranks, count, probes=probes, generator=generator).flat()
            alive = order[:count]
            there = torch.cat([alive, kept])
            scores = torch.zeros_like(mean)
            scores[there] = found[there] / found[there].mean().clamp_min(1e-30)
            mean = scores if steps == 0 else decay * mean + (1 - decay) * scores
            mean[order[count : fit.ablatable]] = 0
            scheduled = schedule_ablatable(shape.split(mean), shape, fit.keep).flat()
            order[:count] = alive[scheduled[alive].argsort()]
            count = _whole_columns(order, int(count * factor), residual)
            steps += 1
            advance()
    made = {"importance": "fisher", "order": "pruned", "seed": seed}
    options = {"probes": probes, "factor": factor, "decay": decay, "smallest": smallest}
    ranks = ranks_of(order, shape)
    return fitted_trace(
        fit,
        ranks if fit.keep else connected_order(ranks, shape),
        passes=(steps, steps * probes),
        metadata={**made, **options},
    )


def prune_steps(factor: float = FACTOR, smallest: float = SMALLEST) -> int:
    """Steps that a pruning takes at the most."""
    return math.ceil(math.log(smallest) / math.log(factor)) + 1


def _whole_columns(
    order: Int64[Tensor, " edge"], count: int, residual: Bool[Tensor, " edge_id"]
) -> int:
    """The largest number of edges up to `count` that leaves no residual column incomplete.

    A column is bought at once behind the edge that reads it (`schedule`). Were it cut in two, what
    is below would be lost to all smaller traces, and the edge would read nothing.
    """
    others: Int[Tensor, " _"] = (~residual[order[: count + 1]]).nonzero()[:, 0]
    return int(others[-1]) if len(others) else 0
