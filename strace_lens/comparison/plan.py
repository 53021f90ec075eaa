"""What a comparison of discovery methods will cost, from a model's configuration and its task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from strace_lens.circuits.cost import (
    edge_multiply_adds,
    gradient_budget,
    gradient_row_bytes,
    patched_row_bytes,
)
from strace_lens.circuits.discover.methods import METHODS, options_of, passes_of
from strace_lens.circuits.discover.pass_counts import PassCount
from strace_lens.circuits.evaluate import FRACTIONS, RESOLUTION, ranks_by_magnitude
from strace_lens.circuits.graph import ComponentGraph
from strace_lens.circuits.task import Task
from strace_lens.circuits.wiring import graph_of
from strace_lens.comparison.compare import check_methods, method_options, split
from strace_lens.density.cost import Speed, multiply_adds, seconds_of_rows, speed_here
from strace_lens.model.architecture import Architecture
from strace_lens.model.forward import byte_budget
from strace_lens.model.skeleton import Skeleton

PATCHED_PRODUCTS = 2.5
"""Products with all edges that take as long as what a patched pass adds to a plain one."""

GRADIENT_PRODUCTS = 1.5
"""The same for a backward pass whose gradients are multiplied with differences of sources."""

PATCHED_BACKWARD = 3.0
"""Patched forward passes that take as long as the backward pass through one."""

EVALUATED = 0.75
"""Patched passes that a circuit of the evaluation takes: many share layers, or need few heads."""

SUFFIX = 0.4
"""The same for a pass that starts at the first layer in which it differs from another."""


@dataclass(frozen=True)
class MethodPlan:
    """What one method of a comparison costs.

    Attributes:
        method: key of `METHODS`.
        skipped: whether `compare` skips the method; then nothing else is counted.
        forwards: forward passes for each pair, at least; None where nobody has said.
        backwards: backward passes for each pair.
        seconds: of finding the scores; None where the passes are not known.
        circuits: whose metric is measured in its evaluation, at most.
        evaluation_seconds: of measuring them.
    """

    method: str
    skipped: bool = False
    forwards: int | float | None = None
    backwards: int | float | None = None
    seconds: float | None = None
    circuits: int = 0
    evaluation_seconds: float = 0.0


@dataclass(frozen=True)
class ComparisonPlan:
    """What a comparison will cost, besides loading the model and drawing its page.

    Attributes:
        task: its name.
        model: name of the model.
        dtype: of its weights.
        edges: of the component graph.
        pairs: that methods see.
        evaluated_pairs: that circuits are evaluated on.
        dropped: pairs that do not align on this tokenizer.
        longest: tokens of the longest prompt.
        methods: the methods, with the random control.
        weights_bytes: of the model.
        peak_bytes: the most held at once in addition to the weights, a rough estimate.
        speed: of the device, in words.
    """

    task: str
    model: str
    dtype: str
    edges: int
    pairs: int
    evaluated_pairs: int
    dropped: int
    longest: int
    methods: tuple[MethodPlan, ...]
    weights_bytes: int
    peak_bytes: int
    speed: str

    @property
    def seconds(self) -> float:
        """Of all methods whose passes are known, discovery and evaluation."""
        return sum((plan.seconds or 0.0) + plan.evaluation_seconds for plan in self.methods)

    def to_dict(self) -> dict[str, Any]:
        """All of it as a JSON object."""
        return {**asdict(self), "seconds": self.seconds}


def plan_comparison(
    known: Skeleton,
    task: Task,
    methods: Sequence[str],
    options: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    ranking: str = "mib",
    sample: int = 16,
    completeness: bool = True,
    minimality: bool = True,
    memory_budget: int | None = None,
) -> ComparisonPlan:
    """Estimate what `compare` costs on the two halves of a task, without the model's weights.

    Seconds are rough: within a factor of two on two cores of a CPU. They come from the products of
    each pass and the speed of a product, which is timed here (under half a second).

    Args:
        known: the model's `skeleton`.
        task: pairs for the methods and for the evaluation, tokenized for this model.
        methods: keys of `METHODS`.
        options: of single methods, by name.
        ranking: as for `compare`.
        sample: as for `compare`.
        completeness: as for `compare`.
        minimality: as for `compare`.
        memory_budget: as for `compare`.

    Raises:
        ValueError: no method or an unknown one, an unknown ranking, or a budget that is not
            positive.
    """
    arch, tokens = known.architecture, int(task.clean.shape[1])
    graph = graph_of(arch)
    names, chosen = check_methods(methods), method_options(graph, options or {})
    ranks_by_magnitude(ranking)  # an unknown one is refused
    seen, others = split(task)
    evaluated = len(seen if others is None else others)
    budget = byte_budget(memory_budget, torch.device("cpu"))
    at_once = max(1, budget // patched_row_bytes(arch, graph, tokens))
    speed = speed_here(torch.device("cpu"), known.dtype, arch.heads, tokens, at_once)
    cost = _Cost(arch, graph, tokens, budget, at_once, speed._replace(share=1.0))
    fixed = (len(FRACTIONS) - 1) + _bisections(graph) + completeness + sample * minimality
    plans = []
    for name in names:
        passes = passes_of(name, graph, len(seen), chosen.get(name))
        if _is_skipped(name, passes, len(seen), chosen.get(name)):
            plans.append(MethodPlan(name, skipped=True))
            continue
        twice = ranking == "mib" and METHODS[name].signed
        circuits = fixed + (len(FRACTIONS) - 1) * twice
        plans.append(
            MethodPlan(
                method=name,
                forwards=None if passes is None else passes.forwards,
                backwards=None if passes is None else passes.backwards,
                seconds=None if passes is None else cost.seconds(passes, len(seen)),
                circuits=circuits,
                evaluation_seconds=EVALUATED * cost.patched(circuits * evaluated),
            )
        )
    gradients = any(plan.backwards for plan in plans)
    return ComparisonPlan(
        task=task.name,
        model=known.name,
        dtype=str(known.dtype).removeprefix("torch."),
        edges=graph.edges,
        pairs=len(seen),
        evaluated_pairs=evaluated,
        dropped=task.dropped,
        longest=tokens,
        methods=tuple(plans),
        weights_bytes=known.weights_bytes,
        peak_bytes=cost.peak_bytes(len(task), len(seen), gradients=gradients),
        speed=speed.name,
    )


def _is_skipped(
    method: str, passes: PassCount | None, pairs: int, given: Mapping[str, Any] | None
) -> bool:
    """Whether `compare` skips a method: it scores edges by position, or would run too many rows."""
    most = options_of(method, given).get("max_rows")
    too_many = most is not None and passes is not None and passes.patched * pairs > most
    return METHODS[method].by_position or too_many


def _bisections(graph: ComponentGraph) -> int:
    """Circuits that are run to find the number of edges for 85 %, between two of the fractions."""
    return math.ceil(math.log2(min(1 / RESOLUTION, graph.edges / 2)))


@dataclass(frozen=True)
class _Cost:
    """Seconds and bytes of passes over prompts of one length."""

    architecture: Architecture
    graph: ComponentGraph
    tokens: int
    budget: int
    at_once: int  # rows of a pass
    speed: Speed

    def seconds(self, passes: PassCount, pairs: int) -> float:
        """Of a method's passes over all pairs."""
        edges, plain = self._edges(GRADIENT_PRODUCTS), self._rows(pairs * passes.forward)
        backward = self._rows(pairs * passes.backward) * (1 + edges)
        share = SUFFIX if passes.suffixes else 1.0
        patched = share * passes.patched + PATCHED_BACKWARD * passes.patched_backward
        return plain + backward + self.patched(pairs * patched)

    def patched(self, rows: int | float) -> float:
        """Seconds of rows in which edges are ablated."""
        return self._rows(rows) * (1 + self._edges(PATCHED_PRODUCTS))

    def peak_bytes(self, kept: int, pairs: int, *, gradients: bool) -> int:
        """The runs of so many pairs, and the largest pass beside them."""
        arch, graph, tokens = self.architecture, self.graph, self.tokens
        largest = self.at_once * patched_row_bytes(arch, graph, tokens)
        if gradients:
            row = gradient_row_bytes(arch, graph, tokens)
            largest = max(largest, max(1, min(pairs, gradient_budget(self.budget) // row)) * row)
        # Of each prompt: what heads and MLPs write, and the stream before each of them.
        vectors = 1 + (1 + 2 * arch.mlp) * arch.layers
        heads = arch.layers * arch.heads * arch.d_head
        run = 4 * (tokens * ((vectors + arch.layers) * arch.d_model + heads) + arch.d_vocab)
        return 2 * kept * run + largest

    def _rows(self, rows: int | float) -> float:
        """Seconds of plain rows, in passes as large as the budget allows."""
        passes = math.ceil(rows / self.at_once)
        return seconds_of_rows(self.architecture, self.tokens, math.ceil(rows), passes, self.speed)

    def _edges(self, products: int | float) -> float:
        """So many products with all edges, as a share of the products of a plain row."""
        each = edge_multiply_adds(self.architecture, self.graph, self.tokens)
        return products * each / multiply_adds(self.architecture, self.tokens)
