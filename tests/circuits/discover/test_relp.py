"""Relevance patching against the rules written out on plain matrices, and what it is for."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from strace_lens.circuits.discover import attribution
from strace_lens.circuits.discover.relp import relevance_patching, relp, rule_hooks
from strace_lens.circuits.discover.run_method import discover
from strace_lens.circuits.experiment import make_experiment
from strace_lens.ground_truth.linear import linear_task, linear_weights
from strace_lens.ground_truth.weights import model_of
from strace_lens.model.architecture import UnsupportedModelError
from tests import cases, oracle, tiny
from tests.circuits.discover.oracle_attribution import (
    difference_of,
    prompts_of,
    share_derivatives,
)
from tests.circuits.made import (
    double_experiment,
    double_model,
    hooks_on,
    plain_graph,
    replaced,
    tiny_task,
    uneven_task,
)
from tests.ground_truth.exact_effects import exact_effects
from tests.oracle_model import Model, Norm, Rows

TASK = tiny_task(2, 5)
HOOKED = [
    pytest.param(name, marks=tiny.needs_hooked_transformer)
    for name in ("layernorm", "rmsnorm_rotary_gated", "norms_before_and_after")
]


# ------------------------------------------------------------------ the rules, written out


def identity_rule(act: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The function as a multiplication by a constant."""
    return x * (act(x) / x).detach()


def half_rule(gate: Tensor, gated: Tensor) -> Tensor:
    """A product that passes half of its gradient to either factor."""
    return (gate * gated.detach() + gate.detach() * gated) / 2


def ruled(name: str, monkeypatch: pytest.MonkeyPatch) -> Model:
    """The plain model of that name, with norms and MLPs as relevance is propagated through them."""
    whole = Norm.linearised
    monkeypatch.setattr(Norm, "linearised", lambda norm, v, at: whole(norm, v, at.detach()))
    model = oracle.plain(name)
    made = _hooked_mlp if name in tiny.HOOKED else _hugging_face_mlp
    layers = [
        layer if layer.mlp is None else replace(layer, mlp=made(name, index))
        for index, layer in enumerate(model.layers)
    ]
    return replace(model, layers=layers)


def _hugging_face_mlp(name: str, layer: int) -> Callable[[Rows], Rows]:
    hf: Any = tiny.hf_model(name)
    body = hf.transformer.h if hasattr(hf, "transformer") else hf.base_model.layers
    mlp = copy.deepcopy(body[layer].mlp).double()

    def run(x: Rows) -> Rows:
        if hasattr(mlp, "gate_proj"):
            gate = identity_rule(mlp.act_fn, mlp.gate_proj(x))
            return mlp.down_proj(half_rule(gate, mlp.up_proj(x)))
        names = ("c_fc", "c_proj") if hasattr(mlp, "c_fc") else ("dense_h_to_4h", "dense_4h_to_h")
        first, last = (getattr(mlp, name) for name in names)
        return last(identity_rule(mlp.act, first(x)))

    return run


def _hooked_mlp(name: str, layer: int) -> Callable[[Rows], Rows]:
    model: Any = tiny.hooked(name)
    mlp = model.blocks[layer].mlp
    act = {"gelu": functional.gelu, "silu": functional.silu}[model.cfg.act_fn]
    W_in, b_in, W_out, b_out = (
        getattr(mlp, key).detach().double() for key in ("W_in", "b_in", "W_out", "b_out")
    )

    def run(x: Rows) -> Rows:
        if not hasattr(mlp, "W_gate"):
            return identity_rule(act, x @ W_in + b_in) @ W_out + b_out
        gate = identity_rule(act, x @ mlp.W_gate.detach().double())
        return (half_rule(gate, x @ W_in) + b_in) @ W_out + b_out

    return run


@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "gpt_neox", "qwen3", "gemma2", "attention_only", *HOOKED]
)
def test_relp_is_the_derivative_under_the_rules(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cases.model_of(name)
    found = relp(double_experiment(name, TASK))
    model, truth = ruled(name, monkeypatch), torch.zeros(plain_graph(name).exists.shape)
    truth = truth.double()
    for pair in range(len(TASK)):
        clean, corrupted = prompts_of(TASK, pair)
        away = replaced(name, TASK, corrupted, "resample")
        truth += share_derivatives(name, model, clean, away, difference_of(TASK, pair)) / len(TASK)
    assert cases.relative_error(found.double(), truth) < 1e-5
    assert (
        cases.relative_error(attribution.eap(double_experiment(name, TASK)).double(), truth) > 0.1
    )


# ------------------------------------------------------------------ what it is


@pytest.mark.parametrize("ablation", ["resample", "zero"])
def test_on_a_linear_model_it_is_exact(ablation: str) -> None:
    weights, task = linear_weights(seed=3), linear_task(pairs=5, seed=4)
    experiment = make_experiment(model_of(weights, "linear"), task, ablation=ablation)
    effects = exact_effects(weights, task, ablation).mean(0)
    assert cases.relative_error(relp(experiment).double(), effects.double()) < 1e-4


@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj", "olmo2", "bloom", "granite", "opt"])
def test_the_rules_change_no_logit_and_are_gone_afterwards(name: str) -> None:
    model = double_model(name)
    before, experiment = hooks_on(model), double_experiment(name, TASK)
    tokens = TASK.clean
    plain = model(tokens)
    hooks = rule_hooks(model, experiment.wiring, {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a bridge says that it norms by the scale it is given
        moved = model.run_with_hooks(tokens, fwd_hooks=hooks)
    assert cases.relative_error(moved.detach(), plain.detach()) < 1e-6
    assert bool(relp(experiment).any())
    assert hooks_on(model) == before
    assert torch.equal(model(tokens), plain)


def test_hooks_are_gone_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model, experiment = cases.model_of("gpt2"), make_experiment(cases.model_of("gpt2"), TASK)
    relp(experiment)
    before = hooks_on(model)

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no gradients today")

    monkeypatch.setattr(torch.autograd, "grad", fail)
    with pytest.raises(RuntimeError, match="no gradients today"):
        relp(experiment)
    assert hooks_on(model) == before


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_a_mixture_of_experts_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"relp does not fit .* mixture of experts"):
        discover(cases.model_of(name), TASK, "relp")


def test_positions_sum_to_the_whole_and_nodes_to_their_out_edges() -> None:
    experiment = double_experiment("llama", TASK)
    whole = relp(experiment).double()
    assert cases.relative_error(relp(experiment, positions=True).double().sum(2), whole) < 1e-5
    nodes = relevance_patching(experiment)
    assert torch.equal(nodes != 0, experiment.graph.exists)
    assert cases.relative_error(nodes[-1].double(), whole.sum(0)) < 1e-6


def test_chunks_and_padding_change_nothing() -> None:
    task, model = uneven_task(), cases.model_of("llama")
    whole, cut = (discover(model, task, "relp", memory_budget=n) for n in (2**27, 1))
    assert cases.relative_error(cut.values.double(), whole.values.double()) < 1e-5
    assert (whole.forwards, whole.backwards) == (2, 1)
