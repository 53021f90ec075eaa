"""Automatic circuit discovery: edges are removed one after another while the output stays near.

Conmy et al. (2023), "Towards Automated Circuit Discovery for Mechanistic Interpretability",
algorithm 1. On large graphs only the edges that attribution ranks highest are tested: Syed et al.
(2023), "Attribution Patching Outperforms Automated Circuit Discovery", section 5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from strace_lens.circuits.discover.attribution import eap
from strace_lens.circuits.experiment import Experiment, objective_of
from strace_lens.circuits.run_circuits import circuit_metric
from strace_lens.model.architecture import device_of

TAU = 0.01
"""Loss of the objective below which an edge is removed unless told otherwise; nats for the KL."""

TESTED, REST = "edges tested", "order of the edges not kept"
"""Keys of `Scores.metadata`; the second is there where not all edges were tested."""

ALL, SCREEN = 2_000, 200
"""Edges of a graph that are all tested unless told otherwise, and how many are of a larger one."""


def acdc(
    experiment: Experiment,
    *,
    seed: int = 0,
    tau: float = TAU,
    objective: str | None = None,
    screen: int | None = None,
) -> Float[Tensor, "destination source"]:
    """What the removal of each edge cost when it was tested; those that cost tau or more are kept.

    From the logits back, each destination's edges are tested from the last source to the first: an
    edge is removed if the mean objective over pairs falls by less than tau (with the default
    objective: the KL divergence from the full model rises by less). The score is that fall, so
    positive helps, and the edges with a score of at least tau are ACDC's circuit. Destinations
    whose own outputs are all removed lose their edges untested, with a score of zero.

    Edges are tested in cumulative batches, with the result of one at a time: one forward pass an
    edge tested, and in a batch those after an edge that is kept are run again.

    Args:
        experiment: from `make_experiment`.
        seed: not used; every method takes one.
        tau: threshold, in units of the objective.
        objective: see `objective_of`.
        screen: test only so many edges, those of largest EAP score (one backward pass more), all
            others staying in; what is not kept then holds the size of its EAP score, scaled to be
            less than tau. Unless told, all are tested on graphs of up to 2,000 edges, 200 on larger
            ones. Syed et al. remove the others before; on SmolLM2 what is
            left is then too far from the full model for one edge to make a difference.

    Raises:
        ValueError: a tau that is no positive number, a screen below 1, an unknown objective.
    """
    if not (tau > 0 and math.isfinite(tau)):
        raise ValueError(f"tau must be a positive number; got {tau}")
    objective = objective_of(experiment, objective)
    graph = experiment.graph
    candidates, estimate = _screened(experiment, screen)
    keep = graph.exists.to(device_of(experiment.model), copy=True)
    search = _Search(experiment, objective, tau, keep)
    for destination in reversed(range(graph.destinations)):
        used = destination == graph.destinations - 1 or bool(
            search.keep[:, graph.feeds[destination]].any()
        )
        sources = candidates[destination].nonzero()[:, 0].flip(0)
        if used:
            search.test(destination, sources)
        else:
            search.keep[destination] = False
    losses = search.losses.float().cpu()
    return losses if bool(candidates[graph.exists].all()) else _screened_out(losses, estimate, tau)


def tested_edges(experiment: Experiment, options: Mapping[str, Any]) -> dict[str, Any]:
    """What `Scores.metadata` says of a search: the edges that it tests, and how the others rank."""
    edges = experiment.graph.edges
    tested = min(edges, _screen(experiment, options.get("screen")))
    return {TESTED: tested, **({} if tested == edges else {REST: "eap"})}


def _screen(experiment: Experiment, screen: int | None) -> int:
    if screen is None:
        return ALL if experiment.graph.edges <= ALL else SCREEN
    return screen


def _screened(
    experiment: Experiment, screen: int | None
) -> tuple[Bool[Tensor, "destination source"], Float[Tensor, "destination source"]]:
    """Edges to test, and the estimate of each edge by which they were chosen (zero if all are)."""
    exists = experiment.graph.exists
    if screen is not None and screen < 1:
        raise ValueError(f"screen must be at least 1 edge; got {screen}")
    screen = _screen(experiment, screen)
    if experiment.graph.edges <= screen:
        return exists.clone(), torch.zeros(exists.shape)
    estimate = eap(experiment).cpu()
    size = estimate.abs().masked_fill(~exists, -1.0)
    best = size.flatten().argsort(descending=True, stable=True)[:screen]
    candidates = torch.zeros_like(exists)
    candidates.view(-1)[best] = True
    return candidates, estimate


def _screened_out(
    losses: Float[Tensor, "destination source"],
    estimate: Float[Tensor, "destination source"],
    tau: float,
) -> Float[Tensor, "destination source"]:
    """The losses of the edges kept, and for all others the estimate's size, scaled below tau."""
    largest = float(estimate.abs().max())
    below = estimate.abs() * (tau / (2 * largest) if largest > 0 else 0.0)
    return torch.where(losses >= tau, losses, below)


@dataclass(eq=False)
class _Search:
    """A circuit that shrinks, and what each edge tested so far has cost.

    Attributes:
        experiment, objective, tau: as for `acdc`.
        keep: edges not removed yet.
    """

    experiment: Experiment
    objective: str
    tau: float
    keep: Bool[Tensor, "destination source"]

    def __post_init__(self) -> None:
        pairs = len(self.experiment.task)
        one_pass = next(self.experiment.chunks(self.experiment.graph.sources * pairs))
        self.largest = max(1, one_pass.stop // pairs)
        self.size = self.largest
        self.losses = torch.zeros(self.keep.shape, dtype=torch.float64, device=self.keep.device)
        self.value = self._values(self.keep[None])

    def test(self, destination: int, sources: Tensor) -> None:
        """Test the edges from these sources to a destination in order, removing what it can."""
        while len(sources):
            batch = sources[: self.size].to(self.keep.device)
            removed = torch.ones(len(batch), len(batch), dtype=torch.bool).tril()
            trial = self.keep.repeat(len(batch), 1, 1)
            trial[:, destination, batch] = ~removed.to(self.keep.device)
            values = torch.cat([self.value, self._values(trial)])
            losses = values[:-1] - values[1:]
            costly = (losses >= self.tau).nonzero()[:, 0].tolist()
            taken = costly[0] if costly else len(batch)
            # Behind the first edge that stays, every row lacks it: only up to there is it true.
            self.losses[destination, batch[: taken + 1]] = losses[: taken + 1]
            self.keep[destination, batch[:taken]] = False
            self.value = values[taken : taken + 1]
            sources = sources[taken + bool(costly) :]
            self.size = max(1, self.size // 2) if costly else min(self.largest, 2 * self.size)

    def _values(
        self, keep: Bool[Tensor, "circuit destination source"]
    ) -> Float64[Tensor, " circuit"]:
        """Mean objective of each circuit."""
        return circuit_metric(self.experiment, keep, metric=self.objective).double().mean(1)
