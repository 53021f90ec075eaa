"""On a GPU, where there is one: everything gives what it gives on the CPU, and no hook waits.

Run there: CUBLAS_WORKSPACE_CONFIG=:4096:8 python -m pytest tests/test_gpu.py
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import strace_lens as sl
from strace_lens.circuits.criteria import completeness, minimality
from strace_lens.circuits.discover.methods import METHODS
from strace_lens.circuits.experiment import make_experiment
from strace_lens.circuits.run_circuits import circuit_metric
from strace_lens.model.checks import architecture_of
from strace_lens.traces import masked_run
from strace_lens.traces.estimators import ESTIMATORS
from tests import tiny
from tests.circuits.made import tiny_task

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

NAMES = ("llama", "gpt2", "gemma2", "gptj", "mixtral")
IDS = tiny.token_ids(9)


@functools.cache
def on(device: str, name: str) -> Any:
    made: Any = tiny.BRIDGES[name]()
    return tiny.bridge_of(made.to(device), name)


@functools.cache
def trace(name: str) -> sl.Trace:
    """Ranked on the CPU: by ties and rounding, a trace made elsewhere may be another."""
    return sl.extract(sl.token_graph(on("cpu", name), IDS))


def both(name: str, function: Callable[[Any], Any]) -> tuple[Any, Any]:
    """What a function of a model gives on the CPU and on the GPU."""
    return function(on("cpu", name)), function(on("cuda", name))


@pytest.mark.parametrize("kind", ["zero", "mean", "resample"])
@pytest.mark.parametrize("keep", [(), ("attention",)])
@pytest.mark.parametrize("name", NAMES)
def test_curves_are_those_of_the_cpu(name: str, keep: tuple[str, ...], kind: str) -> None:
    def curve(model: Any) -> sl.DensityCurve:
        other = tiny.token_ids(len(IDS), seed=1)
        swap = sl.replacement(model, trace(name).prompt, kind, corrupted=other)
        return sl.density_curve(model, trace(name), keep=keep, replacement=swap, refine=0)

    ours, theirs = both(name, curve)
    numbers = ours.table.select_dtypes("number").columns.drop(["size", "edges", "nucleus"])
    np.testing.assert_allclose(theirs.table[numbers], ours.table[numbers], atol=1e-4)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", NAMES)
def test_estimators_run_and_find_traces_as_dense(name: str, estimator: str) -> None:
    """Rounding alone, a millionth of each weight, moves a learned density by up to 0.015."""

    def density(model: Any) -> float:
        found = sl.estimate(model, sl.token_graph(model, tiny.token_ids(16)), estimator)
        return sl.density_curve(model, found, refine=0, controls=False).density

    ours, theirs = both(name, density)
    assert theirs == pytest.approx(ours, abs=0.03)


@pytest.mark.parametrize("name", NAMES)
def test_phases_are_ablated(name: str) -> None:
    def table(model: Any) -> Any:
        return sl.phase_ablation(model, sl.density_curve(model, trace(name)))

    ours, theirs = both(name, table)
    assert list(ours.columns) == list(theirs.columns)
    numbers = ours.select_dtypes("number").columns
    np.testing.assert_allclose(theirs[numbers], ours[numbers], atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_circuits_are_those_of_the_cpu(name: str, method: str) -> None:
    def found(model: Any) -> torch.Tensor | str:
        try:
            return sl.discover(model, tiny_task(), method).values.cpu()
        except sl.UnsupportedModelError as error:
            return str(error)

    ours, theirs = both(name, found)
    if isinstance(ours, str) or isinstance(theirs, str):
        assert ours == theirs  # relevance does not go through a mixture of experts, on no device
        return
    if "pruning" in method:  # which amplifies rounding step by step
        return
    # An ensemble is of ranks: edges that rounding alone parts change places.
    off = 3 / int((ours != 0).sum()) if method == "ensemble" else 2e-3
    scale = float(ours.abs().max())
    torch.testing.assert_close(theirs, ours, atol=off * scale, rtol=0, equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
def test_circuits_are_evaluated_as_on_the_cpu(name: str) -> None:
    scores = sl.discover(on("cpu", name), tiny_task(), "eap")

    def evaluated(model: Any) -> list[float]:
        experiment = make_experiment(model, tiny_task())
        circuit = scores.top(0.3)
        found = sl.faithfulness(model, tiny_task(), scores)
        costs = minimality(experiment, circuit).values()
        return [found.cpr, found.cmd, completeness(experiment, circuit), *costs]

    ours, theirs = both(name, evaluated)
    np.testing.assert_allclose(theirs, ours, atol=1e-2, rtol=1e-3)


def test_masks_may_lie_on_the_cpu() -> None:
    def metric(model: Any) -> torch.Tensor:
        experiment = make_experiment(model, tiny_task())
        return circuit_metric(experiment, experiment.graph.exists[None]).cpu()

    ours, theirs = both("llama", metric)
    torch.testing.assert_close(theirs, ours, atol=1e-3, rtol=1e-3)


def test_a_sweep_runs(tmp_path: Any) -> None:
    prompts = [sl.CorpusPrompt(" ".join(list(tiny.WORDS)[i : i + 7])) for i in range(3)]
    options = sl.Options(estimator="fisher", hidden=True)
    run = sl.sweep(on("cuda", "llama"), prompts, tmp_path / "run", options)
    assert run.failures.empty


@pytest.mark.parametrize("name", NAMES)
def test_no_hook_waits_for_the_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, real = on("cuda", name), masked_run.mask_hooks
    called: list[str] = []

    def quick(point: str, hook: Callable[..., Any]) -> Callable[..., Any]:
        def checked(value: Any, hook: Any, function: Any = hook) -> Any:
            called.append(point)
            torch.cuda.set_sync_debug_mode("error")
            try:
                return function(value, hook=hook)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return checked

    def watched(*given: Any, **options: Any) -> Any:
        return [(point, quick(point, hook)) for point, hook in real(*given, **options)]

    monkeypatch.setattr(masked_run, "mask_hooks", watched)
    sl.density_curve(model, trace(name))
    assert len({*called}) >= 3 * architecture_of(model).layers
