"""What rows of the component graph's passes take: bytes, and products besides the model's own."""

from __future__ import annotations

from strace_lens.circuits.graph import ComponentGraph
from strace_lens.model.architecture import Architecture
from strace_lens.model.forward import bytes_per_row

GRADIENT_FACTOR = 16
"""Budgets that a pass forward and backward may take: it holds what every layer has computed."""

GRADIENT_BYTES = 2**32
"""Bytes that such a pass takes at the most, unless one budget is more."""


def patched_row_bytes(architecture: Architecture, graph: ComponentGraph, tokens: int) -> int:
    """Bytes of a row of a pass in which edges are ablated."""
    vectors = graph.sources + 3 * graph.destinations_per_layer
    return bytes_per_row(architecture, tokens) + _vector_bytes(architecture, tokens) * vectors


def gradient_row_bytes(
    architecture: Architecture, graph: ComponentGraph, tokens: int, *, patched: bool = False
) -> int:
    """Bytes of a row of a pass forward and backward, which holds what every layer computes.

    Where it is `patched`, what each destination reads is held too.
    """
    vectors = 2 * graph.sources + 3 * graph.destinations * patched
    plain = graph.layers * bytes_per_row(architecture, tokens)
    return plain + _vector_bytes(architecture, tokens) * vectors


def gradient_budget(memory_budget: int) -> int:
    """Bytes that a pass forward and backward may take under the budget of a forward pass."""
    return max(memory_budget, min(GRADIENT_FACTOR * memory_budget, GRADIENT_BYTES))


def edge_multiply_adds(architecture: Architecture, graph: ComponentGraph, tokens: int) -> int:
    """Multiply-adds of one product of a number for each edge with what its source writes."""
    return graph.edges * tokens * architecture.d_model


def _vector_bytes(architecture: Architecture, tokens: int) -> int:
    """Bytes of one vector of the residual stream at every token, in single precision."""
    return 4 * tokens * architecture.d_model
