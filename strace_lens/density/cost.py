"""The cost of a density curve, estimated before anything runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from strace_lens.measures.sizes import edge_count
from strace_lens.model.architecture import Architecture, Model, device_of
from strace_lens.model.checks import architecture_of
from strace_lens.model.forward import byte_budget, bytes_per_row, rows_per_pass
from strace_lens.model.hold import verb
from strace_lens.traces.curve_rows import most_rows
from strace_lens.traces.graph import shape_of
from strace_lens.traces.masked_run import passes
from strace_lens.traces.random_control import drawing_bytes, drawn_at_once
from strace_lens.traces.rows import SUBSETS
from strace_lens.utils.choices import REFINE, SIZES

PATTERN_TOUCHES = 16
"""Softmaxes that cost as much as all that is done to a pattern's entries one by one."""

LAYER_SECONDS = 2e-3
"""What Python and the launching of operations cost in one layer of a pass, whatever its size."""

LIVE_SHARE = 0.75
"""Of the work of a row, what is done on a CPU: the rest is shared by rows or feeds no output."""

EDGE_SECONDS = 2e-7
"""What it costs to rank an edge: by a search, or by the growth of a random control."""


@dataclass(frozen=True)
class Plan:
    """An upper bound on the cost of a density curve.

    Attributes:
        tokens: length of the prompt.
        rows: number of masks to run.
        passes: number of forward passes that run them.
        multiply_adds: multiply-adds of the matrix products of all rows.
        bytes: memory of the largest forward pass, without the model's weights.
        row_bytes: memory of a forward pass over one row.
        graph_bytes: memory of the token graph, for as long as it is kept.
        trace_bytes: memory of the trace: the rank and the importance of every edge.
        peak_bytes: the most memory that reading the graph, ranking its edges greedily and measuring
            the curve use at once, without the model's weights.
        memory_budget: bytes that a forward pass should not exceed.
        seconds: a rough estimate of the time that the rows take.
    """

    tokens: int
    rows: int
    passes: int
    multiply_adds: int
    bytes: int
    row_bytes: int
    graph_bytes: int
    trace_bytes: int
    peak_bytes: int
    memory_budget: int
    seconds: float

    @property
    def over_budget(self) -> str | None:
        """A sentence that says so if a single row exceeds the memory budget; None if it fits."""
        if self.row_bytes <= self.memory_budget:
            return None
        return (
            f"one row of {self.tokens:,} tokens needs {as_text(self.row_bytes)}, more than "
            f"--memory (memory_budget) {as_text(self.memory_budget)}; it runs alone"
        )


class Speed(NamedTuple):
    """How fast a device works on forward passes."""

    name: str  # of the device, and where the numbers come from
    multiply_adds: float  # a second, in the products of a forward pass
    touch: float  # seconds that one entry of a pattern, a stream or an inner layer takes in all
    share: float = 1.0  # of a row's work that is done: see `LIVE_SHARE`


@verb
def plan(
    model: Model,
    tokens: int,
    *,
    sizes: Sequence[float] = SIZES,
    refine: int = REFINE,
    controls: bool = True,
    memory_budget: int | None = None,
) -> Plan:
    """Estimate the cost of `density_curve` for a prompt of a given length, without running it.

    Seconds follow from the work of the rows and from the speed of a matrix product and of a
    softmax, which are timed here (under half a second). A forward pass is assumed to reach half the
    speed of the product. Fitting an estimator, which comes before the curve, is not counted.

    Args:
        model: a HookedTransformer or a TransformerBridge.
        tokens: length of the prompt.
        sizes: as for `density_curve`.
        refine: as for `density_curve`.
        controls: as for `density_curve`.
        memory_budget: as for `density_curve`.

    Raises:
        ValueError: fewer than two tokens or more than the model's context, a negative `refine`,
            or a budget that is not positive.

    Example:
        >>> sl.plan(model, tokens=100)
    """
    architecture, dtype = architecture_of(model), next(cast(Any, model).parameters()).dtype
    if not 2 <= tokens <= architecture.context:
        raise ValueError(
            f"tokens must lie in 2 .. {architecture.context}, the context of {architecture.name}; "
            f"got {tokens}"
        )
    if refine < 0:
        raise ValueError(f"refine must be at least 0; got {refine}")
    rows = most_rows(sizes, controls, refine)
    budget = byte_budget(memory_budget, device_of(model))
    at_once = min(rows, rows_per_pass(architecture, tokens, budget))
    # Every size that is added may be a round of its own.
    count = passes(architecture, [tokens] * (rows - refine), budget) + refine
    row = bytes_per_row(architecture, tokens)
    speed = speed_here(device_of(model), dtype, architecture.heads, tokens, at_once)
    return Plan(
        tokens=tokens,
        rows=rows,
        passes=count,
        multiply_adds=rows * multiply_adds(architecture, tokens),
        bytes=at_once * row,
        row_bytes=row,
        graph_bytes=graph_bytes(architecture, tokens, dtype.itemsize),
        trace_bytes=trace_bytes(architecture, tokens),
        peak_bytes=peak_bytes(
            architecture, tokens, rows, at_once, dtype.itemsize, drawn=len(sizes) * controls
        ),
        memory_budget=budget,
        seconds=(
            seconds_of_rows(architecture, tokens, rows, count, speed)
            + random_edges(architecture, tokens, sizes) * controls * EDGE_SECONDS
        ),
    )


def seconds_of_rows(
    architecture: Architecture, tokens: int, rows: int, count: int, speed: Speed
) -> float:
    """Seconds that rows take in so many forward passes."""
    # Entries of patterns, streams and inner layers that a layer works on one by one.
    inner = 12 * architecture.d_model + 4 * architecture.d_mlp * architecture.experts
    touches = PATTERN_TOUCHES * architecture.heads * tokens**2 + tokens * inner
    return (
        speed.share * rows * multiply_adds(architecture, tokens) / speed.multiply_adds
        + speed.share * rows * architecture.layers * touches * speed.touch
        + count * architecture.layers * LAYER_SECONDS
    )


def speed_here(
    device: torch.device, dtype: torch.dtype, heads: int, tokens: int, rows: int
) -> Speed:
    """The speed of this machine, timed on a product and a softmax (under half a second).

    A forward pass is taken to reach half the speed of the product. The pattern of the softmax is
    as large as in a pass of so many rows, because those of long prompts do not fit the caches.
    """
    a = torch.ones(512, 512, device=device, dtype=dtype)
    lines = min(max(rows * heads * tokens, 2**16 // tokens), 2**24 // tokens)
    pattern = torch.zeros(max(lines, 1), tokens, device=device, dtype=dtype)
    return Speed(
        name=f"{device}, timed here",
        multiply_adds=512**3 / _seconds_of(lambda: a @ a) / 2,
        touch=_seconds_of(lambda: pattern.softmax(-1)) / pattern.numel(),
        share=LIVE_SHARE if device.type == "cpu" else 1.0,
    )


def multiply_adds(architecture: Architecture, tokens: int) -> int:
    """Multiply-adds of the matrix products of one masked row, unembedded at its last token only.

    Every query meets every key, as models compute it. Where a pattern cannot be written, attention
    is computed a second time. Every part is counted at every token, although most rows are spared
    some of them (`traces.live`).
    """
    heads, kv_heads, d_head = architecture.heads, architecture.kv_heads, architecture.d_head
    output = tokens * heads * d_head * architecture.d_model
    keys_and_values = 2 * tokens * kv_heads * d_head * architecture.d_model
    mix = heads * d_head * tokens**2
    layer = 2 * output + keys_and_values + 2 * mix + tokens * architecture.mlp_weights
    if not architecture.pattern_is_live:
        layer += mix + output
    return architecture.layers * layer + architecture.d_model * architecture.d_vocab


def gradient_multiply_adds(architecture: Architecture, tokens: int) -> int:
    """Multiply-adds of a backward pass through one masked row, the weights held fixed.

    A product with a weight asks for one product more, that of attention for two, because both of
    its factors depend on edges.
    """
    mix = architecture.heads * architecture.d_head * tokens**2
    again = 2 if architecture.pattern_is_live else 3
    return multiply_adds(architecture, tokens) + again * architecture.layers * mix


def graph_bytes(architecture: Architecture, tokens: int, itemsize: int = 4) -> int:
    """Bytes of the tensors of a token graph.

    The matrices that read them are the model's own, but where it multiplies what attention writes.
    """
    shape, layers = shape_of(architecture, tokens), architecture.layers
    d_model, inner = architecture.d_model, architecture.heads * architecture.d_head
    mlps = layers * architecture.mlp
    values = layers * architecture.kv_heads * architecture.d_head
    # The stream, what the MLPs write, the values, and a scale for each layer.
    by_token = (shape.levels + mlps) * d_model + values + layers
    patterns = layers * architecture.heads * tokens**2
    # Biases and gains, some of which are the model's own too.
    vectors = layers * (inner + 3 * d_model) + mlps * d_model
    multiplied = sum(scale != 1 for scale in architecture.attention_scales or ()) * inner * d_model
    return itemsize * (tokens * by_token + patterns + architecture.d_vocab + vectors + multiplied)


def trace_bytes(architecture: Architecture, tokens: int) -> int:
    """Bytes of the tensors of a trace: an int32 rank and a float32 importance for each edge."""
    return 8 * shape_of(architecture, tokens).places


def as_text(count: int) -> str:
    """A number of bytes, in MiB or GiB."""
    mebi = count / 2**20
    return f"{mebi / 1024:,.1f} GiB" if mebi >= 1000 else f"{mebi:,.{0 if mebi >= 10 else 1}f} MiB"


def random_edges(architecture: Architecture, tokens: int, sizes: Sequence[float]) -> int:
    """Edges that the random controls take: each size is grown anew."""
    edges = shape_of(architecture, tokens).edges
    return sum(edge_count(float(size), edges) for size in sizes)


def random_bytes(architecture: Architecture, tokens: int, drawn: int) -> int:
    """Bytes of so many random controls: a bit of an int32 for each of up to 31."""
    return 4 * math.ceil(drawn / SUBSETS) * shape_of(architecture, tokens).places


def peak_bytes(
    architecture: Architecture,
    tokens: int,
    rows: int,
    at_once: int,
    itemsize: int,
    *,
    drawn: int,
) -> int:
    """The most that reading, ranking and measuring one prompt hold, without the weights.

    Args:
        architecture: of the model.
        tokens: length of the prompt.
        rows: masks that are run.
        at_once: how many of them run in one forward pass.
        itemsize: bytes of one number of the model.
        drawn: random controls, which are all there until the last of them has run.
    """
    shape = shape_of(architecture, tokens)
    there, edges = shape.places, shape.edges
    graph = graph_bytes(architecture, tokens, itemsize)
    row = bytes_per_row(architecture, tokens)
    # Each activation is copied into its place as it is read; then what MLPs write, less constants.
    mlps = itemsize * architecture.layers * architecture.mlp * tokens * architecture.d_model
    reading = graph + max(row, mlps)
    # Scores, ranks and the keys of the search; afterwards the importances and which are reachable.
    search = 8 * there + 8 * edges
    layer = 12 * architecture.heads * tokens * (tokens + architecture.d_model)
    extracting = graph + max(search, 14 * there, 4 * there + layer)
    held = graph + 8 * there + random_bytes(architecture, tokens, drawn)
    growing = held + drawn_at_once(shape) * drawing_bytes(shape) * bool(drawn)
    running = held + max(at_once * row, 64 * rows * architecture.d_vocab)
    return max(reading, extracting, growing, running)


def _seconds_of(work: Callable[[], Tensor], seconds: float = 0.15) -> float:
    """Seconds of a piece of work, done over and over for a while."""
    work()
    times, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        work()[0, 0].item()  # waits for the device
        times += 1
    return (time.perf_counter() - begin) / times
