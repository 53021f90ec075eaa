"""Automatic circuit discovery: edges are removed one by one while the output stays close.

Conmy et al. (2023), "Towards Automated Circuit Discovery for Mechanistic Interpretability",
algorithm 1. On large graphs only the edges that attribution ranks highest are tested: Syed et al.
(2023), "Attribution Patching Outperforms Automated Circuit Discovery", section 5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from strace_lens.circuits.discover.attribution import eap
from strace_lens.circuits.discover.pass_counts import PassCount
from strace_lens.circuits.experiment import Experiment, objective_of
from strace_lens.circuits.graph import ComponentGraph, EdgeValues
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
) -> EdgeValues:
    """Cost of removing each edge when it was tested; edges that cost tau or more are kept.

    From the logits back, each destination's edges are tested from the last source to the first: an
    edge is removed if the mean objective over pairs falls by less than tau (with the default
    objective: the KL divergence from the full model rises by less). The score is that fall, so
    positive helps, and the edges with a score of at least tau are ACDC's circuit. If all outputs
    of a destination's node are removed, its edges are removed untested, with a score of zero.

    Edges are tested in cumulative batches, with the same result as one at a time: one forward pass
    per tested edge, and in a batch those after an edge that is kept are run again.

    Args:
        tau: threshold, in units of the objective.
        objective: see `objective_of`.
        screen: number of edges to test, those of largest EAP score (one more backward pass); all
            others stay in the graph during the tests. The score of an edge that is not kept is then
            the magnitude of its EAP score, scaled to be less than tau. By default all edges of
            graphs with up to 2,000 are tested, and 200 of larger ones. Syed et al. remove the
            others first; on SmolLM2 the rest is then too far from the full model for one edge to
            make a difference.

    Raises:
        ValueError: tau is not a positive number, screen is below 1, or the objective is unknown.
    """
    if not (tau > 0 and math.isfinite(tau)):
        raise ValueError(f"tau must be a positive number; got {tau}")
    if screen is not None and screen < 1:
        raise ValueError(f"screen must be at least 1 edge; got {screen}")
    objective = objective_of(experiment, objective)
    graph, pairs, device = experiment.graph, len(experiment.task), device_of(experiment.model)
    tested, estimate = _tested(graph, screen), torch.zeros(graph.exists.shape)
    candidates = graph.exists
    if tested < graph.edges:
        estimate = eap(experiment).cpu()
        size = estimate.abs().masked_fill(~graph.exists, -1.0).flatten()
        best = size.argsort(descending=True, stable=True)[:tested]
        candidates = torch.zeros_like(size, dtype=torch.bool).index_fill(0, best, True)
        candidates = candidates.view(graph.exists.shape)

    def values_of(keep: Bool[Tensor, "circuit destination source"]) -> Float[Tensor, " circuit"]:
        return circuit_metric(experiment, keep, metric=objective).double().mean(1)

    keep = graph.exists.to(device, copy=True)
    losses = torch.zeros(keep.shape, dtype=torch.float64, device=device)
    value = values_of(keep[None])
    one_pass = next(experiment.chunks(graph.sources * pairs))
    largest = at_once = max(1, one_pass.stop // pairs)
    for destination in reversed(range(graph.destinations)):
        used = keep[:, graph.feeds[destination]].any() or destination == graph.destinations - 1
        if not used:
            keep[destination] = False
            continue
        sources = candidates[destination].nonzero()[:, 0].flip(0).to(device)
        while len(sources):
            batch = sources[:at_once]
            trial = keep.repeat(len(batch), 1, 1)
            trial[:, destination, batch] = trial.new_ones(len(batch), len(batch)).triu(1)
            values = torch.cat([value, values_of(trial)])
            falls = values[:-1] - values[1:]
            costly = (falls >= tau).nonzero()[:, 0].tolist()
            taken = costly[0] if costly else len(batch)
            # Behind the first edge that stays, every row lacks it: only up to there is it true.
            losses[destination, batch[: taken + 1]] = falls[: taken + 1]
            keep[destination, batch[:taken]] = False
            value = values[taken : taken + 1]
            sources = sources[taken + bool(costly) :]
            at_once = max(1, at_once // 2) if costly else min(largest, 2 * at_once)
    found = losses.float().cpu()
    if tested == graph.edges:
        return found
    scale = tau / (2 * float(estimate.abs().max().clamp_min(1e-30)))
    return torch.where(found >= tau, found, estimate.abs() * scale)


def tested_edges(experiment: Experiment, options: Mapping[str, Any]) -> dict[str, Any]:
    """What `Scores.metadata` says of a search: the edges that it tests, and how the others rank."""
    tested = _tested(experiment.graph, options.get("screen"))
    return {TESTED: tested, **({} if tested == experiment.graph.edges else {REST: "eap"})}


def passes(graph: ComponentGraph, pairs: int, options: Mapping[str, Any]) -> PassCount:
    """One patched pass for each edge that is tested; some edges are tested again.

    Tests go from the logits back, so that a pass begins where the graph is still whole.
    """
    tested = _tested(graph, options.get("screen"))
    return PassCount(2, int(tested < graph.edges), 1 + tested, suffixes=True)


def _tested(graph: ComponentGraph, screen: int | None) -> int:
    if screen is None:
        screen = ALL if graph.edges <= ALL else SCREEN
    return min(graph.edges, screen)
