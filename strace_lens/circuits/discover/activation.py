"""Activation patching: the exact effect of ablating one edge, or one node, and nothing else.

Vig et al. (2020), "Investigating Gender Bias in Language Models Using Causal Mediation Analysis";
edges after Goldowsky-Dill et al. (2023), "Localizing Model Behavior with Path Patching". Effects of
single edges do not add up to that of a set: a set has to be run itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from strace_lens.circuits.experiment import Experiment
from strace_lens.circuits.run_circuits import Direction, check_positions, circuit_metric
from strace_lens.model.architecture import device_of

MAX_ROWS = 2**16
"""Rows that a method runs unless told otherwise: edges (or nodes) times pairs."""

Mark = Callable[[Tensor, Int[Tensor, "circuit index"], bool], None]


class TooManyRowsError(ValueError):
    """Exact patching that would run more rows than `max_rows`, with the ways out."""


def edge_patching(
    experiment: Experiment,
    *,
    seed: int = 0,
    positions: bool = False,
    direction: Direction = "noise",
    max_rows: int = MAX_ROWS,
) -> Float[Tensor, "destination source *pos"]:
    """Effect of each edge alone on the metric, the mean over pairs; positive helps.

    "noise" gives metric(full) - metric(this edge ablated); "denoise" gives metric(this edge clean
    in the corrupted run) - metric(corrupted). One forward pass an edge beside the clean and
    corrupted ones.

    Args:
        experiment: from `make_experiment`.
        seed: not used; every method takes one.
        positions: ablate an edge at one token position at a time.
        direction: which run is patched; see above.
        max_rows: refuse to run more rows than these.

    Raises:
        TooManyRowsError: there are more edges times pairs than `max_rows`.
        ValueError: positions over prompts of unequal lengths.
    """
    exists = _with_positions(experiment, positions, experiment.graph.exists)

    def mark(keep: Tensor, index: Int[Tensor, "circuit index"], value: bool) -> None:
        keep[torch.arange(len(keep)), *index.T] = value

    cells = exists.nonzero()
    values = torch.zeros(exists.shape)
    values[exists] = _effects(
        experiment, "edge", exists, cells, mark, direction=direction, max_rows=max_rows
    )
    return values


def node_patching(
    experiment: Experiment,
    *,
    seed: int = 0,
    positions: bool = False,
    direction: Direction = "noise",
    max_rows: int = MAX_ROWS,
) -> Float[Tensor, "destination source *pos"]:
    """Effect of each node alone on the metric, written on all of its out-edges; positive helps.

    A node is ablated by all its out-edges at once. Sign, passes (one a node), arguments and errors
    are those of `edge_patching`.
    """
    exists = _with_positions(experiment, positions, experiment.graph.exists)

    def mark(keep: Tensor, index: Int[Tensor, "circuit index"], value: bool) -> None:
        source, *position = index.T
        keep[torch.arange(len(keep)), :, source, *position] = value

    nodes = exists.any(0)
    effects = torch.zeros(nodes.shape)
    effects[nodes] = _effects(
        experiment, "node", exists, nodes.nonzero(), mark, direction=direction, max_rows=max_rows
    )
    return effects * exists


def _with_positions(
    experiment: Experiment, positions: bool, exists: Bool[Tensor, "destination source"]
) -> Bool[Tensor, "destination source *pos"]:
    if not positions:
        return exists
    check_positions(experiment.task)
    return exists[..., None].repeat(1, 1, experiment.task.clean.shape[1])


def _effects(
    experiment: Experiment,
    what: str,
    exists: Bool[Tensor, "destination source *pos"],
    cells: Int[Tensor, "circuit index"],
    mark: Mark,
    *,
    direction: Direction,
    max_rows: int,
) -> Float[Tensor, " circuit"]:
    """Mean effect over pairs of each circuit, in which only what is marked differs."""
    pairs = len(experiment.task)
    if len(cells) * pairs > max_rows:
        raise TooManyRowsError(
            f"{what}-patching would run {len(cells) * pairs:,} rows ({len(cells):,} {what}s x "
            f"{pairs} pairs), more than max_rows={max_rows:,}; give fewer pairs or a larger "
            "max_rows, or take eap, which estimates the same from gradients"
        )
    noise = direction == "noise"
    run = experiment.clean if noise else experiment.corrupted
    base = experiment.score(run[1], experiment.reference).double().mean()
    found = []
    # Masks of all edges at once would outgrow the runs themselves.
    masks = max(1, experiment.memory_budget // exists.numel())
    for part in cells.split(masks):
        keep = torch.full((len(part), *exists.shape), noise)
        mark(keep, part, not noise)
        value = circuit_metric(
            experiment, keep.to(device_of(experiment.model)), direction=direction
        )
        found.append(value.double().mean(1))
    effects = base - torch.cat(found)
    return (effects if noise else -effects).float().cpu()
