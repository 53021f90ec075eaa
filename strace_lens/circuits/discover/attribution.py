"""Attribution patching: every edge's effect to first order, from gradients at the destinations.

Score of an edge (d, s) = sum over positions of (output of s - its replacement) . gradient at d, the
mean over pairs: the metric lost, to first order, when the edge is ablated. Positive helps.

Sources: Nanda (2023), "Attribution Patching"; Syed, Rager and Conmy (2023), "Attribution Patching
Outperforms Automated Circuit Discovery" (EAP); Hanna, Pezzelle and Belinkov (2024), "Have Faith in
Faithfulness" (EAP-IG, over inputs and over activations; clean-corrupted; the KL objective).

A gradient at q, k or v is pulled back by hand through the head's weights and the block's norm to
the stream that the head reads, and a gradient at an MLP's input through its norm. So no split
inputs are needed, and the model keeps its narrow activations only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

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
from strace_lens.circuits.wiring import (
    INPUTS,
    Wiring,
    input_projection,
    keep_hooks,
    mlp_input_hooks,
    read_points,
    stream_point,
    stream_points,
)
from strace_lens.model.architecture import Model, UnsupportedModelError, device_of
from strace_lens.model.forward import Hook
from strace_lens.model.hold import fixed_weights
from strace_lens.model.norms import Norm

Differences = Float[Tensor, "source row pos d_model"]


AT_ONCE = 64
"""Destinations in one product with all differences, which fewer would read more often."""


Values = dict[str, Tensor]
"""What hook points carry, or its gradients, by name."""


def eap(experiment: Experiment, *, seed: int = 0, positions: bool = False) -> EdgeValues:
    """Edge attribution patching: gradients at the clean prompt.

    Passes: one forward over what replaces edges (none for zero), one forward and backward.

    Args:
        positions: score an edge at each token position apart.
    """
    total = empty_scores(experiment, positions)
    for rows in experiment.gradient_chunks(len(experiment.task)):
        kept: Values = {}
        hooks = output_hooks(experiment.wiring, kept)
        read = run_backward(experiment, rows, hooks=hooks, untouched=True)
        clean = outputs_of(experiment.wiring, kept)
        add_products(experiment, total, read, differences_of(experiment, clean, rows))
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
    return _integrated(experiment, experiment.score, steps, positions)


def _integrated(experiment: Experiment, metric: Metric, steps: int, positions: bool) -> EdgeValues:
    points, total = _points(steps), empty_scores(experiment, positions)
    for rows in experiment.gradient_chunks(len(experiment.task)):
        clean, corrupted = (run[0].embed[rows] for run in (experiment.clean, experiment.corrupted))
        differences = differences_of(experiment, experiment.clean[0].rows(rows), rows)
        for point in points:
            hook = ("blocks.0.hook_resid_pre", _write(corrupted + (clean - corrupted) * point))
            read = run_backward(experiment, rows, metric, hooks=[hook])
            add_products(experiment, total, read, differences)
    return total / (len(experiment.task) * steps)


def eap_ig_kl(
    experiment: Experiment, *, seed: int = 0, steps: int = 5, positions: bool = False
) -> EdgeValues:
    """EAP-IG over inputs of the KL divergence from the clean output, whatever the task's metric.

    At the clean prompt itself that gradient is zero. Where the output is a single number there is
    no divergence, and this is `eap_ig`. Passes: as `eap_ig`.
    """
    return _integrated(experiment, METRICS[objective_of(experiment, None)], steps, positions)


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
                experiment, total, run_backward(experiment, rows, tokens=tokens), differences
            )
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
    points, total = _points(steps), empty_scores(experiment, positions)
    for rows in experiment.gradient_chunks(len(experiment.task)):
        differences = differences_of(experiment, experiment.clean[0].rows(rows), rows)
        for name, sources in _groups(experiment):
            change = differences[sources].sum(0)
            for point in points:
                hook = (name, _add_to(change * (point - 1)))
                read = run_backward(experiment, rows, hooks=[hook])
                add_products(experiment, total, read, differences, sources)
    return total / (len(experiment.task) * steps)


def _groups(experiment: Experiment) -> list[tuple[str, slice]]:
    """Hook points that carry sources into the stream, and the sources of each."""
    graph = experiment.graph
    groups = [("blocks.0.hook_resid_pre", slice(0, 1))]
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
        shape.append(experiment.task.clean.shape[1])
    return torch.zeros(shape, device=device_of(experiment.model))


def differences_of(experiment: Experiment, clean: Outputs, rows: slice) -> Differences:
    """Clean outputs less what replaces them, sources first."""
    change = clean.map(torch.sub, experiment.replaced.rows(rows))
    return source_rows(experiment.model, experiment.wiring, change)


def _write(value: Tensor) -> Callable[..., Tensor]:
    return lambda stream, hook: value


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
    total: EdgeValues,
    read: tuple[Values, Values],
    differences: Differences,
    sources: slice | None = None,
    *,
    fixed_scales: bool = False,
) -> None:
    """Add (differences . gradients) of every edge, or of the edges out of some sources."""
    exists = experiment.graph.exists.to(total)
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
        if total.ndim == 2:
            found = gradient.flatten(1) @ differences[which].flatten(1).T
        else:
            by_position = (x.permute(2, 0, 1, 3).flatten(2) for x in (gradient, differences[which]))
            left, right = by_position
            found, edges = (left @ right.transpose(1, 2)).permute(1, 2, 0), edges[..., None]
        total[destinations, which] += found * edges


# ------------------------------------------------------------------ gradients at destinations


def read_gradients(
    model: Model,
    wiring: Wiring,
    tokens: Int[Tensor, "row pos"],
    lengths: Int[Tensor, " row"],
    score: Callable[[Float[Tensor, "row read vocab"]], Float[Tensor, " row"]],
    *,
    hooks: Sequence[Hook] = (),
    every_position: bool = False,
    written: Values | None = None,
) -> tuple[Values, Values]:
    """Run rows forward and backward.

    Args:
        model: its weights are asked for no gradient.
        wiring: of the same model.
        tokens, lengths: rows, padded on the right.
        score: the metric of each row, differentiated as a sum.
        hooks: run before ours, as one that interpolates the embedding.
        every_position: unembed every position.
        written: filled by `hooks` with tensors that ask for gradients and that they write, by hook
            point; each must have reached the score.

    Returns:
        The streams that heads and MLPs read, and the gradients at every point where one reads.

    Raises:
        UnsupportedModelError: the weights are quantised, or what a hook wrote was not used.
        FloatingPointError: a logit or a gradient is NaN or infinite.
    """
    streams: Values = {}
    leaves: Values = {}

    def leaf(name: str) -> Callable[..., Tensor]:
        def hook(value: Tensor, hook: Any) -> Tensor:
            # A hook may be handed a view that is not on the path: what it returns is.
            leaves[name] = value.view_as(value)
            return leaves[name]

        return hook

    def root(value: Tensor, hook: Any) -> Tensor:
        return value.detach().requires_grad_()

    own: list[Hook] = [*hooks, ("blocks.0.hook_resid_pre", root)]
    own += keep_hooks(stream_points(wiring), streams)
    own += [(name, leaf(name)) for name in [*read_points(wiring), _output_point(wiring)]]
    with fixed_weights(model), mlp_input_hooks(model, wiring), torch.enable_grad():
        logits = read_logits(
            model,
            wiring.architecture,
            tokens,
            lengths,
            own,
            every_position=every_position,
            gradient=True,
        )
        asked = {**leaves, **(written or {})}
        found = torch.autograd.grad(score(logits).sum(), list(asked.values()), allow_unused=True)
    gradients = dict(zip(asked, found, strict=True))
    for name in written or ():
        if gradients.pop(name) is None:
            raise UnsupportedModelError(f"{wiring.graph.model} does not use what is at {name}")
    gradients = {n: torch.zeros_like(leaves[n]) if g is None else g for n, g in gradients.items()}
    for name, gradient in gradients.items():
        if not bool(torch.isfinite(gradient).all()):
            raise FloatingPointError(
                f"{wiring.graph.model} gave a NaN or infinite gradient at {name}"
            )
    return streams, gradients


def _output_point(wiring: Wiring) -> str:
    return f"blocks.{wiring.graph.layers - 1}.hook_resid_post"


def destination_gradients(
    model: Model,
    wiring: Wiring,
    streams: Values,
    gradients: Values,
    *,
    fixed_scales: bool = False,
) -> Iterator[tuple[slice, Float[Tensor, "destination row pos d_model"]]]:
    """Gradients in the stream that each destination reads, those of some blocks at a time.

    The parameters `model` and `wiring` are as for `read_gradients`.

    The parameters `streams` and `gradients` are as it returns them.

    Args:
        fixed_scales: take what norms divide by for constants.

    Yields:
        Destinations, and their gradients, which hold only until the next are asked for.
    """
    graph = wiring.graph
    per_layer, layers = graph.destinations_per_layer, range(graph.layers)
    at_once = math.ceil(AT_ONCE / per_layer)
    like = streams["blocks.0.hook_resid_pre"]
    buffer = like.new_empty(min(at_once, graph.layers) * per_layer + 1, *like.shape)
    for blocks in (layers[n : n + at_once] for n in range(0, graph.layers, at_once)):
        for place, layer in enumerate(blocks):
            own = buffer[place * per_layer : (place + 1) * per_layer]
            stream = streams[f"blocks.{layer}.hook_resid_pre"]
            heads = own[: per_layer - graph.mlp]
            _head_gradients(model, wiring, layer, stream, gradients, heads, fixed_scales)
            if graph.mlp:
                point, stream = wiring.mlp_point, streams[stream_point(wiring, layer)]
                gradient = gradients[f"blocks.{layer}.{point}"].reshape(stream.shape)
                norm = wiring.mlp_norms[layer]
                own[-1] = _before_norm(norm, gradient, stream, fixed_scales)
        count = len(blocks) * per_layer
        if blocks[-1] == layers[-1]:
            buffer[count] = gradients[_output_point(wiring)]
            count += 1
        first = blocks[0] * per_layer
        yield slice(first, first + count), buffer[:count]


def _before_norm(
    norm: Norm | None,
    gradient: Float[Tensor, "row pos d_model"],
    stream: Float[Tensor, "row pos d_model"],
    fixed_scale: bool,
) -> Float[Tensor, "row pos d_model"]:
    """The gradient in the stream, from that behind a norm."""
    if norm is None:
        return gradient
    centred = norm.centre(stream)
    scale = norm.scale(centred)
    gradient = norm.centre(gradient * norm.gain) / scale
    if fixed_scale:
        return gradient
    return _off_direction(gradient[None], centred / scale)[0]


def _head_gradients(
    model: Model,
    wiring: Wiring,
    layer: int,
    stream: Float[Tensor, "row pos d_model"],
    gradients: Values,
    out: Float[Tensor, "destination row pos d_model"],
    fixed_scale: bool,
) -> None:
    """Fill in the gradients in the stream that the inputs of a block's heads read."""
    norm, first = wiring.attention_norms[layer], 0
    centred = stream if norm is None else norm.centre(stream)
    scale = None if norm is None else norm.scale(centred)
    for kind in INPUTS:
        weight, _ = input_projection(model, wiring, layer, kind, stream.shape[1])
        if norm is not None and norm.centred:
            weight = weight - weight.mean(1, keepdim=True)
        gradient = gradients[f"blocks.{layer}.attn.hook_{kind}"]
        gradient = gradient.reshape(*stream.shape[:2], weight.shape[0], weight.shape[2])
        if scale is not None:  # taken where it is narrow
            gradient = gradient / scale[..., None]
        own = out[first : first + weight.shape[0]].flatten(1, 2)
        torch.bmm(gradient.flatten(0, 1).transpose(0, 1), weight.transpose(1, 2), out=own)
        first += weight.shape[0]
    if scale is not None and not fixed_scale:
        _off_direction(out, centred / scale)


def _off_direction(
    gradient: Float[Tensor, "destination row pos d_model"],
    unit: Float[Tensor, "row pos d_model"],
) -> Float[Tensor, "destination row pos d_model"]:
    """Take from a gradient, in place, its part along the stream: a norm's last step backwards.

    With n = x / scale, the Jacobian of n is (1 - n n^T / d_model) / scale. Gain, centring and the
    division are done already, which commute with it.
    """
    along = torch.linalg.vecdot(gradient, unit)[..., None] / unit.shape[-1]
    return gradient.addcmul_(along, unit, value=-1)
