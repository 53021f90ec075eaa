"""Small transformers trained to work by the circuit of a compiled program, among idle heads.

Strict interchange intervention training (SIIT) of Gupta et al. (2024), "InterpBench: Semi-Synthetic
Transformers for Evaluating Mechanistic Interpretability Techniques", arXiv 2407.14494, after Geiger
et al. (2022), "Inducing Causal Structure for Interpretable Neural Networks". The high-level model
is a program that Tracr compiled, the low-level one starts from random weights and has more heads.
Every node of the program's circuit has a counterpart in the same layer, a head drawn by the seed or
the MLP. Three losses are added: the behaviour; what the interchange of a node or edge with another
input's does to the output, which must be the same in both models; and strictness, that such an
interchange anywhere outside the counterparts changes nothing.

Unlike the source, edges are intervened on beside nodes, since methods that score edges are to be
held to them, and the logits themselves are compared, by their squared difference, since the
program's are bounded. Outputs are compared at every position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.graph import ComponentGraph
from strace_lens.ground_truth.tracr import Compiled, every_input, prompts
from strace_lens.ground_truth.training import minimize, random_start
from strace_lens.ground_truth.weights import Weights

PROGRAMS = ("detect-ab", "pair-balance")
"""Of Tracr's programs, those whose every interchange is learned within the steps below."""

HEADS, D_MODEL, D_HEAD, D_MLP = 4, 32, 8, 64
STEPS, ROWS, RATE = 1000, 64, 5e-3

TOLERANCE = 0.1
"""Difference of a logit, over the program's largest, to which two outputs are the same."""

BAR = 0.99
"""Share of the outputs that must be the program's, clean and under every interchange."""

CHANGED = 0.05
"""Share of the outputs that the interchange of a node or edge of the circuit must change."""


class TrainingError(RuntimeError):
    """A trained model that does not work as it should; the message has the numbers."""


class EdgeRun(NamedTuple):
    """A run in which every edge may carry something of its own."""

    logits: Float[Tensor, "row pos out"]
    sources: Float[Tensor, "row source pos d_model"]


class Alignment(NamedTuple):
    """The edges of the program's circuit, each beside its counterpart: `keep[destination, source]`.

    Attributes:
        high, low: graphs of the compiled and of the trained model.
        high_edges, low_edges: the edges in the two, in one order.
    """

    high: ComponentGraph
    low: ComponentGraph
    high_edges: Int[Tensor, "edge 2"]
    low_edges: Int[Tensor, "edge 2"]

    @property
    def inside(self) -> Bool[Tensor, "destination source"]:
        """The counterparts, as a mask of the trained model's edges."""
        keep = torch.zeros_like(self.low.exists)
        keep[*self.low_edges.T] = True
        return keep

    @property
    def units(self) -> Bool[Tensor, "unit edge"]:
        """What is interchanged at a time: each edge of the circuit, and all those of each node."""
        sources = self.high_edges[:, 1]
        nodes = sources == sources.unique()[:, None]
        return torch.cat([torch.eye(len(sources), dtype=torch.bool), nodes])

    def without(
        self, cut: Bool[Tensor, "row edge"]
    ) -> tuple[Float[Tensor, "row _ _"], Float[Tensor, "row _ _"]]:
        """Masks of both graphs that keep all edges but those cut on each row."""
        masks = []
        for graph, edges in ((self.high, self.high_edges), (self.low, self.low_edges)):
            keep = torch.ones(len(cut), *graph.exists.shape)
            keep[:, *edges.T] = (~cut).float()
            masks.append(keep)
        return masks[0], masks[1]


@dataclass(frozen=True, eq=False)
class Semisynthetic:
    """A trained model and its circuit.

    Attributes:
        weights: of the trained model.
        truth: the counterparts of the program's edges.
        accuracy: share of the outputs that are the program's.
        interchange: the same under the interchange of each node and edge of the circuit; the
            smallest share.
        strictness: the same under the interchange of each node outside the circuit and of all edges
            outside it at once; the smallest share.
        changed: share of the outputs that the interchange of each node and edge of the circuit
            changes; the smallest share.
    """

    weights: Weights
    truth: Circuit
    accuracy: float
    interchange: float
    strictness: float
    changed: float


def train_semisynthetic(
    compiled: Compiled, circuit: Circuit, seed: int = 0, steps: int = STEPS
) -> Semisynthetic:
    """Train a model to a compiled program's circuit, in about 20 s of one core.

    Args:
        compiled: the program; all its inputs of full length are trained on.
        circuit: its edges whose resampling changes its output.
        seed: of the counterparts, of the weights and of all draws; the same gives the same model.
        steps: of training.

    Raises:
        TrainingError: the trained model's accuracy, its interchange accuracy or its strictness is
            below `BAR`, or a part of the circuit changes less than `CHANGED` of the outputs.
    """
    generator = torch.Generator().manual_seed(seed)
    name = f"siit-{compiled.name}"
    aligned = align(circuit, name, generator)
    program, high = compiled.weights, aligned.high
    weights = random_start(
        generator,
        vocabulary=len(program.W_E),
        context=len(program.W_pos),
        outputs=program.W_U.shape[1],
        layers=high.layers,
        heads=HEADS,
        d_model=D_MODEL,
        d_head=D_HEAD,
        d_mlp=D_MLP,
        causal=program.causal,
    )
    tokens = prompts(compiled, every_input(compiled.program))
    wanted = run_edges(program, tokens)
    units, outside = aligned.units, aligned.low.exists & ~aligned.inside

    def loss() -> Float[Tensor, ""]:
        rows = torch.randperm(len(tokens), generator=generator)[:ROWS]
        other = rows.roll(1)
        unit = torch.randint(len(units), (len(rows),), generator=generator)
        high_keep, low_keep = aligned.without(units[unit])
        strict = (~some_of(outside, aligned.inside.any(0), len(rows), generator)).float()
        with torch.no_grad():
            moved = run_edges(program, tokens[rows], high_keep, wanted.sources[other])
        clean = run_edges(weights, tokens[rows])
        patched = run_edges(
            weights,
            tokens[rows].repeat(2, 1),
            torch.cat([low_keep, strict]),
            clean.sources.roll(1, 0).repeat(2, 1, 1, 1),
        )
        target = wanted.logits[rows]
        found = torch.cat([clean.logits, patched.logits])
        return 3 * (found - torch.cat([target, moved.logits, target])).square().mean()

    minimize(weights, loss, steps=steps, rate=RATE)
    return proved(compiled, weights, aligned, seed)


def align(circuit: Circuit, name: str, generator: torch.Generator) -> Alignment:
    """Give every edge of a circuit its counterpart: heads drawn within a layer, MLPs as they are.

    Args:
        circuit: of the compiled model.
        name: of the trained model.
        generator: that draws the heads.

    Raises:
        ValueError: the compiled model has more heads a layer than the trained one.
    """
    high = circuit.graph
    if high.heads > HEADS:
        raise ValueError(f"{high.heads} heads a layer have no counterparts among {HEADS}")
    low = ComponentGraph(name, high.layers, HEADS, HEADS)
    sources = torch.zeros(high.sources, dtype=torch.int64)
    destinations = torch.full((high.destinations,), low.destinations - 1)
    for layer in range(high.layers):
        heads = torch.randperm(HEADS, generator=generator)[: high.heads]
        sources[high.heads_of(layer)] = low.heads_of(layer).start + heads
        if high.mlp:
            sources[high.heads_of(layer).stop] = low.heads_of(layer).stop
        ours, theirs = high.inputs_of(layer), low.inputs_of(layer)
        for kind in "qkv":
            destinations[ours[kind]] = theirs[kind].start + heads
        destinations[ours["mlp"]] = theirs["mlp"].start
    edges = circuit.kept.nonzero()
    counterparts = torch.stack([destinations[edges[:, 0]], sources[edges[:, 1]]], 1)
    return Alignment(high, low, edges, counterparts)


def some_of(
    outside: Bool[Tensor, "destination source"],
    working: Bool[Tensor, " source"],
    rows: int,
    generator: torch.Generator,
) -> Bool[Tensor, "row destination source"]:
    """Random edges outside a circuit for each row: of half of the rows, all those of some nodes.

    Args:
        outside: the edges to draw from; each row draws its own share of them.
        working: the nodes of the circuit, which are never drawn whole.
        rows: how many.
        generator: that draws.
    """

    def drawn(*shape: int) -> Bool[Tensor, "..."]:
        share = torch.rand(rows, 1, 1, generator=generator)
        return torch.rand(rows, *shape, generator=generator) < share

    edges, nodes = drawn(*outside.shape), drawn(1, len(working)) & ~working
    by_node = torch.rand(rows, 1, 1, generator=generator) < 0.5
    return torch.where(by_node, nodes, edges) & outside


def run_edges(
    weights: Weights,
    tokens: Int[Tensor, "row pos"],
    keep: Float[Tensor, "row destination source"] | None = None,
    replaced: Float[Tensor, "row source pos d_model"] | None = None,
) -> EdgeRun:
    """The forward pass of a model without norms, written out, with every edge to be cut.

    Without hooks, which take most of the time in a model this small, and with gradients through
    what replaces an edge. That it is the model's own is tested.

    Args:
        weights: of the model.
        tokens: ids.
        keep: of each edge, the share that it carries of its source; all of it if not given.
        replaced: what it carries the rest of; needed where `keep` is given.
    """
    length, (layers, heads, _, d_head) = tokens.shape[1], weights.W_Q.shape
    destinations = iter(range(layers * (3 * heads + (weights.W_in is not None)) + 1))
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    sources = (weights.W_E[tokens] + weights.W_pos[:length])[:, None]

    def read(inputs: int) -> Float[Tensor, "row input pos d_model"]:
        which = [next(destinations) for _ in range(inputs)]
        if keep is None or replaced is None:
            return sources.sum(1, keepdim=True).expand(-1, inputs, -1, -1)
        other = replaced[:, : sources.shape[1]]
        share = keep[:, which, : sources.shape[1]]
        change = (share @ (sources - other).flatten(2)).unflatten(2, sources.shape[2:])
        return change + other.sum(1, keepdim=True)

    for layer in range(layers):
        own = weights.of_layer(layer)
        q, k, v = (
            torch.einsum("rhpm,hme->rhpe", x, own[W])
            for x, W in zip(read(3 * heads).chunk(3, 1), ("W_Q", "W_K", "W_V"), strict=True)
        )
        scores = q @ k.transpose(2, 3) / d_head**0.5
        if weights.causal:
            scores = scores.masked_fill(later, -torch.inf)
        written = torch.einsum("rhpe,hem->rhpm", scores.softmax(-1) @ v, own["W_O"])
        sources = torch.cat([sources, written], 1)
        if "W_in" in own:
            hidden = (read(1) @ own["W_in"] + own["b_in"]).relu()
            sources = torch.cat([sources, hidden @ own["W_out"] + own["b_out"]], 1)
    return EdgeRun(read(1)[:, 0] @ weights.W_U, sources)


@torch.no_grad()
def proved(
    compiled: Compiled, weights: Weights, aligned: Alignment, seed: int = 0
) -> Semisynthetic:
    """The trained model with its shares, on every input beside one other.

    Args:
        compiled: the program.
        weights: of the trained model.
        aligned: the edges of the two.
        seed: of the training, by which other inputs are drawn.

    Raises:
        TrainingError: a share is below its bar, as for `train_semisynthetic`.
    """
    tokens = prompts(compiled, every_input(compiled.program))
    other = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))
    wanted, clean = run_edges(compiled.weights, tokens), run_edges(weights, tokens)
    tolerance = TOLERANCE * float(wanted.logits.abs().max())

    def near(a: Tensor, b: Tensor) -> float:
        return float(((a - b).abs().amax(-1) < tolerance).float().mean())

    def patched(keep: Tensor) -> Tensor:
        return run_edges(weights, tokens, keep, clean.sources[other]).logits

    interchange, unchanged = [], []
    for cut in aligned.units:
        high_keep, low_keep = aligned.without(cut.expand(len(tokens), -1))
        moved = run_edges(compiled.weights, tokens, high_keep, wanted.sources[other])
        found = patched(low_keep)
        interchange.append(near(found, moved.logits))
        unchanged.append(near(found, clean.logits))
    inside, exists = aligned.inside, aligned.low.exists
    idle = (~inside.any(0)).nonzero().flatten()
    without = exists & (torch.arange(aligned.low.sources) != idle[:, None, None])
    kept = torch.cat([inside[None], without]).float()
    strict = [near(patched(keep.expand(len(tokens), -1, -1)), wanted.logits) for keep in kept]
    trained = Semisynthetic(
        weights=weights,
        truth=Circuit(aligned.low, inside, {"truth": "counterparts"}),
        accuracy=near(clean.logits, wanted.logits),
        interchange=min(interchange),
        strictness=min(strict),
        changed=1 - max(unchanged),
    )
    for what, share, bar in (
        ("accuracy", trained.accuracy, BAR),
        ("interchange accuracy", trained.interchange, BAR),
        ("strictness", trained.strictness, BAR),
        ("share of outputs that each part of its circuit changes", trained.changed, CHANGED),
    ):
        if share < bar:
            raise TrainingError(
                f"{aligned.low.model} trained with seed {seed} has no known circuit: its {what} is "
                f"{share:.3f}, below {bar}; choose another seed"
            )
    return trained
