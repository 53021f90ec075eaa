"""How many forward and backward passes each discovery method takes, before anything is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from strace_lens.circuits.graph import ComponentGraph


class PassCount(NamedTuple):
    """Passes of a method for each pair of its task, the clean and the corrupted run included.

    Attributes:
        forward: forward passes of the model itself.
        backward: backward passes of the model itself.
        patched: forward passes in which edges are ablated.
        patched_backward: backward passes through those.
        suffixes: True if each patched pass starts at the first layer in which it differs from
            another one, which on average is half of the model.
    """

    forward: float = 0
    backward: float = 0
    patched: float = 0
    patched_backward: float = 0
    suffixes: bool = False

    @property
    def forwards(self) -> int | float:
        """All forward passes, as `Scores.forwards` counts them."""
        return self.forward + self.patched

    @property
    def backwards(self) -> int | float:
        """All backward passes, as `Scores.backwards` counts them."""
        return self.backward + self.patched_backward


Count = Callable[[ComponentGraph, int, Mapping[str, Any]], PassCount | None]
"""From the graph, the number of pairs and all options of a method to its passes, if known."""


def fixed(forward: int, backward: int = 0) -> Count:
    """The same number of passes for every graph, task and option."""
    return lambda graph, pairs, options: PassCount(forward, backward)


def steps(each: int = 1) -> Count:
    """A forward and a backward pass, or several, at each of `steps`, after two forward ones."""
    return lambda graph, pairs, options: PassCount(
        2 + each * options["steps"], each * options["steps"]
    )


def layers(graph: ComponentGraph, pairs: int, options: Mapping[str, Any]) -> PassCount:
    """A forward and a backward pass for each of `steps` points and each layer's heads and MLP."""
    groups = 1 + (1 + graph.mlp) * graph.layers
    return PassCount(2 + options["steps"] * groups, options["steps"] * groups)


def each_edge(graph: ComponentGraph, pairs: int, options: Mapping[str, Any]) -> PassCount:
    """A patched pass for each edge, after two forward ones."""
    return PassCount(forward=2, patched=graph.edges, suffixes=True)


def each_node(graph: ComponentGraph, pairs: int, options: Mapping[str, Any]) -> PassCount:
    """A patched pass for each node, after two forward ones."""
    return PassCount(forward=2, patched=graph.sources, suffixes=True)


def pruned(forward: int, backward: int = 0) -> Count:
    """A patched forward and backward pass over `batch` pairs at each of `steps`, after others."""

    def count(graph: ComponentGraph, pairs: int, options: Mapping[str, Any]) -> PassCount:
        rows = options["steps"] * min(options["batch"], pairs) / pairs
        return PassCount(forward, backward, rows, rows)

    return count
