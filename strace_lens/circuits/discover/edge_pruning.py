"""Edge pruning: a mask learned by gradient descent, as near to the full model as sparsity allows.

Bhaskar et al. (2024), "Finding Transformer Circuits with Edge Pruning": hard-concrete masks
(Louizos et al. 2018, "Learning Sparse Neural Networks through L0 Regularization"), the KL
divergence to the full model, and a Lagrangian that drives the expected sparsity to a target which
rises step by step. Unlike the paper's, edges have no mask of their source node beside their own,
every row draws a mask of its own, which costs nothing here, and steps are tens, not thousands: the
sparsity reached can miss the target by 0.35, because edges that carry nothing fall together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from strace_lens.circuits.experiment import Experiment, objective_of
from strace_lens.circuits.metrics import METRICS
from strace_lens.circuits.patching import patched_logits
from strace_lens.model.architecture import device_of
from strace_lens.model.hold import fixed_weights

STEPS, BATCH, RATE, SPARSITY = 80, 4, 0.3, 0.95
"""Steps, pairs a step, Adam's learning rate and share of edges pruned, unless told otherwise."""

TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1
"""Of the hard-concrete distribution, and the interval it is stretched to (Louizos et al. 2018)."""

START = 2.0
"""`log_alpha` of every edge at first: kept with probability 0.97."""

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
) -> Float[Tensor, "destination source"]:
    """`log_alpha` of each edge's learned mask: the logit of keeping it, higher the more it is kept.

    It orders edges and is no effect on the metric; above about -1.6 an edge is kept more often than
    not. Passes: one forward and backward over `batch` pairs a step, two forward.

    Args:
        experiment: from `make_experiment`.
        seed: of minibatches and of the masks drawn.
        sparsity: target of the expected share of edges pruned, in (0, 1).
        steps: of Adam.
        batch: pairs in a step.
        rate: Adam's learning rate, of the masks and of the Lagrange multipliers.
        objective: what is kept, see `objective_of`; minus it is the loss.

    Raises:
        ValueError: an option out of range, or an objective without gradients.
        UnsupportedModelError: the model's weights are quantised.
    """
    fit = _Fit(experiment, objective_of(experiment, objective), sparsity, steps, batch, rate)
    return _learned(fit, experiment.graph.exists, seed) * experiment.graph.exists


def node_pruning(
    experiment: Experiment,
    *,
    seed: int = 0,
    sparsity: float = SPARSITY,
    steps: int = STEPS,
    batch: int = BATCH,
    rate: float = RATE,
    objective: str | None = None,
) -> Float[Tensor, "destination source"]:
    """`log_alpha` of each node's learned mask, written on all of its out-edges.

    As `edge_pruning`, with one mask for all out-edges of a node, after Cao et al. (2021), "Low-
    Complexity Probing via Finding Subnetworks"; `sparsity` is the share of nodes.
    """
    fit = _Fit(experiment, objective_of(experiment, objective), sparsity, steps, batch, rate)
    exists = experiment.graph.exists
    return _learned(fit, exists.any(0), seed) * exists


@dataclass(frozen=True, eq=False)
class _Fit:
    """Options of a fit; see `edge_pruning`."""

    experiment: Experiment
    objective: str
    sparsity: float
    steps: int
    batch: int
    rate: float

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1:
            raise ValueError(f"sparsity must lie in (0, 1); got {self.sparsity}")
        if self.steps < 1 or self.batch < 1:
            raise ValueError(f"steps and batch must be at least 1; got {self.steps}, {self.batch}")
        if not (self.rate > 0 and math.isfinite(self.rate)):
            raise ValueError(f"rate must be positive; got {self.rate}")
        if self.objective == "answer_rank":
            raise ValueError("answer_rank has no gradients; prune for another objective")


def _learned(fit: _Fit, masked: Bool[Tensor, "*mask"], seed: int) -> Float[Tensor, "*mask"]:
    """`log_alpha` after the fit, of everything that has a mask.

    Bhaskar et al. (2024), section 3: with s the expected sparsity and t the step's target,
    minimise loss + a (t - s) + b (t - s)^2 in log_alpha and maximise it in a and b.
    """
    device = device_of(fit.experiment.model)
    generator = torch.Generator().manual_seed(seed)
    masked = masked.to(device)
    log_alpha = torch.full(masked.shape, START, device=device, requires_grad=True)
    multipliers = torch.zeros(2, device=device, requires_grad=True)
    optimizers = (
        torch.optim.Adam([log_alpha], lr=fit.rate),
        torch.optim.Adam([multipliers], lr=fit.rate, maximize=True),
    )
    with fixed_weights(fit.experiment.model):
        for step, pairs in enumerate(_minibatches(fit, generator), start=1):
            noise = torch.rand(len(pairs), *masked.shape, generator=generator)
            _backward(fit, log_alpha, pairs, noise.to(device))
            target = fit.sparsity * min(1.0, step / (RISE * fit.steps))
            gap = target - (1 - kept_share(log_alpha)[masked].mean())
            (multipliers[0] * gap + multipliers[1] * gap**2).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    return log_alpha.detach().cpu()


def _backward(
    fit: _Fit,
    log_alpha: Float[Tensor, "*mask"],
    pairs: Int[Tensor, " row"],
    noise: Float[Tensor, "row *mask"],
) -> None:
    """Add the gradient of the loss, the mean over some pairs, to that of `log_alpha`."""
    experiment, task = fit.experiment, fit.experiment.task
    exists = experiment.graph.exists.to(log_alpha.device)
    for rows in experiment.gradient_chunks(len(pairs), patched=True):
        some, own = pairs[rows], pairs[rows].to(log_alpha.device)
        keep = hard_concrete(log_alpha, noise[rows])
        if keep.ndim == 2:  # a node's mask is that of all its out-edges
            keep = keep[:, None]
        logits = patched_logits(
            experiment.model,
            experiment.wiring,
            task.clean[some],
            task.lengths[some],
            (1 - keep) * exists,
            experiment.replaced.rows(own),
            every_position=task.every_position,
        )
        loss = -METRICS[fit.objective](logits, experiment.reference_rows(own)).sum() / len(pairs)
        experiment.passes.forward_rows += len(some)
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


def _minibatches(fit: _Fit, generator: torch.Generator) -> Iterator[Int[Tensor, " row"]]:
    """Pairs of each step, all of them before any comes again."""
    count = len(fit.experiment.task)
    size = min(fit.batch, count)
    left = torch.empty(0, dtype=torch.int64)
    for _ in range(fit.steps):
        if len(left) < size:
            left = torch.cat([left, torch.randperm(count, generator=generator)])
        yield left[:size]
        left = left[size:]
