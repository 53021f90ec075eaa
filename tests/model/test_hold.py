"""Our work leaves the caller's modes and the model's as they were, and does not depend on them."""

from __future__ import annotations

import functools
import random
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import strace_lens as sl
from strace_lens.circuits.discover.run_method import discover_in
from strace_lens.circuits.experiment import make_experiment
from strace_lens.model.architecture import UnsupportedModelError
from strace_lens.model.hold import hold
from tests import cases, tiny
from tests.circuits.made import tiny_task
from tests.corpus import made


def training_flags(model: Any) -> list[bool]:
    original = model.original_model.modules()
    return [part.training for part in (*model.modules(), *original)]


@pytest.mark.extended
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
        "regularized": sl.learn(
            model,
            graph,
            start=start,
            steps=2,
            max_shift=0.5,
            context_fraction=0.3,
            sizes=(0.05, 0.2),
        ),
        "estimated": sl.estimate(model, graph, "fisher"),
    }
    found: dict[str, Any] = {name: trace.ranks.flat() for name, trace in traces.items()}
    found["importance"] = sl.edge_importance(graph, "proximity").flat()
    curve = sl.density_curve(model, start, replacement=swap)
    found["curve"] = curve.table.to_numpy(float)
    found["ablation"] = (
        sl.phase_ablation(model, curve).drop(columns=["ablated", "keep"]).to_numpy(float)
    )
    hooks = start.hooks(0.3, model)
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        tokens = torch.tensor([graph.prompt.ids])
        found["hooks"] = model.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1]
    return found


OPTIONS: dict[str, dict[str, Any]] = {
    "acdc": {"screen": 4},
    "edge-pruning": {"steps": 3},
    "hap": {"steps": 3},
    "warm-edge-pruning": {"steps": 3},
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


@pytest.mark.extended
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


@pytest.mark.extended
@pytest.mark.parametrize("mode", MODES)
def test_a_sweep_gives_the_same_in_every_mode(mode: str, tmp_path: Path) -> None:
    model, prompts = tiny.bridge("mistral"), made.prompts(2)
    options = made.options(estimator="fisher", generate=1)
    expected = sl.sweep(model, prompts, tmp_path / "outside", options)
    with MODES[mode]():
        found = sl.sweep(model, prompts, tmp_path / "inside", options)
    assert len(found.prompts) > len(prompts)
    pd.testing.assert_frame_equal(found.sizes, expected.sizes)


@pytest.mark.extended
@pytest.mark.parametrize("mode", MODES)
def test_what_was_made_in_a_mode_serves_outside_it(mode: str) -> None:
    """A tensor that inference mode makes can never be saved for a backward pass."""
    model, task = tiny.bridge("mistral"), tiny_task()
    with MODES[mode]():
        graph = sl.token_graph(model, tiny.PROMPT)
        trace = sl.extract(graph, "l2", order="scheduled")
        experiment = make_experiment(model, task, ablation="mean")
        assert (
            experiment.clean[1].is_inference() == experiment.replaced.embed.is_inference() is False
        )
    assert torch.equal(sl.fisher(model, graph, probes=2).ranks.flat(), outside("traces")["fisher"])
    learned = sl.learn(model, graph, start=trace, steps=2, sizes=(0.05, 0.2))
    assert torch.equal(learned.ranks.flat(), outside("traces")["learned"])
    scores = discover_in(experiment, "edge-pruning", steps=3)
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


# One forward pass at a time


def in_a_thread(function: Callable[[], Any]) -> BaseException | None:
    """What a function raises in a thread of its own."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0] if raised else None


def test_another_thread_is_told_that_the_model_is_in_use() -> None:
    model = cases.fresh_bridge("mistral")
    trace = sl.extract(sl.token_graph(model, tiny.PROMPT))
    told: list[BaseException | None] = []
    rows: list[int] = []

    def progress(done: int, *_: object) -> None:
        rows.append(done)
        told.append(in_a_thread(lambda: sl.density_curve(model, trace)))
        told.append(in_a_thread(lambda: sl.discover(model, tiny_task(), "eap")))

    curve = sl.density_curve(model, trace, progress=progress)
    assert len(told) == 2 * len(rows) > 0
    for error in told:
        assert isinstance(error, RuntimeError)
        assert "another thread is working on tiny-mistral" in str(error)
    # And afterwards it is free again.
    assert in_a_thread(lambda: sl.density_curve(model, trace)) is None
    assert sl.density_curve(model, trace).table["tv"].equals(curve.table["tv"])


def test_threads_with_a_model_each_do_not_meet() -> None:
    first, second = cases.fresh_bridge("mistral"), cases.fresh_bridge("mistral")
    with hold(first):
        assert in_a_thread(lambda: sl.token_graph(second, tiny.PROMPT)) is None


def test_a_forward_pass_of_another_thread_meets_no_hook_of_ours() -> None:
    """It would hand our hooks its own values."""
    model = cases.fresh_bridge("mistral")
    other = torch.tensor([tiny.token_ids(5)])
    told: list[BaseException | None] = []

    def meanwhile(value: torch.Tensor, hook: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            told.append(in_a_thread(lambda: model(other)))

    expected = sl.extract(sl.token_graph(model, tiny.PROMPT)).ranks.flat()
    model.hook_dict["blocks.1.hook_resid_pre"].add_hook(meanwhile)
    found = sl.extract(sl.token_graph(model, tiny.PROMPT)).ranks.flat()
    assert torch.equal(found, expected)
    errors = [error for error in told if error is not None]
    assert errors
    assert all("another thread is working on" in str(error) for error in errors)


@pytest.mark.parametrize("guarded", [True, False])
def test_a_verb_inside_a_hook_is_refused(guarded: bool) -> None:
    model = tiny.bridge("mistral")
    trace = sl.extract(sl.token_graph(model, tiny.PROMPT))
    tokens = torch.tensor([trace.prompt.ids])
    entered: list[None] = []

    def measure(value: torch.Tensor, hook: Any) -> None:
        entered.append(None)
        if not guarded or len(entered) == 1:
            sl.density_curve(model, trace)

    with pytest.raises(RuntimeError, match="tiny-mistral is in the middle of a forward pass"):
        model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.hook_resid_pre", measure)])
    assert len(entered) == 1
    sl.density_curve(model, trace)  # nothing is left behind


def test_a_verb_inside_a_hook_of_our_own_run_is_refused() -> None:
    model = cases.fresh_bridge("mistral")
    trace = sl.extract(sl.token_graph(model, tiny.PROMPT))

    def measure(value: torch.Tensor, hook: Any) -> None:
        sl.density_curve(model, trace)

    model.hook_dict["blocks.0.hook_resid_mid"].add_hook(measure)
    with pytest.raises(RuntimeError, match="in the middle of a forward pass"):
        sl.token_graph(model, tiny.PROMPT)
    model.reset_hooks()
    sl.token_graph(model, tiny.PROMPT)


def test_the_hooks_of_a_trace_run_inside_a_run_of_the_user() -> None:
    model = tiny.bridge("mistral")
    trace = sl.extract(sl.token_graph(model, tiny.PROMPT))
    hooks = trace.hooks(1.0, model)
    tokens = torch.tensor([trace.prompt.ids])
    with torch.no_grad():
        full = model(tokens)
        found = model.run_with_hooks(tokens, fwd_hooks=hooks)
    torch.testing.assert_close(found[0, -1], full[0, -1], rtol=1e-4, atol=1e-4)


# Generators


def generators() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), (name, tuple(keys), *rest)


@pytest.fixture
def no_global_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own generator is refused outright, because beartype moves it at every check."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("drawn from Python's global generator")

    for name, value in vars(random).items():
        if isinstance(getattr(value, "__self__", None), random.Random):
            monkeypatch.setattr(random, name, refuse)


@pytest.mark.extended
@pytest.mark.usefixtures("no_global_draws")
def test_no_verb_moves_a_global_generator(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="global generator"):
        random.shuffle([1, 2])
    model, before = tiny.bridge("mistral"), generators()
    trace_verbs(model)
    assert generators() == before
    circuit_verbs(model)
    assert generators() == before
    sl.plan(model, 12)
    assert generators() == before
    run = sl.sweep(model, made.prompts(4), tmp_path, made.options(estimator="fisher"))
    sl.analyse([run])
    assert generators() == before
    sl.explorer([sl.density_curve(model, sl.extract(sl.token_graph(model, tiny.PROMPT)))])
    assert generators() == before


@pytest.mark.usefixtures("no_global_draws")
def test_a_fresh_bridge_s_proof_moves_no_generator() -> None:
    model = cases.fresh_bridge("gpt2")
    before = generators()
    sl.component_graph(model)
    sl.token_graph(model, tiny.PROMPT)
    assert generators() == before
