"""Our work leaves the caller's modes and the model's as they were, and does not depend on them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import strace_lens as sl
from strace_lens.architecture import UnsupportedModelError
from strace_lens.component_graph.discover.methods import discover_in
from strace_lens.component_graph.problem import prepare
from strace_lens.hold import hold
from tests import cases, tiny
from tests.component_graph.made import tiny_task
from tests.corpus import made


def training_flags(model: Any) -> list[bool]:
    original = model.original_model.modules()
    return [part.training for part in (*model.modules(), *original)]


@pytest.mark.parametrize("before_use", [True, False])
def test_dropout_is_off_in_a_model_that_is_being_trained(before_use: bool) -> None:
    """GPT-2 drops its embeddings in a module that no module of the bridge holds."""
    quiet, model = cases.fresh_bridge("gpt2"), cases.fresh_bridge("gpt2")
    if not before_use:
        sl.component_graph(model)
        sl.token_graph(model, tiny.PROMPT)
    model.train()
    model.original_model.train()
    model.blocks[1].eval()  # what a user has frozen
    flags = training_flags(model)

    expected, found = (
        sl.density_curve(m, sl.extract(sl.token_graph(m, tiny.PROMPT))) for m in (quiet, model)
    )
    assert found.table["tv"].tolist() == expected.table["tv"].tolist()
    assert float(found.table["tv"].iloc[-1]) < 1e-5
    scores = [sl.discover(m, tiny_task(), "eap-ig").values for m in (quiet, model)]
    assert torch.equal(*scores)
    assert training_flags(model) == flags


def test_training_mode_is_back_after_an_error() -> None:
    model = cases.fresh_bridge("gpt2").train()
    seen = []

    def fail() -> None:
        with hold(model):
            seen.append(model.training)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [False]
    assert model.training


# Torch's modes


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no gradients": lambda: torch.set_grad_enabled(False),
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


def modes() -> tuple[bool, ...]:
    enabled = torch.is_autocast_enabled("cpu")
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), enabled


def trace_verbs(model: Any) -> dict[str, Any]:
    """What every verb of traces says of one prompt."""
    graph = sl.token_graph(model, tiny.PROMPT)
    swap = sl.replacement(model, graph.prompt, "resample", corrupted=tiny.token_ids(12))
    start = sl.extract(graph, "l2", order="scheduled")
    traces = {
        "greedy": sl.extract(graph),
        "scheduled": start,
        "fisher": sl.fisher(model, graph, probes=2),
        "pruned": sl.prune(model, graph, probes=1, factor=0.3, smallest=0.05, replacement=swap),
        "learned": sl.learn(model, graph, start=start, steps=2, sizes=(0.05, 0.2)),
        "anchored": sl.learn(
            model, graph, start=start, steps=2, reach=0.5, company=0.3, sizes=(0.05, 0.2)
        ),
        "estimated": sl.estimate(model, graph, "fisher"),
    }
    found: dict[str, Any] = {name: trace.ranks.flat() for name, trace in traces.items()}
    found["importance"] = sl.edge_importance(graph, "proximity").flat()
    curve = sl.density_curve(model, start, replacement=swap)
    found["curve"] = curve.table.drop(columns=["top", "beside"]).to_numpy(float)
    found["ablation"] = sl.phase_ablation(model, curve).drop(columns="ablated").to_numpy(float)
    hooks = start.hooks(0.3, model)
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        tokens = torch.tensor([graph.prompt.ids])
        found["hooks"] = model.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1]
    return found


OPTIONS: dict[str, dict[str, Any]] = {
    "acdc": {"screen": 4},
    "edge-pruning": {"steps": 3},
    "node-pruning": {"steps": 3},
}


def circuit_verbs(model: Any) -> dict[str, Any]:
    """What every verb of circuits says of one task."""
    task = tiny_task()
    scores = {
        method: sl.discover(model, task, method, **OPTIONS.get(method, {})) for method in sl.METHODS
    }
    found: dict[str, Any] = {method: score.values for method, score in scores.items()}
    circuits = [scores["eap"].top(0.3), ~scores["eap"].top(0.3)]
    found["circuits"] = sl.run_circuits(model, task, circuits, ablation="mean")
    result = sl.faithfulness(model, task, scores["eap-ig"])
    found["faithfulness"] = torch.tensor(result.values)
    measured = sl.accuracy(model, task)
    found["accuracy"] = torch.tensor([measured.clean, measured.corrupted])
    return found


VERBS = {"traces": trace_verbs, "circuits": circuit_verbs}


@functools.cache
def outside(verbs: str) -> dict[str, Any]:
    return VERBS[verbs](tiny.bridge("mistral"))


@pytest.mark.parametrize("verbs", VERBS)
@pytest.mark.parametrize("mode", MODES)
def test_every_verb_gives_the_same_in_every_mode(mode: str, verbs: str) -> None:
    expected = outside(verbs)
    with MODES[mode]():
        before = modes()
        found = VERBS[verbs](tiny.bridge("mistral"))
        assert modes() == before
    assert found.keys() == expected.keys()
    for name, value in found.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, expected[name]), name
        else:
            assert np.array_equal(value, expected[name], equal_nan=True), name


@pytest.mark.parametrize("mode", MODES)
def test_a_sweep_gives_the_same_in_every_mode(mode: str, tmp_path: Path) -> None:
    model, prompts = tiny.bridge("mistral"), made.prompts(2)
    options = made.options(estimator="fisher", generate=1)
    expected = sl.sweep(model, prompts, tmp_path / "outside", options)
    with MODES[mode]():
        found = sl.sweep(model, prompts, tmp_path / "inside", options)
    assert len(found.prompts) > len(prompts)
    pd.testing.assert_frame_equal(found.sizes, expected.sizes)


@pytest.mark.parametrize("mode", MODES)
def test_what_was_made_in_a_mode_serves_outside_it(mode: str) -> None:
    """A tensor that inference mode makes can never be saved for a backward pass."""
    model, task = tiny.bridge("mistral"), tiny_task()
    with MODES[mode]():
        graph = sl.token_graph(model, tiny.PROMPT)
        trace = sl.extract(graph, "l2", order="scheduled")
        problem = prepare(model, task, ablation="mean")
        assert problem.clean[1].is_inference() == problem.replaced.embed.is_inference() is False
    assert torch.equal(sl.fisher(model, graph, probes=2).ranks.flat(), outside("traces")["fisher"])
    learned = sl.learn(model, graph, start=trace, steps=2, sizes=(0.05, 0.2))
    assert torch.equal(learned.ranks.flat(), outside("traces")["learned"])
    scores = discover_in(problem, "edge-pruning", steps=3)
    expected = sl.discover(model, task, "edge-pruning", ablation="mean", steps=3)
    assert torch.equal(scores.values, expected.values)


@pytest.mark.parametrize("mode", MODES)
def test_modes_are_back_after_an_error(mode: str) -> None:
    model = tiny.bridge("mistral")
    with MODES[mode]():
        before = modes()
        with pytest.raises(ValueError, match="unknown method"):
            sl.discover(model, tiny_task(), "none")
        assert modes() == before


def test_a_model_made_in_inference_mode_runs_and_gives_no_gradient() -> None:
    with torch.inference_mode():
        model = cases.fresh_bridge("mistral")
    trace = sl.extract(sl.token_graph(model, tiny.PROMPT))
    assert torch.equal(trace.ranks.flat(), outside("traces")["greedy"])
    assert float(sl.density_curve(model, trace).table["tv"].iloc[-1]) < 1e-5
    with pytest.raises(UnsupportedModelError, match="load the model outside"):
        sl.fisher(model, sl.token_graph(model, tiny.PROMPT))
    with pytest.raises(UnsupportedModelError, match="load the model outside"):
        sl.discover(model, tiny_task(), "eap")
