"""Rankings by a best-first search from the logits, as in s-Trace.

Of all edges into what it has reached, the search takes the most important; by taking an edge, it
reaches all inputs of the edge's source. So circuits of every size are connected to the output.
Scores are places in that order, not effects on the metric: the first edge of E scores 1, the last
1 / E. Importance is computed from the clean run alone (`strace`, `ifr`: one forward pass over the
clean prompts, no gradient) or from the contrast of clean and corrupted prompts (`strace_contrast`).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.circuits.discover.attribution import eap_ig
from strace_lens.circuits.experiment import Experiment
from strace_lens.circuits.graph import ComponentGraph, EdgeValues
from strace_lens.circuits.outputs import source_rows
from strace_lens.model.architecture import device_of

Sizes = Callable[[int], Float[Tensor, "source row pos"]]
"""How much each of the first so many sources adds to their sum."""


def strace(experiment: Experiment, *, seed: int = 0) -> EdgeValues:
    """The ranking of s-Trace applied to components: best-first by L1 norm.

    The importance of an edge is the L1 norm of what its source adds to the stream, divided by the
    sum of the norms of everything that the destination reads, averaged over pairs and positions.
    Source: s-Trace (arXiv 2605.27033), sections "edge importance" and "extraction".
    """
    return best_first(experiment.graph, importance(experiment, norms))


def strace_contrast(experiment: Experiment, *, seed: int = 0, steps: int = 5) -> EdgeValues:
    """The search of s-Trace towards the task's metric: best-first by the effect of each edge.

    A trace explains the whole output of a prompt, a circuit the contrast of clean and corrupted
    prompts. Here the importance of an edge is the magnitude of its effect on the metric, to first
    order along the path from corrupted to clean (`eap_ig`), like the Fisher scores of a trace whose
    target is a logit difference and whose ablated edges are resampled. Passes: as for `eap_ig`.

    Args:
        steps: number of points of the path.
    """
    effects = eap_ig(experiment, steps=steps)
    return best_first(experiment.graph, effects.abs().cpu())


def norms(added: Float[Tensor, "source row pos d_model"]) -> Sizes:
    """L1 norm of what each source adds, whatever it is added to."""
    sizes = torch.linalg.vector_norm(added, ord=1, dim=-1)
    return lambda count: sizes[:count]


def ifr(experiment: Experiment, *, seed: int = 0) -> EdgeValues:
    """Information flow routes: best-first by proximity.

    The importance of an edge is how much its source contributes to the sum that the destination
    reads, max(0, ||sum||_1 - ||sum - source||_1), divided by the total of this over all sources,
    averaged over pairs and token positions. Source: Ferrando and Voita (2024), "Information Flow
    Routes", equations 4 to 6, with components instead of their edges by token.
    """
    return best_first(experiment.graph, importance(experiment, proximities))


def proximities(added: Float[Tensor, "source row pos d_model"]) -> Sizes:
    """How much nearer each source brings the sum of the first so many, in L1, or 0."""

    def sizes(count: int) -> Float[Tensor, "source row pos"]:
        whole = added[:count].sum(0)
        left = [torch.linalg.vector_norm(whole - one, ord=1, dim=-1) for one in added[:count]]
        size = torch.linalg.vector_norm(whole, ord=1, dim=-1)
        return (size - torch.stack(left)).clamp_min(0)

    return sizes


def importance(
    experiment: Experiment, measure: Callable[[Float[Tensor, "source row pos d_model"]], Sizes]
) -> EdgeValues:
    """The share of every source in what a destination reads, the mean over pairs and positions.

    What a destination reads is the sum of its sources: attention's output bias is no part of one.
    The measure is `norms` or `proximities`.
    """
    graph, task, device = experiment.graph, experiment.task, device_of(experiment.model)
    total = torch.zeros(graph.destinations, graph.sources, dtype=torch.float64, device=device)
    written = [graph.written_before(d) for d in range(graph.destinations)]
    lengths = task.lengths.to(device)
    for rows in experiment.chunks(len(task)):
        outputs = experiment.clean[0].rows(rows)
        added = source_rows(experiment.model, experiment.wiring, outputs)
        real = torch.arange(added.shape[2], device=device) < lengths[rows, None]
        sizes_of = measure(added)
        for count in sorted(set(written)):  # destinations that read the same sum, all at once
            sizes = sizes_of(count).double()
            whole = sizes.sum(0)
            share = torch.where(whole > 0, sizes / whole, 0.0) * real
            here = [d for d, n in enumerate(written) if n == count]
            total[here, :count] += share.sum((1, 2))
    return (total / int(task.lengths.sum())).float().cpu()


def best_first(graph: ComponentGraph, importance: EdgeValues) -> EdgeValues:
    """Scores 1 to 1 / E of the E edges in the order in which the search takes them.

    Among equals the edge pushed first is taken first. A destination's edges are pushed in the order
    of its sources, a source's inputs in the order of the graph.
    """
    values = importance.tolist()
    inputs = [graph.feeds[:, s].nonzero()[:, 0].tolist() for s in range(graph.sources)]
    heap: list[tuple[float, int, int, int]] = []
    pushed = 0
    reached = [False] * graph.destinations
    scores = torch.zeros(graph.destinations, graph.sources)
    taken = 0
    new = [graph.destinations - 1]
    while new or heap:
        for destination in new:
            reached[destination] = True
            for source in range(graph.written_before(destination)):
                heapq.heappush(heap, (-values[destination][source], pushed, destination, source))
                pushed += 1
        _, _, destination, source = heapq.heappop(heap)
        scores[destination, source] = 1 - taken / graph.edges
        taken += 1
        new = [d for d in inputs[source] if not reached[d]]
    return scores
