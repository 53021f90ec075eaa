"""Attribution patching: every edge's effect to first order, from gradients at the destinations.

Score of an edge (d, s) = sum over positions of (output of s - its replacement) . gradient at d, the
mean over pairs: the metric lost, to first order, when the edge is ablated. Positive helps.

Sources: Nanda (2023), "Attribution Patching"; Syed, Rager and Conmy (2023), "Attribution Patching
Outperforms Automated Circuit Discovery" (EAP); Hanna, Pezzelle and Belinkov (2024), "Have Faith in
Faithfulness" (EAP-IG, over inputs and over activations; clean-corrupted; the KL objective);
Zhang et al. (2025), "EAP-GP: Mitigating Saturation Effect in Gradient-based Automated Circuit
Identification" (GradPath).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strace_lens.circuits.discover.gradients import (
    Values,
    destination_gradients,
    read_gradients,
)
from strace_lens.circuits.experiment import Experiment, objective_of
from strace_lens.circuits.graph import EdgeValues
from strace_lens.circuits.metrics import METRICS, Metric, Reference
from strace_lens.circuits.outputs import (
    Outputs,
    output_hooks,
    outputs_of,
    read_logits,
    source_rows,
)
from strace_lens.circuits.run_circuits import check_positions
from strace_lens.model.architecture import device_of
from strace_lens.model.forward import Hook
from strace_lens.model.hold import fixed_weights

Differences = Float[Tensor, "source row pos d_model"]

_EMBED = "blocks.0.hook_resid_pre"


def eap(experiment: Experiment, *, seed: int = 0, positions: bool = False) -> EdgeValues:
    """Edge attribution patching: gradients at the clean prompt.

    Passes: one forward for the values that replace edges (none for zero), one forward and backward.

    Args:
        positions: score an edge at each token position separately.
    """
    total = empty_scores(experiment, positions)
    for rows in experiment.gradient_chunks(len(experiment.task)):
        kept: Values = {}
        hooks = output_hooks(experiment.wiring, kept)
        read = run_backward(experiment, rows, hooks=hooks, untouched=True)
        clean = outputs_of(experiment.wiring, kept)
        add_products(experiment, rows, total, read, differences_of(experiment, clean, rows))
    return total / len(experiment.task)


def attribution_patching(experiment: Experiment, *, seed: int = 0) -> EdgeValues:
    """Attribution patching of nodes, each node's score spread over its out-edges.

    To first order a node's effect is the sum of its out-edges' effects. Passes: as for `eap`.
    """
    nodes = eap(experiment).sum(0)
    return nodes * experiment.graph.exists.to(nodes.device)


def eap_ig(
    experiment: Experiment, *, seed: int = 0, steps: int = 5, positions: bool = False
) -> EdgeValues:
    """EAP with integrated gradients over inputs, at `steps` points from corrupted to clean.

    The k-th of m points is corrupted + k/m (clean - corrupted) embeddings (Hanna et al. 2024,
    equation 3); the last is the clean prompt. Passes: `steps` forward and backward, two forward.

    Raises:
        ValueError: fewer than one step.
    """
    return _integrated(experiment, experiment.score, steps, positions)


def _integrated(experiment: Experiment, metric: Metric, steps: int, positions: bool) -> EdgeValues:
    points, total = _points(steps), empty_scores(experiment, positions)
    for rows in experiment.gradient_chunks(len(experiment.task)):
        clean, corrupted = (run[0].embed[rows] for run in (experiment.clean, experiment.corrupted))
        differences = differences_of(experiment, experiment.clean[0].rows(rows), rows)
        for point in points:
            hook = (_EMBED, write(corrupted + (clean - corrupted) * point))
            read = run_backward(experiment, rows, metric, hooks=[hook])
            add_products(experiment, rows, total, read, differences)
    return total / (len(experiment.task) * steps)


def eap_ig_kl(
    experiment: Experiment, *, seed: int = 0, steps: int = 5, positions: bool = False
) -> EdgeValues:
    """EAP-IG over inputs for the KL divergence from the clean output, whatever the task's metric.

    At the clean prompt itself that gradient is zero. If the output is a single number, there is no
    divergence, and this is `eap_ig`. Passes: as for `eap_ig`.
    """
    return _integrated(experiment, METRICS[objective_of(experiment, None)], steps, positions)


def eap_gp(
    experiment: Experiment,
    *,
    seed: int = 0,
    steps: int = 5,
    step_length: float = 1.0,
    positions: bool = False,
) -> EdgeValues:
    """EAP with integrated gradients over inputs, along the path of steepest approach (EAP-GP).

    From the clean embeddings, each of `steps` steps descends the gradient of the squared distance
    between the logits and those of the corrupted prompt, so that the path leaves regions in which
    the output hardly changes; gradients are averaged over its points (Zhang et al. 2025). Passes:
    2 `steps` forward and backward, two forward.

    Args:
        step_length: norm of a step over all tokens of a prompt, in units of the embedding; the
            published value is 1.

    Raises:
        ValueError: fewer than one step, or a length that is not positive.
    """
    _points(steps)
    if not 0 < step_length < math.inf:
        raise ValueError(f"step_length must be a positive number; got {step_length}")
    total = empty_scores(experiment, positions)
    for rows in experiment.gradient_chunks(len(experiment.task)):
        differences = differences_of(experiment, experiment.clean[0].rows(rows), rows)
        point = experiment.clean[0].embed[rows]
        for _ in range(steps):
            downhill = -_distance_gradient(experiment, rows, point)
            norm = downhill.flatten(1).norm(dim=1)[:, None, None]
            point = point + step_length * downhill / norm.clamp_min(torch.finfo(norm.dtype).tiny)
            read = run_backward(experiment, rows, hooks=[(_EMBED, write(point))])
            add_products(experiment, rows, total, read, differences)
    return total / (len(experiment.task) * steps)


def _distance_gradient(
    experiment: Experiment, rows: slice, embed: Float[Tensor, "row pos d_model"]
) -> Float[Tensor, "row pos d_model"]:
    """How the squared distance to the corrupted prompt's logits changes with the embeddings."""
    task = experiment.task
    with fixed_weights(experiment.model), torch.enable_grad():
        leaf = embed.detach().requires_grad_()
        logits = read_logits(
            experiment.model,
            experiment.wiring.architecture,
            task.clean[rows],
            task.lengths[rows],
            [(_EMBED, write(leaf))],
            every_position=task.every_position,
            gradient=True,
        )
        gap = (logits - experiment.corrupted[1][rows]).square().sum()
        (gradient,) = torch.autograd.grad(gap, [leaf])
    experiment.passes.forward_rows += len(embed)
    experiment.passes.backward_rows += len(embed)
    return gradient


def clean_corrupted(
    experiment: Experiment, *, seed: int = 0, positions: bool = False
) -> EdgeValues:
    """EAP with the mean of the gradients at the clean and at the corrupted prompt.

    Passes: two forward and backward, two forward (Hanna et al. 2024, appendix).
    """
    total = empty_scores(experiment, positions)
    for rows in experiment.gradient_chunks(len(experiment.task)):
        differences = differences_of(experiment, experiment.clean[0].rows(rows), rows)
        for tokens in (experiment.task.clean, experiment.task.corrupted):
            add_products(
                experiment, rows, total, run_backward(experiment, rows, tokens=tokens), differences
            )
    return total / (2 * len(experiment.task))


def eap_ig_activations(
    experiment: Experiment, *, seed: int = 0, steps: int = 5, positions: bool = False
) -> EdgeValues:
    """EAP with integrated gradients over activations, interpolating one layer's outputs at a time.

    The embedding, the heads of a layer together, or an MLP goes from its replacement to its clean
    output in `steps` points, with everything else unchanged; the gradients score only its out-edges
    (Hanna et al. 2024, appendix). Passes: `steps` x (1 + 2 x layers) forward and backward, two
    forward, which suits small models.

    Raises:
        ValueError: fewer than one step.
    """
    points, total = _points(steps), empty_scores(experiment, positions)
    for rows in experiment.gradient_chunks(len(experiment.task)):
        differences = differences_of(experiment, experiment.clean[0].rows(rows), rows)
        for name, sources in _groups(experiment):
            change = differences[sources].sum(0)
            for point in points:
                hook = (name, _add_to(change * (point - 1)))
                read = run_backward(experiment, rows, hooks=[hook])
                add_products(experiment, rows, total, read, differences, sources)
    return total / (len(experiment.task) * steps)


def _groups(experiment: Experiment) -> list[tuple[str, slice]]:
    """Hook points that carry sources into the stream, and the sources of each."""
    graph = experiment.graph
    groups = [(_EMBED, slice(0, 1))]
    for layer in range(graph.layers):
        heads = graph.heads_of(layer)
        groups.append((f"blocks.{layer}.hook_attn_out", heads))
        if graph.mlp:
            groups.append((f"blocks.{layer}.hook_mlp_out", slice(heads.stop, heads.stop + 1)))
    return groups


def _points(steps: int) -> list[float]:
    """So many shares of the way from corrupted to clean, the last one 1."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}")
    return [k / steps for k in range(1, steps + 1)]


def empty_scores(experiment: Experiment, positions: bool) -> EdgeValues:
    """A zero for every edge, or with `positions` for every edge at each token position."""
    shape = [experiment.graph.destinations, experiment.graph.sources]
    if positions:
        check_positions(experiment.task)
        shape.append(experiment.task.positions)
    return torch.zeros(shape, device=device_of(experiment.model))


def differences_of(experiment: Experiment, clean: Outputs, rows: slice) -> Differences:
    """Clean outputs less what replaces them, sources first."""
    change = clean.map(torch.sub, experiment.replaced.rows(rows))
    return source_rows(experiment.model, experiment.wiring, change)


def write(value: Tensor) -> Callable[..., Tensor]:
    """A hook that puts a value in the place of what a run has there."""
    return lambda own, hook: value


def _add_to(value: Tensor) -> Callable[..., Tensor]:
    return lambda stream, hook: stream + value


def run_backward(
    experiment: Experiment,
    rows: slice,
    metric: Metric | None = None,
    *,
    tokens: Int[Tensor, "pair pos"] | None = None,
    hooks: Sequence[Hook] = (),
    untouched: bool = False,
    written: Values | None = None,
) -> tuple[Values, Values]:
    """One forward and backward pass over some pairs, on the clean prompts and the task's metric.

    Where it is `untouched`, the hooks change nothing, and this run is itself the clean one. What
    hooks have `written`, see `read_gradients`.
    """
    metric = experiment.score if metric is None else metric
    task, device = experiment.task, device_of(experiment.model)
    answers, wrong = task.answers[rows].to(device), task.incorrect[rows].to(device)

    def score(logits: Float[Tensor, "row read vocab"]) -> Float[Tensor, " row"]:
        clean = logits.detach() if untouched else experiment.clean[1][rows]
        return metric(logits, Reference(clean, experiment.corrupted[1][rows], answers, wrong))

    read = read_gradients(
        experiment.model,
        experiment.wiring,
        (task.clean if tokens is None else tokens)[rows],
        task.lengths[rows],
        score,
        hooks=hooks,
        every_position=task.every_position,
        written=written,
    )
    experiment.passes.forward_rows += len(answers)
    experiment.passes.backward_rows += len(answers)
    return read


def add_products(
    experiment: Experiment,
    rows: slice,
    total: EdgeValues,
    read: tuple[Values, Values],
    differences: Differences,
    sources: slice | None = None,
    *,
    fixed_scales: bool = False,
) -> None:
    """Add (differences . gradients) of every edge, or of the edges out of some sources."""
    exists, spans = experiment.graph.exists.to(total), experiment.task.spans
    for destinations, gradient in destination_gradients(
        experiment.model, experiment.wiring, *read, fixed_scales=fixed_scales
    ):
        written = experiment.graph.written_before(destinations.stop - 1)
        which = slice(0, written)
        if sources is not None:
            which = slice(sources.start, min(sources.stop, written))
        if which.start >= which.stop:
            continue
        edges = exists[destinations, which]  # a block's heads come too late for its own q, k and v
        change = differences[which]
        if total.ndim == 2:
            found = _products(gradient, change)
        elif spans is None:
            left, right = (x.permute(2, 0, 1, 3).flatten(2) for x in (gradient, change))
            found = (left @ right.transpose(1, 2)).permute(1, 2, 0)
        else:
            inside = torch.nn.functional.one_hot(spans[rows], total.shape[2]).to(gradient)
            parts = [_products(gradient * own[..., None], change) for own in inside.unbind(-1)]
            found = torch.stack(parts, -1)
        edges = edges if total.ndim == 2 else edges[..., None]
        total[destinations, which] += found * edges


def _products(
    gradient: Float[Tensor, "destination row pos d_model"],
    change: Float[Tensor, "source row pos d_model"],
) -> Float[Tensor, "destination source"]:
    """Products of gradients and changes, summed over rows and token positions."""
    return gradient.flatten(1) @ change.flatten(1).T
