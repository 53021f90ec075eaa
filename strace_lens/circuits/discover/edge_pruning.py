"""Edge pruning: a mask learned by gradient descent, as close to the full model as sparsity allows.

Bhaskar et al. (2024), "Finding Transformer Circuits with Edge Pruning": hard-concrete masks
(Louizos et al. 2018, "Learning Sparse Neural Networks through L0 Regularization"), the KL
divergence to the full model, and a Lagrangian that drives the expected sparsity to a target which
rises step by step. Unlike in the paper, edges have no additional mask of their source node, every
row draws a separate mask, which costs nothing here, and there are tens of steps, not thousands: the
sparsity reached can miss the target by 0.35, because edges that carry nothing fall together.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from strace_lens.circuits.discover.attribution import eap, eap_ig
from strace_lens.circuits.discover.ensemble import mean_ranks
from strace_lens.circuits.experiment import Experiment, objective_of
from strace_lens.circuits.graph import EdgeValues
from strace_lens.circuits.metrics import METRICS, Metric
from strace_lens.circuits.run_circuits import patched_pairs
from strace_lens.model.architecture import device_of
from strace_lens.model.hold import fixed_weights

STEPS, BATCH, RATE, SPARSITY = 80, 4, 0.3, 0.95
"""Steps, pairs a step, Adam's learning rate and share of edges pruned, unless told otherwise."""

TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1
"""Of the hard-concrete distribution, and the interval it is stretched to (Louizos et al. 2018)."""

START = 2.0
"""`log_alpha` of every edge at first: kept with probability 0.97."""

WARM = 2.0
"""How far `log_alpha` of the first and of the last edge start from `START` where one is better."""

CLOSED = -1e4
"""`log_alpha` of an edge that is never kept, so low that no gradient moves it."""

SCREEN = 0.3
"""Share of the edges that attribution leaves to pruning, unless told otherwise."""

RISE = 0.7
"""Share of the steps over which the target sparsity rises from 0."""


def edge_pruning(
    experiment: Experiment,
    *,
    seed: int = 0,
    sparsity: float = SPARSITY,
    steps: int = STEPS,
    batch: int = BATCH,
    rate: float = RATE,
    objective: str | None = None,
) -> EdgeValues:
    """`log_alpha` of each edge's learned mask: the logit of keeping it, higher the more it is kept.

    It orders edges but is not an effect on the metric; above about -1.6 an edge is kept more often
    than not. Passes: one forward and backward over `batch` pairs per step, two forward.

    Args:
        seed: seed of minibatches and of the masks drawn.
        sparsity: target of the expected share of edges pruned, in (0, 1).
        steps: number of steps of Adam.
        batch: number of pairs per step.
        rate: Adam's learning rate, of the masks and of the Lagrange multipliers.
        objective: what to preserve, see `objective_of`; the loss is its negative.

    Raises:
        ValueError: an option out of range, or an objective without gradients.
        UnsupportedModelError: the model's weights are quantised.
    """
    exists = experiment.graph.exists
    name = objective_of(experiment, objective)
    start = torch.full(exists.shape, START)
    return _learned(experiment, exists, start, seed, sparsity, steps, batch, rate, name) * exists


def warm_edge_pruning(
    experiment: Experiment,
    *,
    seed: int = 0,
    sparsity: float = SPARSITY,
    steps: int = STEPS,
    batch: int = BATCH,
    rate: float = RATE,
    objective: str | None = None,
) -> EdgeValues:
    """Edge pruning whose masks start in the order of EAP-IG's scores by magnitude.

    The sequential ensemble of "BlackboxNLP-2025 MIB Shared Task: Exploring Ensemble Strategies for
    Circuit Localization Methods" (arXiv 2510.06811). `log_alpha` starts between 0 and 4, evenly by
    rank, so that edges which no step decides keep EAP-IG's order. Arguments, errors and the meaning
    of scores are those of `edge_pruning`. Passes: those of both methods, two forward ones shared.
    """
    exists = experiment.graph.exists
    name = objective_of(experiment, objective)
    start = START + WARM * (2 * _ranks(eap_ig(experiment), exists) - 1)
    return _learned(experiment, exists, start, seed, sparsity, steps, batch, rate, name) * exists


def hap(
    experiment: Experiment,
    *,
    seed: int = 0,
    screen: float = SCREEN,
    sparsity: float = SPARSITY,
    steps: int = STEPS,
    batch: int = BATCH,
    rate: float = RATE,
    objective: str | None = None,
) -> EdgeValues:
    """Hybrid attribution and pruning: EAP screens the edges, edge pruning decides among the rest.

    Gu et al. (2025), "Discovering Transformer Circuits via a Hybrid Attribution and Pruning
    Framework" (HAP, arXiv 2510.03282). Edges that EAP screens out are ablated in every pass, and
    score below all others, in EAP's order by magnitude. Other arguments, errors and the meaning of
    scores are those of `edge_pruning`. Passes: those of EAP and edge pruning, one forward shared.

    Args:
        screen: share of the edges that EAP retains, in (0, 1] and more than 1 - sparsity.

    Raises:
        ValueError: a screen out of range.
    """
    if not (0 < screen <= 1 and screen > 1 - sparsity):
        raise ValueError(
            f"screen must lie in ({1 - sparsity:g}, 1], above 1 - sparsity; got {screen}"
        )
    exists = experiment.graph.exists
    name = objective_of(experiment, objective)
    ranks = _ranks(eap(experiment), exists)
    through = exists & ((ranks > 1 - screen) | (ranks == ranks.max()))
    start = torch.full(exists.shape, CLOSED).masked_fill(through, START)
    learned = _learned(experiment, exists, start, seed, sparsity, steps, batch, rate, name)
    lowest = learned[through].min() - 1
    return torch.where(through, learned, lowest - 1 + ranks) * exists


def _ranks(values: EdgeValues, exists: Bool[Tensor, "destination source"]) -> EdgeValues:
    """The rank of each edge by magnitude, the largest 1; 0 where there is no edge."""
    ranks = torch.zeros(exists.shape)
    ranks[exists] = mean_ranks(values.cpu()[exists].abs()).float()
    return ranks


def node_pruning(
    experiment: Experiment,
    *,
    seed: int = 0,
    sparsity: float = SPARSITY,
    steps: int = STEPS,
    batch: int = BATCH,
    rate: float = RATE,
    objective: str | None = None,
) -> EdgeValues:
    """`log_alpha` of each node's learned mask, assigned to all of its out-edges.

    Like `edge_pruning`, with one mask for all out-edges of a node, after Cao et al. (2021), "Low-
    Complexity Probing via Finding Subnetworks"; `sparsity` is the share of nodes.
    """
    exists = experiment.graph.exists
    name = objective_of(experiment, objective)
    nodes = exists.any(0)
    start = torch.full(nodes.shape, START)
    return _learned(experiment, nodes, start, seed, sparsity, steps, batch, rate, name) * exists


def _learned(
    experiment: Experiment,
    masked: Bool[Tensor, "*mask"],
    start: Float[Tensor, "*mask"],
    seed: int,
    sparsity: float,
    steps: int,
    batch: int,
    rate: float,
    objective: str,
) -> Float[Tensor, "*mask"]:
    """`log_alpha` after the fit from a start, of everything that has a mask.

    Bhaskar et al. (2024), section 3: with s the expected sparsity and t the step's target,
    minimise loss + a (t - s) + b (t - s)^2 in log_alpha and maximise it in a and b.
    """
    if not 0 < sparsity < 1:
        raise ValueError(f"sparsity must lie in (0, 1); got {sparsity}")
    if steps < 1 or batch < 1:
        raise ValueError(f"steps and batch must be at least 1; got {steps}, {batch}")
    if not (rate > 0 and math.isfinite(rate)):
        raise ValueError(f"rate must be positive; got {rate}")
    if objective == "answer_rank":
        raise ValueError("answer_rank has no gradients; prune for another objective")
    device = device_of(experiment.model)
    generator = torch.Generator().manual_seed(seed)
    masked = masked.to(device)
    # What starts closed is pruned already: a target below that share would open what is left.
    closed = float((start[masked.cpu()] == CLOSED).float().mean())
    log_alpha = start.to(device).requires_grad_()
    multipliers = torch.zeros(2, device=device, requires_grad=True)
    optimizers = (
        torch.optim.Adam([log_alpha], lr=rate),
        torch.optim.Adam([multipliers], lr=rate, maximize=True),
    )
    left = torch.empty(0, dtype=torch.int64)  # of the pairs, all before any comes again
    size = min(batch, len(experiment.task))
    with fixed_weights(experiment.model):
        for step in range(1, steps + 1):
            if len(left) < size:
                again = torch.randperm(len(experiment.task), generator=generator)
                left = torch.cat([left, again])
            pairs, left = left[:size], left[size:]
            noise = torch.rand(size, *masked.shape, generator=generator)
            _backward(experiment, METRICS[objective], log_alpha, pairs, noise.to(device))
            target = closed + (sparsity - closed) * min(1.0, step / (RISE * steps))
            gap = target - (1 - kept_share(log_alpha)[masked].mean())
            (multipliers[0] * gap + multipliers[1] * gap**2).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    return log_alpha.detach().cpu()


def _backward(
    experiment: Experiment,
    metric: Metric,
    log_alpha: Float[Tensor, "*mask"],
    pairs: Int[Tensor, " row"],
    noise: Float[Tensor, "row *mask"],
) -> None:
    """Add the gradient of the loss, the mean over some pairs, to that of `log_alpha`."""
    task, exists = experiment.task, experiment.graph.exists.to(log_alpha.device)
    for rows in experiment.gradient_chunks(len(pairs), patched=True):
        some, own = pairs[rows], pairs[rows].to(log_alpha.device)
        keep = hard_concrete(log_alpha, noise[rows])
        if keep.ndim == 2:  # a node's mask is that of all its out-edges
            keep = keep[:, None]
        cut = (1 - keep) * exists
        logits = patched_pairs(experiment, task.clean, some, cut, experiment.replaced.rows(own))
        loss = -metric(logits, experiment.reference_rows(own)).sum() / len(pairs)
        experiment.passes.backward_rows += len(some)
        if loss.requires_grad:  # masks that happen to be all open cut nothing
            loss.backward()


def hard_concrete(
    log_alpha: Float[Tensor, "*mask"], noise: Float[Tensor, "row *mask"]
) -> Float[Tensor, "row *mask"]:
    """Masks in [0, 1] drawn by uniform noise, with gradients (Louizos et al. 2018, equation 10)."""
    logit = torch.logit(noise, eps=1e-6) + log_alpha
    stretched = (logit / TEMPERATURE).sigmoid() * (HIGH - LOW) + LOW
    return stretched.clamp(0, 1)


def kept_share(log_alpha: Float[Tensor, "*mask"]) -> Float[Tensor, "*mask"]:
    """Probability that a mask is above 0 (Louizos et al. 2018, equation 12)."""
    return (log_alpha - TEMPERATURE * math.log(-LOW / HIGH)).sigmoid()
