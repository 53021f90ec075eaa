"""Draws of edges for the causal check: from the halves of a phase, and controls that match them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from strace_lens.density.phases import LayerPhase
from strace_lens.traces.edges import EdgeTensors
from strace_lens.traces.trace import Trace
from strace_lens.utils.choices import KINDS

DRAWS = 5
"""Random sets of edges that each mean is taken over."""

FEWEST = 8
LEAST_SHARE = 0.01
"""Numbers of edges are halved down to this many, or to this share of the first number."""


class Half(NamedTuple):
    """The edges of a phase that can be ablated in the early or in the late half of the layers."""

    name: str  # as the table names it
    edges: Int64[Tensor, " edge"]  # their places in the flat graph
    orders: tuple[Int64[Tensor, " edge"], ...]  # the same in random orders: draws come first

    def draws(self, count: int) -> list[Int64[Tensor, " drawn"]]:
        """The sets to ablate: five, or a single one where there is no choice."""
        if count in (0, len(self.edges)):
            return [self.edges[:count]]
        return [order[:count] for order in self.orders]


class Control(NamedTuple):
    """All edges of a trace that can be ablated, for draws of given numbers by kind and layer."""

    # One number for each kind of edge in each layer, of every edge of the flat graph.
    stratum: Int64[Tensor, " edge_id"]
    # The edges in random orders within their strata, and these by rising number.
    orders: tuple[Int64[Tensor, " edge"], ...]

    def matching(self, gone: Int64[Tensor, " gone"], draw: int) -> Int64[Tensor, " drawn"]:
        """Other edges, as many of each kind in each layer; all others where there are fewer."""
        taken = torch.zeros(len(self.stratum), dtype=torch.bool)
        taken[gone] = True
        left = self.orders[draw][~taken[self.orders[draw]]]
        strata = self.stratum[left]
        wanted = torch.bincount(self.stratum[gone], minlength=int(self.stratum.max()) + 1)
        there = torch.bincount(strata, minlength=len(wanted))
        place = torch.arange(len(left)) - (there.cumsum(0) - there)[strata]
        return left[place < wanted[strata]]


Halves = tuple[Half, Half]


def counts_to_try(first: int) -> list[int]:
    """Numbers of edges to ablate: each half of the one before."""
    counts = [first]
    while counts[-1] // 2 >= max(FEWEST, LEAST_SHARE * first):
        counts.append(counts[-1] // 2)
    return counts


def ablatable_edges(whole: EdgeTensors, keep: Sequence[str]) -> Bool[Tensor, " edge_id"]:
    """The edges of a trace that are not of a kind that is kept."""
    of_kinds = whole._asdict().items()
    return EdgeTensors(
        **{kind: torch.zeros_like(x) if kind in keep else x for kind, x in of_kinds}
    ).flat()


def halves_of(
    trace: Trace,
    name: str,
    phase: LayerPhase,
    ablatable: Bool[Tensor, " edge_id"],
    generator: torch.Generator,
) -> Halves:
    """The early half of a phase and its late half."""
    ranks, layers = trace.ranks.flat(), trace.shape.layer_of().flat()
    inside = ablatable & (ranks >= phase.first) & (ranks < phase.last)
    early = layers < trace.shape.layers // 2

    def half(half_name: str, there: Bool[Tensor, " edge_id"]) -> Half:
        edges = there.nonzero().flatten()
        return Half(f"{name}, {half_name} layers", edges, _shuffled(edges, generator))

    return half("early", inside & early), half("late", inside & ~early)


def control_of(trace: Trace, edges: Int64[Tensor, " edge"], generator: torch.Generator) -> Control:
    """The control that draws from these edges of a trace."""
    layers = trace.shape.layer_of()
    stratum = EdgeTensors(*(len(KINDS) * x.long() + kind for kind, x in enumerate(layers))).flat()
    orders = (order[stratum[order].argsort(stable=True)] for order in _shuffled(edges, generator))
    return Control(stratum, tuple(orders))


def _shuffled(edges: Int64[Tensor, " edge"], generator: torch.Generator) -> tuple[Tensor, ...]:
    return tuple(edges[torch.randperm(len(edges), generator=generator)] for _ in range(DRAWS))
