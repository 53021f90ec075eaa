"""Circuits and paths drawn at random, which a circuit and its edges are compared with."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool
from torch import Tensor

from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.graph import EMBED, ComponentGraph

_TRIES = 1_000


def random_circuits(circuit: Circuit, reference: str, seed: int) -> Iterator[Circuit]:
    """Circuits of as many edges, drawn one after another.

    "random" puts the weights of all edges in a random order. "connected" adds edges in a random
    order until as many as the circuit has lie on paths from the embedding to the logits, and keeps
    those; where an edge brings others in with it, there are some more. Their weights are 1.

    Args:
        circuit: of which size they are.
        reference: one of `REFERENCES`.
        seed: the same seed gives the same circuits.
    """
    generator = torch.Generator().manual_seed(seed)
    cells = circuit.exists.cpu().nonzero()
    keep = circuit.keep.cpu()
    own = keep[tuple(cells.T)]
    while True:
        order = torch.randperm(len(cells), generator=generator)
        if reference == "random":
            drawn = torch.zeros_like(keep)
            drawn[tuple(cells.T)] = own[order]
            yield Circuit(circuit.graph, drawn)
        else:
            yield _connected(circuit, cells[order])


def _connected(circuit: Circuit, cells: Tensor) -> Circuit:
    """The connected part of the fewest first cells of which as many as a circuit's edges are."""
    wanted = len(circuit)

    def part(count: int) -> Circuit:
        keep = torch.zeros(circuit.keep.shape, dtype=torch.bool)
        keep[tuple(cells[:count].T)] = True
        return Circuit(circuit.graph, keep).connected()

    low, high = 0, len(cells)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if len(part(middle)) >= wanted else (middle, high)
    return part(high)


def new_path(
    graph: ComponentGraph, kept: Bool[Tensor, "destination source"], generator: torch.Generator
) -> Tensor | None:
    """Edges of a random path from the embedding to the logits, not all of which are kept.

    None where no such path was found.
    """
    embed = graph.source_index(EMBED)
    for _ in range(_TRIES):
        path, to = [], graph.destinations - 1
        while True:
            source = _pick(graph.exists[to], generator)
            path.append((to, source))
            if source == embed:
                break
            to = _pick(graph.feeds[:, source], generator)
        cells = torch.tensor(path)
        if not bool(kept[tuple(cells.T)].all()):
            return cells
    return None


def _pick(among: Bool[Tensor, " item"], generator: torch.Generator) -> int:
    places = among.nonzero()[:, 0]
    return int(places[torch.randint(len(places), (1,), generator=generator)[0]])
