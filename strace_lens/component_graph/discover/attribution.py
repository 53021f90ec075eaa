"""Attribution patching: every edge's effect to first order, from gradients at the destinations.

Score of an edge (d, s) = sum over positions of (output of s - its replacement) . gradient at d, the
mean over pairs: the metric lost, to first order, when the edge is ablated. Positive helps.

Sources: Nanda (2023), "Attribution Patching"; Syed, Rager and Conmy (2023), "Attribution Patching
Outperforms Automated Circuit Discovery" (EAP); Hanna, Pezzelle and Belinkov (2024), "Have Faith in
Faithfulness" (EAP-IG, over inputs and over activations; clean-corrupted; the KL objective).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strace_lens.component_graph.discover.gradients import (
    ReadGradients,
    destination_gradients,
    read_gradients,
)
from strace_lens.component_graph.discover.objective import objective_of
from strace_lens.component_graph.experiment import Experiment
from strace_lens.component_graph.metrics import Reference
from strace_lens.component_graph.outputs import Outputs, output_hooks, outputs_of, source_rows
from strace_lens.component_graph.run_circuits import check_positions
from strace_lens.model.architecture import device_of
from strace_lens.model.forward import Hook

EdgeValues = Float[Tensor, "destination source *pos"]
Differences = Float[Tensor, "source row pos d_model"]


def eap(experiment: Experiment, *, seed: int = 0, positions: bool = False) -> EdgeValues:
    """Edge attribution patching: gradients at the clean prompt.

    Passes: one forward over what replaces edges (none for zero), one forward and backward.

    Args:
        experiment: from `make_experiment`.
        seed: not used; every method takes one.
        positions: score an edge at each token position apart.
    """
    total = _empty(experiment, positions)
    for rows in experiment.gradient_chunks(len(experiment.task)):
        kept: dict[str, list[Tensor]] = {}
        hooks = output_hooks(experiment.wiring, kept)
        read = _backward(experiment, rows, hooks=hooks, untouched=True)
        clean = outputs_of(experiment.wiring, kept)
        _add(experiment, total, read, _differences(experiment, clean, rows))
    return total / len(experiment.task)


def attribution_patching(experiment: Experiment, *, seed: int = 0) -> EdgeValues:
    """Attribution patching of nodes, each node's score spread over its out-edges.

    To first order a node's effect is the sum of its out-edges' effects. Passes: as `eap`.
    """
    nodes = eap(experiment).sum(0)
    return nodes * experiment.graph.exists.to(nodes.device)


def eap_ig(
    experiment: Experiment, *, seed: int = 0, steps: int = 5, positions: bool = False
) -> EdgeValues:
    """EAP with integrated gradients over inputs, at `steps` points from corrupted to clean.

    The k-th of m points is corrupted + k/m (clean - corrupted) embeddings (Hanna et al. 2024,
    equation 3), the last being the clean prompt. Passes: `steps` forward and backward, two forward.

    Raises:
        ValueError: fewer than one step.
    """
    _check_steps(steps)
    total = _empty(experiment, positions)
    for rows in experiment.gradient_chunks(len(experiment.task)):
        clean, corrupted = (run[0].embed[rows] for run in (experiment.clean, experiment.corrupted))
        differences = _differences(experiment, _rows(experiment.clean[0], rows), rows)
        for k in range(1, steps + 1):
            point = corrupted + (clean - corrupted) * (k / steps)
            hook = ("blocks.0.hook_resid_pre", _write(point))
            _add(experiment, total, _backward(experiment, rows, hooks=[hook]), differences)
    return total / (len(experiment.task) * steps)


def eap_ig_kl(
    experiment: Experiment, *, seed: int = 0, steps: int = 5, positions: bool = False
) -> EdgeValues:
    """EAP-IG over inputs of the KL divergence from the clean output, whatever the task's metric.

    At the clean prompt itself that gradient is zero. Where the output is a single number there is
    no divergence, and this is `eap_ig`. Passes: as `eap_ig`.
    """
    objective = dataclasses.replace(experiment, metric=objective_of(experiment, None))
    # The runs are the same whatever is measured of them.
    for run in ("clean", "corrupted", "replaced"):
        objective.__dict__[run] = getattr(experiment, run)
    return eap_ig(objective, seed=seed, steps=steps, positions=positions)


def clean_corrupted(
    experiment: Experiment, *, seed: int = 0, positions: bool = False
) -> EdgeValues:
    """EAP with the mean of the gradients at the clean and at the corrupted prompt.

    Passes: two forward and backward, two forward (Hanna et al. 2024, appendix).
    """
    total = _empty(experiment, positions)
    for rows in experiment.gradient_chunks(len(experiment.task)):
        differences = _differences(experiment, _rows(experiment.clean[0], rows), rows)
        for tokens in (experiment.task.clean, experiment.task.corrupted):
            _add(experiment, total, _backward(experiment, rows, tokens=tokens), differences)
    return total / (2 * len(experiment.task))


def eap_ig_activations(
    experiment: Experiment, *, seed: int = 0, steps: int = 5, positions: bool = False
) -> EdgeValues:
    """EAP with integrated gradients over activations: each layer's outputs interpolated in turn.

    The embedding, the heads of a layer together, or an MLP goes from its replacement to its clean
    output in `steps` points, all else untouched; the gradients score the out-edges of just those
    (Hanna et al. 2024, appendix). Passes: `steps` x (1 + 2 x layers) forward and backward, two
    forward: for small models.

    Raises:
        ValueError: fewer than one step.
    """
    _check_steps(steps)
    total = _empty(experiment, positions)
    for rows in experiment.gradient_chunks(len(experiment.task)):
        differences = _differences(experiment, _rows(experiment.clean[0], rows), rows)
        for name, sources in _groups(experiment):
            change = differences[sources].sum(0)
            for k in range(1, steps + 1):
                hook = (name, _add_to(change * (k / steps - 1)))
                read = _backward(experiment, rows, hooks=[hook])
                _add(experiment, total, read, differences, sources)
    return total / (len(experiment.task) * steps)


def _groups(experiment: Experiment) -> list[tuple[str, slice]]:
    """Hook points that carry sources into the stream, and the sources of each."""
    graph = experiment.graph
    groups = [("blocks.0.hook_resid_pre", slice(0, 1))]
    for layer in range(graph.layers):
        first = 1 + layer * graph.sources_per_layer
        heads = slice(first, first + graph.heads)
        groups.append((f"blocks.{layer}.hook_attn_out", heads))
        if graph.mlp:
            groups.append((f"blocks.{layer}.hook_mlp_out", slice(heads.stop, heads.stop + 1)))
    return groups


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}")


def _empty(experiment: Experiment, positions: bool) -> EdgeValues:
    shape = [experiment.graph.destinations, experiment.graph.sources]
    if positions:
        check_positions(experiment.task)
        shape.append(experiment.task.clean.shape[1])
    return torch.zeros(shape, device=device_of(experiment.model))


def _rows(outputs: Outputs, rows: slice) -> Outputs:
    return outputs.map(lambda x: x[rows])


def _differences(experiment: Experiment, clean: Outputs, rows: slice) -> Differences:
    """Clean outputs less what replaces them, sources first."""
    change = clean.minus(_rows(experiment.replaced, rows))
    return source_rows(experiment.model, experiment.wiring, change)


def _write(value: Tensor) -> Callable[..., Tensor]:
    return lambda stream, hook: value


def _add_to(value: Tensor) -> Callable[..., Tensor]:
    return lambda stream, hook: stream + value


def _backward(
    experiment: Experiment,
    rows: slice,
    *,
    tokens: Int[Tensor, "pair pos"] | None = None,
    hooks: Sequence[Hook] = (),
    untouched: bool = False,
) -> ReadGradients:
    """One forward and backward pass over some pairs, over the clean prompts unless told others.

    A run that is `untouched` is itself the clean one, so no other need say what that gives.
    """
    task, device = experiment.task, device_of(experiment.model)
    answers, wrong = task.answers[rows].to(device), task.incorrect[rows].to(device)

    def score(logits: Float[Tensor, "row read vocab"]) -> Float[Tensor, " row"]:
        clean = logits.detach() if untouched else experiment.clean[1][rows]
        return experiment.score(
            logits, Reference(clean, experiment.corrupted[1][rows], answers, wrong)
        )

    read = read_gradients(
        experiment.model,
        experiment.wiring,
        (task.clean if tokens is None else tokens)[rows],
        task.lengths[rows],
        score,
        hooks=hooks,
        every_position=task.every_position,
    )
    experiment.passes.forward_rows += len(answers)
    experiment.passes.backward_rows += len(answers)
    return read


def _add(
    experiment: Experiment,
    total: EdgeValues,
    read: ReadGradients,
    differences: Differences,
    sources: slice | None = None,
) -> None:
    """Add (differences . gradients) of every edge, or of the edges out of some sources."""
    exists = experiment.graph.exists.to(total)
    for destinations, gradient in destination_gradients(experiment.model, experiment.wiring, read):
        written = experiment.graph.written_before(destinations.stop - 1)
        which = slice(0, written)
        if sources is not None:
            which = slice(sources.start, min(sources.stop, written))
        if which.start >= which.stop:
            continue
        edges = exists[destinations, which]  # a block's heads come too late for its own q, k and v
        if total.ndim == 2:
            found = gradient.flatten(1) @ differences[which].flatten(1).T
        else:
            by_position = (x.permute(2, 0, 1, 3).flatten(2) for x in (gradient, differences[which]))
            left, right = by_position
            found, edges = (left @ right.transpose(1, 2)).permute(1, 2, 0), edges[..., None]
        total[destinations, which] += found * edges
