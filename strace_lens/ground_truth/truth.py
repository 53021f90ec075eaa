"""The true edges of a model without norms: from its weights alone, and by ablating each edge.

Three truths nest. W: what the source writes is read by the destination, the product of their
matrices is not zero, and the edge lies on a path from the embedding to the logits. Z: zeroing the
edge alone changes an output. R: putting another input's value there changes an output. A
comparison must use the truth of its own ablation. Single edges do not tell what a set of edges does
together, so the tests ablate all others at once.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.experiment import make_experiment
from strace_lens.circuits.graph import ComponentGraph
from strace_lens.circuits.run_circuits import circuit_logits, circuit_metric
from strace_lens.circuits.task import Task
from strace_lens.ground_truth.weights import Weights
from strace_lens.model.architecture import Model

IS_ZERO = 1e-9
"""Products of compiled matrices are zero to here; those of true edges are 1 and more."""

UNCHANGED = 1e-3
"""Change of an output, over the largest output, to which an edge may be ablated unnoticed.

Softmax is never exactly one-hot: edges that do nothing move a compiled output by up to 6e-6, true
ones by 0.1 and more.
"""


def written_and_read(weights: Weights, graph: ComponentGraph) -> Circuit:
    """W: the edges whose writer's and reader's matrices have a product other than zero.

    A writer is W_E and W_pos together, W_V W_O, or W_out with b_out; a reader W_Q W_K^T, W_K W_Q^T,
    W_V W_O, W_in or W_U. After the rule of Tracr's compiler, which gives every variable directions
    of its own (Lindner et al., 2023, section 3).
    """
    writers, readers = [torch.cat([weights.W_E, weights.W_pos])], []
    for layer in range(graph.layers):
        own = weights.of_layer(layer)
        scores, moved = own["W_Q"] @ own["W_K"].transpose(1, 2), own["W_V"] @ own["W_O"]
        writers += moved
        readers += [*scores, *scores.transpose(1, 2), *moved]
        if graph.mlp:
            writers.append(torch.cat([own["W_out"], own["b_out"][None]]))
            readers.append(own["W_in"])
    keep = torch.zeros_like(graph.exists)
    for destination, reader in enumerate([*readers, weights.W_U]):
        for source in range(graph.written_before(destination)):
            keep[destination, source] = (writers[source] @ reader).abs().amax() > IS_ZERO
    return Circuit(graph, keep, {"truth": "written and read"}).connected()


def changing(
    model: Model, task: Task, candidates: Circuit, ablation: str, *, first: int = 0
) -> Circuit:
    """Those of the candidate edges whose ablation, one at a time, changes an output of the task.

    Args:
        model: the model.
        task: its clean prompts are run, with edges ablated; resample takes from the corrupted ones.
        candidates: edges to ablate; the others are kept.
        ablation: "zero", "resample" or "mean".
        first: first position whose output counts (1 leaves out a BOS).
    """
    experiment = make_experiment(model, task, ablation=ablation)
    clean = experiment.reference.clean[:, first:]
    edges = candidates.kept.nonzero()
    changes = [
        (logits[:, first:] - clean[pairs]).abs().amax((1, 2))
        for logits, pairs in circuit_logits(experiment, _each_ablated(candidates.graph, edges))
    ]
    largest = torch.cat(changes).view(len(edges), len(task)).amax(1)
    return _true(candidates, edges, largest > UNCHANGED * clean.abs().amax(), ablation)


def costly(
    model: Model, task: Task, candidates: Circuit, ablation: str, *, share: float
) -> Circuit:
    """Those of the candidate edges whose ablation, one at a time, costs a share of the metric.

    For a trained model, of which no edge does exactly nothing.

    The parameters `model`, `task`, `candidates` and `ablation` are as for `changing`; the task's
    own metric is measured, as a mean over pairs.

    Args:
        share: of the full model's metric, above which a fall makes an edge a true one.
    """
    experiment = make_experiment(model, task, ablation=ablation)
    full = experiment.score(experiment.reference.clean, experiment.reference).mean()
    edges = candidates.kept.nonzero()
    found = circuit_metric(experiment, _each_ablated(candidates.graph, edges)).mean(1)
    return _true(candidates, edges, full - found > share * full, ablation)


def _each_ablated(
    graph: ComponentGraph, edges: Int[Tensor, "circuit 2"]
) -> Bool[Tensor, "circuit destination source"]:
    """The full circuit without each of the edges, one after another."""
    keep = graph.exists.repeat(len(edges), 1, 1)
    keep[torch.arange(len(edges)), *edges.T] = False
    return keep


def _true(
    candidates: Circuit,
    edges: Int[Tensor, "circuit 2"],
    true: Bool[Tensor, " circuit"],
    ablation: str,
) -> Circuit:
    keep = torch.zeros_like(candidates.graph.exists)
    keep[*edges.T] = true.cpu()
    return Circuit(candidates.graph, keep, {"truth": ablation})
