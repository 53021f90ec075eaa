"""Relevance patching (RelP): attribution patching with the coefficients of relevance propagation.

Rezaei Jafari, Eberle, Khakzar and Nanda (2025), "RelP: Faithful and Efficient Circuit Discovery via
Relevance Patching". The backward pass of `eap` is replaced by layer-wise relevance propagation,
which is a gradient too, of a model in which

- what a norm divides by is a constant (the LN rule: Ali et al. 2022, "XAI for Transformers");
- an activation function f is a multiplication by the constant f(x) / x (the identity rule);
- a product of a gate and its input passes half of the gradient to either (the half rule).

Attention passes its ordinary gradient, so that edges into queries and keys have scores as well.
Signs are those of `eap`: (clean output - replacement) . coefficient, positive helps. Where the
model is linear the two methods agree.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.circuits.discover.attribution import (
    add_products,
    differences_of,
    empty_scores,
    run_backward,
)
from strace_lens.circuits.discover.gradients import Values
from strace_lens.circuits.experiment import Experiment
from strace_lens.circuits.graph import EdgeValues
from strace_lens.circuits.outputs import output_hooks, outputs_of
from strace_lens.circuits.wiring import Wiring, keep_hooks
from strace_lens.model.architecture import Model, UnsupportedModelError, block_of, device_of
from strace_lens.model.checks import PROBE_TOKENS, tolerance
from strace_lens.model.forward import Hook, last_logits
from strace_lens.model.weights import remembered


def relp(experiment: Experiment, *, seed: int = 0, positions: bool = False) -> EdgeValues:
    """Edge scores by relevance patching: propagation coefficients at the clean prompt.

    Passes: as for `eap`, one forward for the values that replace edges, one forward and backward.

    Args:
        positions: score an edge at each token position separately.

    Raises:
        UnsupportedModelError: the inside of an MLP cannot be reached, as in a mixture of experts.
    """
    model, wiring = experiment.model, experiment.wiring
    remembered(model, "relp", lambda: _prove(model, wiring))
    total = empty_scores(experiment, positions)
    for rows in experiment.gradient_chunks(len(experiment.task)):
        kept: Values = {}
        written: Values = {}
        hooks = [*output_hooks(wiring, kept), *rule_hooks(model, wiring, written)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a bridge says that it norms by the scale it is given
            read = run_backward(experiment, rows, hooks=hooks, untouched=True, written=written)
        clean = outputs_of(wiring, kept)
        differences = differences_of(experiment, clean, rows)
        add_products(experiment, rows, total, read, differences, fixed_scales=True)
    return total / len(experiment.task)


def relevance_patching(experiment: Experiment, *, seed: int = 0) -> EdgeValues:
    """Relevance patching of nodes, each node's score spread over its out-edges.

    The counterpart of `attribution_patching`, with its sign, and the form in which the paper
    compares the two. Passes and errors: as for `relp`.
    """
    nodes = relp(experiment).sum(0)
    return nodes * experiment.graph.exists.to(nodes.device)


def rule_hooks(model: Model, wiring: Wiring, written: Values) -> list[Hook]:
    """Hooks that leave every value as it is and give the backward pass the rules of relevance.

    Args:
        model, wiring: of one model.
        written: is filled with what the hooks return, by hook point.
    """
    points = cast(Any, model).hook_dict
    behind = ("blocks.", "ln_final.")  # not a norm of the embedding, where the graph begins
    norms = {p: n for n, p in points.items() if n.startswith(behind) and n.endswith(".hook_scale")}
    hooks: list[Hook] = [(name, _constant(name, written)) for name in norms.values()]
    for layer in range(wiring.graph.layers if wiring.graph.mlp else 0):
        hooks += _activation_hooks(model, wiring, layer, written)
    return hooks


def _constant(name: str, written: Values) -> Callable[..., Tensor]:
    """A hook that cuts a value from what it was made of."""

    def hook(value: Tensor, hook: Any) -> Tensor:
        written[name] = value.detach().requires_grad_(torch.is_grad_enabled())
        return written[name]

    return hook


def _activation_hooks(model: Model, wiring: Wiring, layer: int, written: Values) -> list[Hook]:
    """Hooks with the identity rule of one MLP, and the half rule where it has a gate."""
    point = f"blocks.{layer}.mlp."
    kept: Values = {}
    gated, bias = _is_gated(model, layer), _bias_behind_gate(model, wiring, layer)

    def before(value: Tensor, hook: Any) -> Tensor:
        kept["pre"] = value
        return _constant(point + "hook_pre", written)(value, hook) if gated else value

    def after(value: Tensor, hook: Any) -> Tensor:
        pre, now = kept.pop("pre"), value.detach()
        # Either is exact at any size of its argument; at 0 the function is 0 too.
        slope = torch.where(pre == 0, 0, (now - bias) / pre).detach()
        relevance = slope * (pre - pre.detach())
        if gated:  # the gate's argument is cut above, so what `value` passes is the input's
            relevance = (relevance + value - now) / 2
        written[point + "hook_post"] = now + relevance
        return written[point + "hook_post"]

    return [(point + "hook_pre", before), (point + "hook_post", after)]


def _is_gated(model: Model, layer: int) -> bool:
    return f"blocks.{layer}.mlp.hook_pre_linear" in cast(Any, model).hook_dict


def _bias_behind_gate(model: Model, wiring: Wiring, layer: int) -> Tensor:
    """What a gated MLP adds to the product: a HookedTransformer adds b_in there."""
    mlp = block_of(model, layer).mlp
    if wiring.mlp_point == "hook_mlp_in" and _is_gated(model, layer):
        return mlp.b_in.detach()
    return torch.zeros((), device=device_of(model))


# ------------------------------------------------------------------ proof

_ROWS = 4


def _prove(model: Model, wiring: Wiring) -> bool:
    """Refuse a model that the rules do not fit, or that they would change.

    Raises:
        UnsupportedModelError: an MLP without the hook points or that is no activation function of
            each neuron times what it gates, or logits that move.
    """
    arch = wiring.architecture
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(arch.d_vocab, (_ROWS, PROBE_TOKENS), generator=generator)
    layers = range(wiring.graph.layers if wiring.graph.mlp else 0)
    points = cast(Any, model).hook_dict
    needed = [f"blocks.{n}.mlp.{name}" for n in layers for name in ("hook_pre", "hook_post")]
    missing = [name for name in needed if name not in points]
    if missing:
        raise UnsupportedModelError(f"relp does not fit {arch.name}: it has no {missing[0]}")
    hooks: list[Hook] = []
    found: Values = {}
    for name in needed[::2]:
        hooks.append((name, _gate_rows))
    for layer in layers:
        if _is_gated(model, layer):
            hooks.append((f"blocks.{layer}.mlp.hook_pre_linear", _input_rows))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = last_logits(model, arch, tokens)
        ruled = last_logits(model, arch, tokens, hooks=rule_hooks(model, wiring, {}))
        last_logits(model, arch, tokens, hooks=[*hooks, *keep_hooks(needed, found)])
    allowed = tolerance(plain.dtype)
    if not float((ruled - plain).norm()) <= allowed * float(plain.norm()):
        raise UnsupportedModelError(
            f"relp does not fit {arch.name}: its logits move when the scales of its norms are given"
        )
    for layer, pre, post in zip(layers, needed[::2], needed[1::2], strict=True):
        value = found[post] - _bias_behind_gate(model, wiring, layer)
        right = found[pre].shape == value.shape and len(value) == _ROWS
        if right:
            first, moved, zero, double = value
            right = _gap(moved, first.roll(1, -1)) <= allowed
            right = right and float(zero.norm()) <= allowed * float(first.norm())
            right = right and _gap(double, first * (1 + _is_gated(model, layer))) <= allowed
        if not right:
            raise UnsupportedModelError(
                f"relp does not fit {arch.name}: {post} does not hold an activation function of "
                "what each neuron reads, which is 0 at 0, or its product with what it gates: so "
                "it is in a mixture of experts"
            )
    return True


def _gate_rows(value: Float[Tensor, "row *any"], hook: Any) -> Float[Tensor, "row *any"]:
    """Some values, the same with each at its neighbour's place, zeros, and the first again."""
    first = value[0]
    return torch.stack([first, first.roll(1, -1), torch.zeros_like(first), first])


def _input_rows(value: Float[Tensor, "row *any"], hook: Any) -> Float[Tensor, "row *any"]:
    """What is gated in those rows: some values, moved alike, as they are, and twice as large."""
    first = value[0]
    return torch.stack([first, first.roll(1, -1), first, 2 * first])


def _gap(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm().clamp_min(1e-30))
