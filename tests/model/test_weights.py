"""What is remembered of a model follows its weights, however they were changed."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import strace_lens as sl
from strace_lens.circuits.circuit import full_circuit
from strace_lens.circuits.wiring import wiring_of
from strace_lens.model import weights
from strace_lens.model.checks import architecture_of
from strace_lens.model.hold import hold
from strace_lens.model.weights import fingerprint, remembered, remembered_hash, weights_hash
from tests import cases, tiny
from tests.circuits.made import tiny_task


def scrambled(model: Any) -> list[Tensor]:
    """Other values for every parameter of a model."""
    generator = torch.Generator().manual_seed(7)
    return [
        p.detach() * (1 + 0.5 * torch.randn(p.shape, generator=generator))
        for p in model.parameters()
    ]


def copy_data(model: Any) -> None:
    for parameter, value in zip(model.parameters(), scrambled(model), strict=True):
        parameter.data.copy_(value)


def replace_data(model: Any) -> None:
    for parameter, value in zip(model.parameters(), scrambled(model), strict=True):
        parameter.data = value


def copy_without_gradients(model: Any) -> None:
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), scrambled(model), strict=True):
            parameter.copy_(value)


def load_state_dict(model: Any) -> None:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    copy_data(model)
    changed = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    fingerprint(model)
    model.load_state_dict(changed)


def train_a_step(model: Any) -> None:
    model.requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    logits = model(torch.tensor([tiny.token_ids(8)]))
    logits.float().log_softmax(-1)[..., 3].sum().backward()
    optimizer.step()
    model.requires_grad_(False)


CHANGES: dict[str, Callable[[Any], None]] = {
    "copy_data": copy_data,
    "replace_data": replace_data,
    "copy_without_gradients": copy_without_gradients,
    "load_state_dict": load_state_dict,
    "train_a_step": train_a_step,
}


def one_norm(model: Any) -> None:
    """The gain of one norm, through `.data`, which counts no version."""
    next(p for p in model.blocks[1].ln1.parameters()).data[3] += 1


SMALL_CHANGES: dict[str, Callable[[Any], None]] = {
    "one_norm": one_norm,
    "fold": lambda model: model.enable_compatibility_mode(),
    "to_bfloat16": lambda model: model.to(torch.bfloat16),
    "to_float64": lambda model: model.to(torch.float64),
    "settings": lambda model: setattr(model.cfg, "eps", 1e-3),
}


@pytest.mark.parametrize("change", {**CHANGES, **SMALL_CHANGES})
def test_the_fingerprint_follows_every_change(change: str) -> None:
    model = cases.fresh_bridge("llama")
    before = fingerprint(model)
    assert fingerprint(model) == before
    {**CHANGES, **SMALL_CHANGES}[change](model)
    assert fingerprint(model) != before
    assert fingerprint(model) == fingerprint(model)


def test_a_large_tensor_is_known_by_a_sample() -> None:
    """A write through `.data` counts no version, and here it replaces no storage."""
    module: Any = torch.nn.Linear(300, 300)
    before = fingerprint(module)
    module.weight.data *= 1.01
    scaled = fingerprint(module)
    assert scaled != before
    with torch.no_grad():
        module.weight[7, 9] += 1
    assert fingerprint(module) != scaled


def test_a_run_and_a_change_of_mode_leave_the_fingerprint() -> None:
    model = cases.fresh_bridge("gpt2")
    before = fingerprint(model)
    graph = sl.token_graph(model, tiny.PROMPT)
    sl.fisher(model, graph, probes=1)
    sl.discover(model, tiny_task(), "eap")
    model.train()
    assert fingerprint(model) == before


@tiny.needs_hooked_transformer
def test_processed_weights_are_other_weights() -> None:
    model = copy.deepcopy(tiny.hooked("layernorm"))
    before, graph = fingerprint(model), sl.component_graph(model)
    task = tiny_task()
    effects = sl.discover(model, task, "edge-patching").values
    model.process_weights_(center_writing_weights=False, center_unembed=False)
    assert fingerprint(model) != before
    assert sl.component_graph(model) == graph
    after = sl.discover(model, task, "edge-patching").values
    torch.testing.assert_close(after, effects, rtol=1e-4, atol=1e-4)


def test_one_weight_or_another_dtype_is_another_hash() -> None:
    model = cases.fresh_bridge("llama")
    before = weights_hash(model)
    assert before == weights_hash(cases.fresh_bridge("llama"))
    assert len(before) == 64
    parameter = max(model.parameters(), key=lambda p: p.numel())
    value = float(parameter.view(-1)[5])
    parameter.data.view(-1)[5] = value + 1
    changed = weights_hash(model)
    assert changed != before
    parameter.data.view(-1)[5] = value
    assert weights_hash(model) == before
    assert weights_hash(model.to(torch.float64)) not in (before, changed)


def test_the_hash_is_remembered_until_the_weights_change() -> None:
    model = cases.fresh_bridge("llama")
    assert remembered_hash(model) == weights_hash(model)
    copy_data(model)
    assert remembered_hash(model) == weights_hash(model)


def test_a_fact_is_made_once_and_again_after_a_change() -> None:
    model, made = cases.fresh_bridge("llama"), []

    def make() -> int:
        made.append(None)
        return len(made)

    assert [remembered(model, "calls", make) for _ in range(3)] == [1, 1, 1]
    one_norm(model)
    assert remembered(model, "calls", make) == 2
    with hold(model):
        assert remembered(model, "calls", make) == 2
        assert remembered(model, "calls", make) == 2
    before = len(weights._known)
    del model
    gc.collect()
    assert len(weights._known) < before


def test_facts_are_proven_once_for_weights_that_stay() -> None:
    model = cases.fresh_bridge("llama")
    architecture, wiring = architecture_of(model), wiring_of(model)
    assert architecture_of(model) is architecture
    assert wiring_of(model) is wiring
    one_norm(model)
    assert wiring_of(model) is not wiring


@pytest.mark.extended
@pytest.mark.parametrize(
    ("name", "change"), [*(("llama", change) for change in CHANGES), ("gpt2", "copy_data")]
)
def test_circuits_use_the_weights_that_the_model_has_now(name: str, change: str) -> None:
    """A bridge whose weights were changed after use is as one made with these weights."""
    model, task = cases.fresh_bridge(name), tiny_task()
    before = sl.discover(model, task, "edge-patching").values
    sl.extract(sl.token_graph(model, tiny.PROMPT))
    CHANGES[change](model)
    fresh = cases.fresh_bridge(name)
    fresh.load_state_dict(model.state_dict())

    effects = sl.discover(model, task, "edge-patching").values
    torch.testing.assert_close(effects, sl.discover(fresh, task, "edge-patching").values)
    assert float((effects - before).abs().max()) > 0.01
    scores = sl.discover(model, task, "eap").values
    torch.testing.assert_close(scores, sl.discover(fresh, task, "eap").values)
    trace, expected = (
        sl.extract(sl.token_graph(m, tiny.PROMPT)).ranks.flat() for m in (model, fresh)
    )
    assert torch.equal(trace, expected)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_full_circuit_is_the_model_after_folding(name: str) -> None:
    model, task = cases.fresh_bridge(name), tiny_task()
    sl.component_graph(model)
    model.enable_compatibility_mode()
    with torch.no_grad():
        logits = model(task.clean)[:, -1]
    right = logits.gather(1, task.answers).mean(1) - logits.gather(1, task.incorrect).mean(1)
    circuit = full_circuit(sl.component_graph(model))
    # An empty mask beside it: the whole circuit alone cuts nothing.
    values = sl.run_circuits(model, task, [circuit, ~circuit])
    torch.testing.assert_close(values[0], right, rtol=1e-4, atol=1e-4)


@pytest.mark.extended
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_can_change_its_dtype_after_use(dtype: torch.dtype) -> None:
    model, task = cases.fresh_bridge("llama"), tiny_task()
    before = sl.discover(model, task, "edge-patching").values
    model.to(dtype)
    after = sl.discover(model, task, "edge-patching").values
    close = 1e-4 if dtype == torch.float64 else 0.1
    assert float((after - before).abs().max()) < close * float(before.abs().max())
