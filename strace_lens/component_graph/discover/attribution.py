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
from strace_lens.component_graph.experiment import Problem
from strace_lens.component_graph.metrics import Reference
from strace_lens.component_graph.outputs import Outputs, output_hooks, outputs_of, source_rows
from strace_lens.component_graph.run_circuits import check_positions
from strace_lens.model.architecture import device_of
from strace_lens.model.forward import Hook

EdgeValues = Float[Tensor, "destination source *pos"]
Differences = Float[Tensor, "source row pos d_model"]


def eap(problem: Problem, *, seed: int = 0, positions: bool = False) -> EdgeValues:
    """Edge attribution patching: gradients at the clean prompt.

    Passes: one forward over what replaces edges (none for zero), one forward and backward.

    Args:
        problem: a task made ready.
        seed: not used; every method takes one.
        positions: score an edge at each token position apart.
    """
    total = _empty(problem, positions)
    for rows in problem.gradient_chunks(len(problem.task)):
        kept: dict[str, list[Tensor]] = {}
        hooks = output_hooks(problem.wiring, kept)
        read = _backward(problem, rows, hooks=hooks, untouched=True)
        clean = outputs_of(problem.wiring, kept)
        _add(problem, total, read, _differences(problem, clean, rows))
    return total / len(problem.task)


def attribution_patching(problem: Problem, *, seed: int = 0) -> EdgeValues:
    """Attribution patching of nodes, each node's score spread over its out-edges.

    To first order a node's effect is the sum of its out-edges' effects. Passes: as `eap`.
    """
    nodes = eap(problem).sum(0)
    return nodes * problem.graph.exists.to(nodes.device)


def eap_ig(
    problem: Problem, *, seed: int = 0, steps: int = 5, positions: bool = False
) -> EdgeValues:
    """EAP with integrated gradients over inputs, at `steps` points from corrupted to clean.

    The k-th of m points is corrupted + k/m (clean - corrupted) embeddings (Hanna et al. 2024,
    equation 3), the last being the clean prompt. Passes: `steps` forward and backward, two forward.

    Raises:
        ValueError: fewer than one step.
    """
    _check_steps(steps)
    total = _empty(problem, positions)
    for rows in problem.gradient_chunks(len(problem.task)):
        clean, corrupted = (run[0].embed[rows] for run in (problem.clean, problem.corrupted))
        differences = _differences(problem, _rows(problem.clean[0], rows), rows)
        for k in range(1, steps + 1):
            point = corrupted + (clean - corrupted) * (k / steps)
            hook = ("blocks.0.hook_resid_pre", _write(point))
            _add(problem, total, _backward(problem, rows, hooks=[hook]), differences)
    return total / (len(problem.task) * steps)


def eap_ig_kl(
    problem: Problem, *, seed: int = 0, steps: int = 5, positions: bool = False
) -> EdgeValues:
    """EAP-IG over inputs of the KL divergence from the clean output, whatever the task's metric.

    At the clean prompt itself that gradient is zero. Where the output is a single number there is
    no divergence, and this is `eap_ig`. Passes: as `eap_ig`.
    """
    objective = dataclasses.replace(problem, metric=objective_of(problem, None))
    # The runs are the same whatever is measured of them.
    for run in ("clean", "corrupted", "replaced"):
        objective.__dict__[run] = getattr(problem, run)
    return eap_ig(objective, seed=seed, steps=steps, positions=positions)


def clean_corrupted(problem: Problem, *, seed: int = 0, positions: bool = False) -> EdgeValues:
    """EAP with the mean of the gradients at the clean and at the corrupted prompt.

    Passes: two forward and backward, two forward (Hanna et al. 2024, appendix).
    """
    total = _empty(problem, positions)
    for rows in problem.gradient_chunks(len(problem.task)):
        differences = _differences(problem, _rows(problem.clean[0], rows), rows)
        for tokens in (problem.task.clean, problem.task.corrupted):
            _add(problem, total, _backward(problem, rows, tokens=tokens), differences)
    return total / (2 * len(problem.task))


def eap_ig_activations(
    problem: Problem, *, seed: int = 0, steps: int = 5, positions: bool = False
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
    total = _empty(problem, positions)
    for rows in problem.gradient_chunks(len(problem.task)):
        differences = _differences(problem, _rows(problem.clean[0], rows), rows)
        for name, sources in _groups(problem):
            change = differences[sources].sum(0)
            for k in range(1, steps + 1):
                hook = (name, _add_to(change * (k / steps - 1)))
                read = _backward(problem, rows, hooks=[hook])
                _add(problem, total, read, differences, sources)
    return total / (len(problem.task) * steps)


def _groups(problem: Problem) -> list[tuple[str, slice]]:
    """Hook points that carry sources into the stream, and the sources of each."""
    graph = problem.graph
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


def _empty(problem: Problem, positions: bool) -> EdgeValues:
    shape = [problem.graph.destinations, problem.graph.sources]
    if positions:
        check_positions(problem.task)
        shape.append(problem.task.clean.shape[1])
    return torch.zeros(shape, device=device_of(problem.model))


def _rows(outputs: Outputs, rows: slice) -> Outputs:
    return outputs.map(lambda x: x[rows])


def _differences(problem: Problem, clean: Outputs, rows: slice) -> Differences:
    """Clean outputs less what replaces them, sources first."""
    change = clean.minus(_rows(problem.replaced, rows))
    return source_rows(problem.model, problem.wiring, change)


def _write(value: Tensor) -> Callable[..., Tensor]:
    return lambda stream, hook: value


def _add_to(value: Tensor) -> Callable[..., Tensor]:
    return lambda stream, hook: stream + value


def _backward(
    problem: Problem,
    rows: slice,
    *,
    tokens: Int[Tensor, "pair pos"] | None = None,
    hooks: Sequence[Hook] = (),
    untouched: bool = False,
) -> ReadGradients:
    """One forward and backward pass over some pairs, over the clean prompts unless told others.

    A run that is `untouched` is itself the clean one, so no other need say what that gives.
    """
    task, device = problem.task, device_of(problem.model)
    answers, wrong = task.answers[rows].to(device), task.wrong[rows].to(device)

    def score(logits: Float[Tensor, "row read vocab"]) -> Float[Tensor, " row"]:
        clean = logits.detach() if untouched else problem.clean[1][rows]
        return problem.score(logits, Reference(clean, problem.corrupted[1][rows], answers, wrong))

    read = read_gradients(
        problem.model,
        problem.wiring,
        (task.clean if tokens is None else tokens)[rows],
        task.lengths[rows],
        score,
        hooks=hooks,
        every_position=task.every_position,
    )
    problem.passes.forward_rows += len(answers)
    problem.passes.backward_rows += len(answers)
    return read


def _add(
    problem: Problem,
    total: EdgeValues,
    read: ReadGradients,
    differences: Differences,
    sources: slice | None = None,
) -> None:
    """Add (differences . gradients) of every edge, or of the edges out of some sources."""
    exists = problem.graph.exists.to(total)
    for destinations, gradient in destination_gradients(problem.model, problem.wiring, read):
        written = problem.graph.written_before(destinations.stop - 1)
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
