"""Fisher scores: how strongly the output distribution responds to the weight of each edge.

The score of an edge is the square root of the diagonal Fisher information of its weight w,
`sum_v p_v (d log q_v / d w)^2`, where q is the output under the mask and p the target. At the full
mask it is the curvature of KL(p || q), where the gradient of KL vanishes. It is estimated with
probes: for u_v = sqrt(p_v) times a random sign, the square of d(u . log q) / d w has that sum as
its mean. Signs give the smallest variance that independent probes can (Hutchinson 1990, "A
stochastic estimator of the trace of the influence matrix"): what one token of large p adds, they
add exactly.

Towards a target that names tokens the score is the absolute gradient of the token's
log-probability, or of the logit difference: the root of the curvature of half its squared
difference from the full model's, exact in one backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.model.architecture import Model
from strace_lens.model.hold import fixed_weights, verb
from strace_lens.model.targets import TargetLike
from strace_lens.traces.ablation import ZERO, Replacement
from strace_lens.traces.edges import EdgeTensors
from strace_lens.traces.fit import Fit, fit_to, fitted_trace, gradients, weighted_log_probs
from strace_lens.traces.graph import TokenGraph
from strace_lens.traces.schedule import schedule_ablatable
from strace_lens.traces.trace import Trace
from strace_lens.utils.choices import GRADIENT_BUDGET

FISHER_PROBES = 8
"""Backward passes unless said otherwise."""


def fisher_scores(
    fit: Fit, ranks: EdgeTensors, count: int, *, probes: int, generator: torch.Generator
) -> EdgeTensors:
    """Fisher scores of attention and MLP edges at the trace of so many edges; residual zeros.

    Args:
        fit: the model, the prompt and the target.
        ranks: the ranking whose first edges the mask keeps.
        count: how many.
        probes: backward passes; the relative error of a score falls with their square root. One
            is taken where the target names tokens.
        generator: of the probes' signs.

    Returns:
        float32 scores on the CPU, also of edges outside the trace: what their first part would do.

    Raises:
        ValueError: fewer than one probe.
    """
    if probes < 1:
        raise ValueError(f"probes must be at least 1; got {probes}")
    rows = fit.rows(ranks, [count])
    log_probs = weighted_log_probs(fit.model, fit.graph.architecture, rows)[0]
    if fit.aim is not None:
        found = gradients(fit.aim.log_value(log_probs), rows)
        return found.map(lambda g: g[0].abs().cpu())
    signs = torch.randint(0, 2, (probes, len(log_probs)), generator=generator) * 2 - 1
    vectors = signs.to(log_probs.device) * fit.target.sqrt()
    total = fit.graph.shape.full(0.0, torch.float32)
    for chunk in fit.chunks(probes):
        found = gradients(
            log_probs,
            rows,
            grad_outputs=vectors[chunk],
            is_grads_batched=True,
            retain_graph=chunk.stop < probes,
        )
        squares = found.map(lambda g: g[:, 0].square().sum(0).cpu())
        total = EdgeTensors(*map(torch.add, total, squares))
    return total.map(lambda x: (x / probes).sqrt())


@verb
def fisher(
    model: Model,
    graph: TokenGraph,
    *,
    probes: int = FISHER_PROBES,
    keep: Sequence[str] = (),
    target: Float[Tensor, " vocab"] | TargetLike | None = None,
    replacement: Replacement = ZERO,
    seed: int = 0,
    memory_budget: int = GRADIENT_BUDGET,
    allow_other_model: bool = False,
) -> Trace:
    """Rank edges by their Fisher scores in the full graph, with one forward pass.

    Edges of kinds that are kept whole rank last (`schedule_ablatable`).

    The parameters `keep`, `replacement`, `seed`, `memory_budget` and `allow_other_model` are as for
    `estimate`.

    Args:
        model: the model from which the graph was read.
        graph: the token graph of a prompt.
        probes: number of backward passes; a target that names tokens takes only one.
        target: probabilities whose Fisher information is used, by default the model's own output;
            or, as for `estimate`, a token or a pair whose gradient is used.

    Raises:
        ValueError: as for `estimate`; also if there are no probes, or if the kinds of edges to keep
            leave nothing to fit.
        UnsupportedModelError: the weights are quantised.

    Example:
        >>> sl.fisher(model, graph, keep=("attention",)).metadata["importance"]
        'fisher'
    """
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
    everything = graph.shape.full(0, torch.int32)
    generator = torch.Generator().manual_seed(seed)
    with fixed_weights(model):
        scores = fisher_scores(fit, everything, 1, probes=probes, generator=generator)
    return fitted_trace(
        fit,
        schedule_ablatable(scores, graph.shape, fit.keep),
        passes=(1, probes),
        metadata={"importance": "fisher", "order": "scheduled", "seed": seed, "probes": probes},
        importance=scores,
    )
