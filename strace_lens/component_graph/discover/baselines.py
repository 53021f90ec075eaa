"""Rankings that know nothing of the task: every method has to beat them."""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.component_graph.experiment import Problem
from strace_lens.component_graph.run_circuits import check_positions
from strace_lens.component_graph.wiring import INPUTS, Wiring, head_reader, head_writer
from strace_lens.model.architecture import Model, UnsupportedModelError, block_of
from strace_lens.model.norms import Norm, norm_weights, read_norm


def random(
    problem: Problem, *, seed: int = 0, positions: bool = False
) -> Float[Tensor, "destination source *pos"]:
    """Scores drawn uniformly from (0, 1); no pass is run and the sign means nothing.

    Args:
        problem: a task made ready.
        seed: the same seed gives the same scores.
        positions: draw one for each token position.

    Raises:
        ValueError: positions over prompts of unequal lengths.
    """
    exists = problem.graph.exists
    if positions:
        check_positions(problem.task)
        exists = exists[..., None].expand(*exists.shape, problem.task.clean.shape[1])
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(exists.shape, generator=generator) * exists


def weight_magnitude(problem: Problem, *, seed: int = 0) -> Float[Tensor, "destination source"]:
    """Frobenius norm of what a source writes with times that of what a destination reads with.

    Magnitude pruning, Han et al. (2015), "Learning both Weights and Connections", section 3,
    carried to edges. A source writes with W_E and W_pos, W_O, or W_out; a destination reads with
    W_Q, W_K, W_V, W_in and W_gate, or W_U. Gains (and centring) of norms are in these weights;
    biases and what a norm divides by are not. No pass is run; scores are positive, not effects.

    Args:
        problem: a task made ready; only its model is read.
        seed: not used; every method takes one.

    Raises:
        UnsupportedModelError: the weights of an MLP cannot be read (a mixture of experts).
    """
    model, wiring = problem.model, problem.wiring
    with torch.no_grad():
        writers = torch.stack(_writers(model, wiring)).cpu().float()
        readers = torch.stack(_readers(model, wiring)).cpu().float()
    return readers[:, None] * writers * problem.graph.exists


def _writers(model: Model, wiring: Wiring) -> list[Float[Tensor, ""]]:
    """Norm of the output weights of every source, in the graph's order."""
    whole = cast(Any, model)
    positions = getattr(model, "W_pos", None)
    if positions is None:  # the bridge of TransformerLens 3.9 has the module alone
        positions = getattr(getattr(model, "pos_embed", None), "weight", None)
    # Shortformer's positions are added elsewhere.
    own = positions is not None and wiring.positions is None
    embeddings = [whole.W_E, positions] if own else [whole.W_E]
    norms = [torch.stack([weight.norm() for weight in embeddings]).norm()]
    for layer in range(wiring.graph.layers):
        norms += list(head_writer(model, wiring, layer).flatten(1).norm(dim=1))
        if wiring.graph.mlp:
            weight = _mlp_weight(model, wiring, layer, "W_out")
            if wiring.architecture.post_norm:
                gain, _, centred = norm_weights(block_of(model, layer).ln2_post, weight[0])
                weight = weight - weight.mean(-1, keepdim=True) if centred else weight
                weight = weight * gain
            norms.append(weight.norm())
    return norms


def _readers(model: Model, wiring: Wiring) -> list[Float[Tensor, ""]]:
    """Norm of the input weights of every destination, in the graph's order."""
    norms = []
    for layer in range(wiring.graph.layers):
        block = block_of(model, layer)
        for kind in INPUTS:
            weight = head_reader(model, wiring, layer, kind, 1).weight
            norm = wiring.attention_norms[layer]
            if norm is not None and norm.centred:
                weight = weight - weight.mean(1, keepdim=True)
            norms += list(weight.flatten(1).norm(dim=1))
        if wiring.graph.mlp:
            weight = _mlp_weight(model, wiring, layer, "W_in")
            if wiring.architecture.gated:
                weight = torch.cat([weight, _mlp_weight(model, wiring, layer, "W_gate")], dim=1)
            norm = wiring.mlp_norms[layer] or _norm(block, "ln2", weight)
            norms.append(_folded(norm, weight).norm())
    unembedding = cast(Any, model).W_U
    norms.append(_folded(_norm(model, "ln_final", unembedding), unembedding).norm())
    return norms


def _norm(holder: object, name: str, weight: Float[Tensor, "d_model _"]) -> Norm | None:
    """A norm of the model or of one of its blocks, if it has one of that name."""
    return read_norm(getattr(holder, name, None), weight[:, 0], getattr(holder, "cfg", None))


def _folded(norm: Norm | None, weight: Float[Tensor, "d_model _"]) -> Float[Tensor, "d_model _"]:
    """A weight that reads behind a norm, with the norm's gain and centring in it."""
    if norm is None:
        return weight
    weight = norm.gain[:, None] * weight
    return weight - weight.mean(0) if norm.centred else weight


def _mlp_weight(model: Model, wiring: Wiring, layer: int, name: str) -> Float[Tensor, "d_in d_out"]:
    weight = getattr(block_of(model, layer).mlp, name, None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise UnsupportedModelError(
            f"the weights of {wiring.architecture.name}'s MLPs cannot be read (no {name}; "
            "a mixture of experts?); rank its edges with another method"
        )
    return weight.detach()
