"""Learned ranking: one parameter per edge, fitted so that traces of all sizes match the output.

A ranking sorts the parameters, which has no gradient. Each step schedules the parameters into
ranks, runs the traces of a few sizes as one batch, and sends the gradient of the divergence in an
edge's weight straight through the comparison `rank < size` to the edges near that threshold
(Bengio, Leonard and Courville 2013, "Estimating or propagating gradients through stochastic
neurons").

Without restrictions, a learned ranking is a bound on what some subgraph of the model can output: it
can be made to give wrong answers too. Two options restrict it. `max_shift` keeps every edge near
its place in the ranking that learning started from. `context_fraction` fits half of the traces
together with random other edges. What the model itself computes tolerates them, since the full
model consists of such edges; a subgraph that works only in isolation does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from strace_lens.model.architecture import Model
from strace_lens.model.hold import fixed_weights, verb
from strace_lens.model.targets import TargetLike
from strace_lens.traces.ablation import ZERO, Replacement
from strace_lens.traces.edges import EdgeTensors, GraphShape
from strace_lens.traces.fit import Fit, fit_to, fitted_trace, gradients, weighted_log_probs
from strace_lens.traces.graph import TokenGraph
from strace_lens.traces.schedule import schedule_ablatable
from strace_lens.traces.trace import Trace
from strace_lens.utils.choices import GRADIENT_BUDGET
from strace_lens.utils.progress import Progress, reporting

STEPS = 60
REGULARIZED: dict[str, Any] = {"steps": 24, "max_shift": 0.5, "context_fraction": 0.3}
"""Options with which a wrong answer can hardly be fitted, measured on prompts of their own."""
ROWS = 4
WIDTH = 0.5
"""Width of the window of edges around a threshold that a size's gradient moves, in log rank."""
RESIDUAL_COST = 3.0
"""Edges that a link of a residual column costs: more than it holds, so that columns are reused."""


@verb
def learn(
    model: Model,
    graph: TokenGraph,
    *,
    start: Trace,
    steps: int = STEPS,
    rate: float | None = None,
    max_shift: float = math.inf,
    context_fraction: float = 0.0,
    sizes: tuple[float, float] = (2e-3, 0.2),
    keep: Sequence[str] = (),
    target: Float[Tensor, " vocab"] | TargetLike | None = None,
    replacement: Replacement = ZERO,
    seed: int = 0,
    memory_budget: int = GRADIENT_BUDGET,
    progress: Progress | None = None,
    allow_other_model: bool = False,
) -> Trace:
    """Rank edges by parameters that are fitted to the output at many sizes at once.

    The parameters `keep`, `target`, `replacement`, `seed`, `memory_budget`, `progress` and
    `allow_other_model` are as for `estimate`. Kinds that are kept rank last (`schedule_ablatable`).

    Args:
        model: the model from which the graph was read.
        graph: the token graph of a prompt.
        start: the ranking to start from, ideally a pruned one; a learned one is fitted further.
        steps: number of steps, each a forward and backward pass over four rows.
        rate: learning rate of the first step, in log rank; it falls linearly to almost zero. By
            default 0.2 for 60 steps, and more for fewer.
        max_shift: how far a parameter may move from its start, in log rank.
        context_fraction: share of the edges outside a trace that are added to every second trace
            while it is fitted.
        sizes: lowest and highest relative size of the traces that each step draws, uniformly in
            the logarithm; if kinds of edges are kept, relative to the edges that can be ablated.

    Raises:
        ValueError: as for `estimate`; also if an option is out of range, or if the kinds of edges
            to keep leave nothing to fit.
        UnsupportedModelError: the weights are quantised.

    Example:
        >>> learned = sl.learn(model, graph, start=sl.extract(graph), steps=20)
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}")
    if not max_shift > 0:
        raise ValueError(f"max_shift must be positive; got {max_shift}")
    if not 0 <= context_fraction < 1:
        raise ValueError(
            "context_fraction must lie in [0, 1), as a share of the other edges; got "
            f"{context_fraction}"
        )
    shape = graph.shape
    fit = fit_to(
        model,
        graph,
        target,
        replacement,
        memory_budget,
        start,
        keep=keep,
        allow_other_model=allow_other_model,
    )
    low, high = (size * fit.ablatable for size in sizes)
    if not 1 <= low < high <= fit.ablatable:
        raise ValueError(
            f"sizes must rise within (0, 1] and hold an edge at least; got {sizes}, which is "
            f"{low:.3g} to {high:.3g} of {fit.ablatable} edges"
        )
    rate = 0.2 * math.sqrt(STEPS / steps) if rate is None else rate
    candidates = shape.reachable()
    candidates = candidates._replace(residual=torch.zeros_like(candidates.residual)).flat()
    anchor = -_log_rank(start.ranks, shape)
    parameters = anchor.clone()
    generator = torch.Generator().manual_seed(seed)
    # A large epsilon keeps parameters still whose gradient is small beside the others'.
    optimizer = torch.optim.Adam([parameters], lr=rate, betas=(0.9, 0.98), eps=0.3)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=steps)
    with fixed_weights(model), reporting(progress, "learning", steps) as advance:
        for _ in range(steps):
            ranks = _ranks(parameters, candidates, fit)
            # One number of edges from each of equal parts of the range, in the logarithm.
            share = (torch.arange(ROWS) + torch.rand(ROWS, generator=generator)) / ROWS
            counts = [int(low * (high / low) ** x) for x in share.tolist()]
            besides = _context(shape, context_fraction, generator)
            parameters.grad = _direction(fit, ranks, counts, besides, candidates)
            optimizer.step()
            parameters.clamp_(anchor - max_shift, anchor + max_shift)
            falling.step()
            advance()
    return fitted_trace(
        fit,
        _ranks(parameters, candidates, fit),
        start=start,
        passes=(steps * ROWS, steps * ROWS),
        metadata={
            "importance": "jensen-shannon" if fit.aim is None else "squared difference",
            "order": "learned",
            "seed": seed,
            "steps": steps,
            "rate": rate,
            "max_shift": None if math.isinf(max_shift) else max_shift,
            "context_fraction": context_fraction,
            "sizes": list(sizes),
        },
    )


def _context(shape: GraphShape, share: float, generator: torch.Generator) -> list[EdgeTensors]:
    """What each row keeps beside its trace: nothing, or for every second row a random share.

    With a share of attention and MLP edges goes every residual edge, or most would read nothing.
    """
    if share == 0:
        return []
    rows = []
    for row in range(ROWS):
        chance = share * (row % 2)
        edges = shape.full(0.0, torch.float32)
        drawn = edges.map(lambda x, chance=chance: x.uniform_(generator=generator) < chance)
        rows.append(drawn._replace(residual=torch.full_like(drawn.residual, chance > 0)))
    return rows


def _ranks(
    parameters: Float[Tensor, " edge_id"], candidates: Bool[Tensor, " edge_id"], fit: Fit
) -> EdgeTensors:
    shape = fit.graph.shape
    scores = torch.where(candidates, parameters.exp(), 0.0)
    return schedule_ablatable(shape.split(scores), shape, fit.keep, RESIDUAL_COST)


def _log_rank(ranks: EdgeTensors, shape: GraphShape) -> Float[Tensor, " edge_id"]:
    return (ranks.flat().clamp(max=shape.edges).double() + 1).log().float()


def _direction(
    fit: Fit,
    ranks: EdgeTensors,
    counts: Sequence[int],
    besides: Sequence[EdgeTensors],
    candidates: Bool[Tensor, " edge_id"],
) -> Float[Tensor, " edge_id"]:
    """Mean over sizes of the divergence's gradient, near each threshold, each of equal weight."""
    log_target = fit.target.clamp_min(torch.finfo(torch.float32).tiny).log()[None]
    log_rank = _log_rank(ranks, fit.graph.shape)
    total = torch.zeros_like(log_rank)
    for chunk in fit.chunks(len(counts)):
        rows = fit.rows(ranks, counts[chunk], besides[chunk])
        log_probs = weighted_log_probs(fit.model, fit.graph.architecture, rows)
        found = gradients(_divergence(fit, log_target, log_probs).sum(), rows)
        for row, count in enumerate(counts[chunk]):
            share = torch.sigmoid((math.log(count) - log_rank) / WIDTH)
            gradient = found.map(lambda g, row=row: g[row].cpu()).flat() * candidates
            gradient = gradient * (4 * share * (1 - share))
            total += gradient / gradient[candidates].square().mean().sqrt().clamp_min(1e-12)
    return total / len(counts)


def _divergence(
    fit: Fit, log_target: Float[Tensor, "*#row vocab"], log_probs: Float[Tensor, "row vocab"]
) -> Float[Tensor, " row"]:
    """How far each row is from the target: squared difference of the value where tokens are named.

    The value is the token's log-probability or the logit difference. Its square only decides the
    sign of each size's gradient, which is scaled to the same length at every size.
    """
    if fit.aim is None:
        return _jensen_shannon(log_target, log_probs)
    return (fit.aim.log_value(log_probs) - fit.aim.log_value(log_target)).square()


def _jensen_shannon(
    log_p: Float[Tensor, "*#row vocab"], log_q: Float[Tensor, "row vocab"]
) -> Float[Tensor, " row"]:
    """The divergence of `measures`, differentiable: there it is worked out in place."""
    log_mean = torch.logaddexp(log_p, log_q) - math.log(2)
    from_p = (log_p.exp() * (log_p - log_mean)).sum(-1)
    return (from_p + (log_q.exp() * (log_q - log_mean)).sum(-1)) / 2
