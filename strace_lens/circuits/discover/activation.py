"""Activation patching: the exact effect of ablating one edge, or one node, and nothing else.

Vig et al. (2020), "Investigating Gender Bias in Language Models Using Causal Mediation Analysis";
edges after Goldowsky-Dill et al. (2023), "Localizing Model Behavior with Path Patching". Effects of
single edges do not add up to that of a set: a set has to be run itself.
"""

from __future__ import annotations

from typing import Literal

import torch

from strace_lens.circuits.experiment import Experiment
from strace_lens.circuits.graph import EdgeValues
from strace_lens.circuits.run_circuits import Direction, check_positions, circuit_metric
from strace_lens.model.architecture import device_of

MAX_ROWS = 2**16
"""Rows that a method runs unless told otherwise: edges (or nodes) times pairs."""


class TooManyRowsError(ValueError):
    """Exact patching that would run more rows than `max_rows`, with the ways out."""


def edge_patching(
    experiment: Experiment,
    *,
    seed: int = 0,
    positions: bool = False,
    direction: Direction = "noise",
    max_rows: int = MAX_ROWS,
) -> EdgeValues:
    """Effect of each single edge on the metric, averaged over pairs; positive helps.

    "noise" gives metric(full) - metric(this edge ablated); "denoise" gives metric(this edge clean
    in the corrupted run) - metric(corrupted). Passes: one forward per edge, and those of the clean
    and corrupted runs.

    Args:
        positions: ablate an edge at one token position at a time.
        direction: which run is patched; see above.
        max_rows: maximum number of rows to run; more are refused.

    Raises:
        TooManyRowsError: there are more edges times pairs than `max_rows`.
        ValueError: `positions` with prompts of unequal lengths.
    """
    return _patched(experiment, "edge", positions, direction, max_rows)


def node_patching(
    experiment: Experiment,
    *,
    seed: int = 0,
    positions: bool = False,
    direction: Direction = "noise",
    max_rows: int = MAX_ROWS,
) -> EdgeValues:
    """Effect of each single node on the metric, assigned to all of its out-edges; positive helps.

    A node is ablated by ablating all of its out-edges at once. Signs, passes (one per node),
    arguments and errors are as for `edge_patching`.
    """
    return _patched(experiment, "node", positions, direction, max_rows)


def _patched(
    experiment: Experiment,
    what: Literal["edge", "node"],
    positions: bool,
    direction: Direction,
    max_rows: int,
) -> EdgeValues:
    """Mean effect over pairs of each edge, or of each node on all of its out-edges."""
    exists, pairs = experiment.graph.exists, len(experiment.task)
    if positions:
        check_positions(experiment.task)
        exists = exists[..., None].repeat(1, 1, experiment.task.positions)
    alone = exists if what == "edge" else exists.any(0)
    cells = alone.nonzero()
    if len(cells) * pairs > max_rows:
        raise TooManyRowsError(
            f"{what}-patching would run {len(cells) * pairs:,} rows ({len(cells):,} {what}s x "
            f"{pairs} pairs), more than max_rows={max_rows:,}; give fewer pairs or a larger "
            "max_rows, or take eap, which estimates the same from gradients"
        )
    noise = direction == "noise"
    run = experiment.clean if noise else experiment.corrupted
    base = experiment.score(run[1], experiment.reference).double().mean()
    every_destination = [slice(None)] * (what == "node")
    found = []
    # Masks of all edges at once would outgrow the runs themselves.
    for part in cells.split(max(1, experiment.memory_budget // exists.numel())):
        keep = torch.full((len(part), *exists.shape), noise)
        keep[torch.arange(len(part)), *every_destination, *part.T] = not noise
        keep = keep.to(device_of(experiment.model))
        found.append(circuit_metric(experiment, keep, direction=direction).double().mean(1))
    values = torch.zeros(alone.shape)
    values[alone] = ((base - torch.cat(found)) * (1 if noise else -1)).float().cpu()
    return values * exists
