"""Edge pruning: a mask learned by gradient descent, as close to the full model as sparsity allows.

Bhaskar et al. (2024), "Finding Transformer Circuits with Edge Pruning": hard-concrete masks
(Louizos et al. 2018, "Learning Sparse Neural Networks through L0 Regularization"), the KL
divergence to the full model, and a Lagrangian that drives the expected sparsity to a target which
is raised step by step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strace_lens.architecture import device_of
from strace_lens.component_graph.discover.objective import objective_of
from strace_lens.component_graph.metrics import METRICS
from strace_lens.component_graph.patching import patched_logits
from strace_lens.component_graph.problem import Problem
from strace_lens.fixed_weights import fixed_weights

STEPS, BATCH, RATE, SPARSITY = 100, 8, 0.3, 0.95
"""Steps, pairs a step, learning rate and target share of edges pruned unless told otherwise."""

TEMPERATURE, LEFT, RIGHT = 2 / 3, -0.1, 1.1
"""Of the hard-concrete distribution, and the interval it is stretched to (Louizos et al. 2018)."""

START = 2.0
"""Logit of keeping every edge at first."""


@dataclass(frozen=True)
class Options:
    steps: int
    batch: int
    rate: float
    sparsity: float
    start: float
    weight: float
    warm: float
    objective: str


def edge_pruning(problem, *, seed=0, sparsity=SPARSITY, steps=STEPS, batch=BATCH, rate=RATE, start=START, weight=1.0, warm=0.7, objective=None):
    exists = problem.graph.exists
    o = Options(steps, batch, rate, sparsity, start, weight, warm, objective_of(problem, objective))
    log_alpha = _learn(problem, exists.shape, exists, o, seed)
    return log_alpha.cpu() * exists


def node_pruning(problem, *, seed=0, sparsity=SPARSITY, steps=STEPS, batch=BATCH, rate=RATE, start=START, weight=1.0, warm=0.7, objective=None):
    exists = problem.graph.exists
    o = Options(steps, batch, rate, sparsity, start, weight, warm, objective_of(problem, objective))
    log_alpha = _learn(problem, exists.shape[1:], exists.any(0), o, seed)
    return log_alpha.cpu() * exists


def _learn(problem, shape, active, o, seed):
    device = device_of(problem.model)
    generator = torch.Generator().manual_seed(seed)
    log_alpha = torch.full(shape, o.start, device=device, requires_grad=True)
    lam = torch.zeros(2, device=device, requires_grad=True)
    adam = torch.optim.Adam([log_alpha], lr=o.rate)
    adaml = torch.optim.Adam([lam], lr=o.rate, maximize=True)
    active = active.to(device)
    kl = []
    for step, pairs in enumerate(_batches(len(problem.task), o.batch, o.steps, generator)):
        target = o.sparsity * min(1.0, (step + 1) / (o.warm * o.steps))
        loss = 0.0
        for rows in problem.gradient_chunks(len(pairs), patched=True):
            part = _loss(problem, log_alpha, pairs[rows], o, generator) / len(pairs)
            part.backward()
            loss += float(part)
        kl.append(loss)
        s = 1 - _open(log_alpha)[active].mean()
        gap = target - s
        pen = o.weight * (lam[0] * gap + lam[1] * gap ** 2)
        pen.backward()
        adam.step(); adaml.step()
        adam.zero_grad(); adaml.zero_grad()
    _learn.trace = kl, float(s), lam.detach().tolist()
    return log_alpha.detach()


def _loss(problem, log_alpha, pairs, o, generator):
    task = problem.task
    device = log_alpha.device
    noise = torch.rand(len(pairs), *log_alpha.shape, generator=generator).to(device).clamp(1e-6, 1 - 1e-6)
    soft = ((noise.logit() + log_alpha) / TEMPERATURE).sigmoid() * (RIGHT - LEFT) + LEFT
    keep = soft.clamp(0, 1)
    if keep.ndim == 2:
        keep = keep[:, None]
    cut = (1 - keep) * problem.graph.exists.to(device)
    with fixed_weights(problem.model):
        logits = patched_logits(problem.model, problem.wiring, task.clean[pairs], task.lengths[pairs], cut, problem.replaced.rows(pairs.to(device)), every_position=task.every_position)
        problem.passes.forward_rows += len(pairs); problem.passes.backward_rows += len(pairs)
        return -METRICS[o.objective](logits, problem.reference_rows(pairs.to(device))).sum()


def _open(log_alpha):
    return (log_alpha - TEMPERATURE * math.log(-LEFT / RIGHT)).sigmoid()


def _batches(pairs, batch, steps, generator):
    left = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(left) < min(batch, pairs):
            left = torch.cat([left, torch.randperm(pairs, generator=generator)])
        yield left[:min(batch, pairs)]
        left = left[min(batch, pairs):]
