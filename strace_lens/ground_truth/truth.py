"""The true edges of a model without norms: from its weights alone, and by ablating each edge.

Three truths nest. W: what the source writes is read by the destination, the product of their
matrices is not zero, and the edge lies on a path from the embedding to the logits. Z: zeroing the
edge alone changes an output. R: putting another input's value there changes an output. A
comparison must use the truth of its own ablation. Single edges do not tell what a set of edges does
together, so the tests ablate all others at once.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.circuits.circuit import Circuit, full_circuit
from strace_lens.circuits.experiment import make_experiment
from strace_lens.circuits.patching import patched_logits
from strace_lens.circuits.run_circuits import run_circuits
from strace_lens.circuits.task import Task
from strace_lens.circuits.wiring import component_graph
from strace_lens.ground_truth.weights import Weights, weights_of
from strace_lens.model.architecture import Model

IS_ZERO = 1e-9
"""Products of compiled matrices are zero to here; those of true edges are 1 and more."""

UNCHANGED = 1e-3
"""Change of an output, over the largest output, to which an edge may be ablated unnoticed.

Softmax is never exactly one-hot: edges that do nothing move a compiled output by up to 6e-6, true
ones by 0.1 and more.
"""


def written_and_read(model: Model) -> Circuit:
    """W: the edges whose writer's and reader's matrices have a product other than zero.

    A writer is W_E and W_pos together, W_V W_O, or W_out with b_out; a reader W_Q W_K^T, W_K W_Q^T,
    W_V W_O, W_in or W_U. After the rule of Tracr's compiler, which gives every variable directions
    of its own (Lindner et al., 2023, section 3).

    Raises:
        ValueError: the model has norms, other positions or grouped heads.
    """
    graph = component_graph(model)
    weights = weights_of(model)
    writers = _writers(weights)
    keep = torch.zeros_like(graph.exists)
    for destination, reader in enumerate(_readers(weights)):
        for source in range(graph.written_before(destination)):
            keep[destination, source] = (writers[source] @ reader).abs().amax() > IS_ZERO
    return Circuit(graph, keep, {"truth": "written and read"}).connected()


def changing(
    model: Model,
    task: Task,
    candidates: Circuit,
    ablation: str,
    *,
    first: int = 0,
) -> Circuit:
    """Those of the candidate edges whose ablation, one at a time, changes an output of the task.

    Args:
        model: the model.
        task: its clean prompts are run, with edges ablated; resample takes from the corrupted ones.
        candidates: edges to ablate; the others are kept.
        ablation: "zero", "resample" or "mean".
        first: first position whose output counts (1 leaves out a BOS).
    """
    keep = largest_changes(model, task, candidates, ablation, first=first) > UNCHANGED
    return Circuit(candidates.graph, keep, {"truth": ablation, "unchanged": UNCHANGED})


def largest_changes(
    model: Model, task: Task, candidates: Circuit, ablation: str, *, first: int = 0
) -> Float[Tensor, "destination source"]:
    """Largest change of any output when one edge is ablated, over the largest clean output.

    Zero for what is no candidate. The arguments are those of `changing`.
    """
    experiment = make_experiment(model, task, ablation=ablation)
    edges = candidates.kept.cpu().nonzero()
    clean = experiment.reference.clean
    change = clean.new_zeros(len(edges))
    for rows in experiment.chunks(len(edges) * len(task)):
        index = torch.arange(rows.start, rows.stop)
        edge, pair = index // len(task), index % len(task)
        cut = clean.new_zeros(len(index), *experiment.graph.exists.shape)
        cut[torch.arange(len(index)), edges[edge, 0], edges[edge, 1]] = 1
        logits = patched_logits(
            model,
            experiment.wiring,
            task.clean[pair],
            task.lengths[pair],
            cut,
            experiment.replaced.rows(pair.to(clean.device)),
            every_position=task.every_position,
        )
        gap = (logits - clean[pair])[:, first:].abs().amax((1, 2))
        change.scatter_reduce_(0, edge.to(clean.device), gap, "amax")
    changes = torch.zeros(experiment.graph.exists.shape)
    changes[edges[:, 0], edges[:, 1]] = (change / clean[:, first:].abs().amax()).float().cpu()
    return changes


def costly(
    model: Model, task: Task, candidates: Circuit, ablation: str, *, share: float
) -> Circuit:
    """Those of the candidate edges whose ablation, one at a time, costs a share of the metric.

    For a trained model, of which no edge does exactly nothing.

    Args:
        model: the model.
        task: its clean prompts are run; its own metric is measured, as a mean over pairs.
        candidates: edges to ablate; the others are kept.
        ablation: "zero", "resample" or "mean".
        share: of the full model's metric, above which a fall makes an edge a true one.
    """
    graph = candidates.graph
    full = full_circuit(graph)
    edges = candidates.kept.cpu().nonzero().tolist()
    circuits = [full]
    for destination, source in edges:
        keep = full.keep.clone()
        keep[destination, source] = False
        circuits.append(Circuit(graph, keep))
    found = run_circuits(model, task, circuits, ablation=ablation).mean(1)
    keep = torch.zeros_like(graph.exists)
    for (destination, source), metric in zip(edges, found[1:].tolist(), strict=True):
        keep[destination, source] = found[0] - metric > share * found[0]
    return Circuit(graph, keep, {"truth": ablation, "share": share})


def _writers(weights: Weights) -> list[Float[Tensor, "_ d_model"]]:
    """The matrix whose rows span what each source can write, in the graph's order."""
    writers = [torch.cat([weights.W_E, weights.W_pos])]
    for layer in range(len(weights.W_Q)):
        writers += list(weights.W_V[layer] @ weights.W_O[layer])
        if weights.mlps is not None:
            writers.append(torch.cat([weights.mlps.W_out[layer], weights.mlps.b_out[layer, None]]))
    return writers


def _readers(weights: Weights) -> list[Float[Tensor, "d_model _"]]:
    """The matrix through which each destination reads the stream, in the graph's order."""
    readers: list[Tensor] = []
    for layer in range(len(weights.W_Q)):
        scores = weights.W_Q[layer] @ weights.W_K[layer].transpose(1, 2)
        readers += [*scores, *scores.transpose(1, 2), *(weights.W_V[layer] @ weights.W_O[layer])]
        if weights.mlps is not None:
            readers.append(weights.mlps.W_in[layer])
    return [*readers, weights.W_U]
