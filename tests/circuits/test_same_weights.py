"""Circuits and scores are run on the weights they were found with, or on others by request."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import strace_lens as sl
from strace_lens.circuits.discover.run_method import discover_in
from strace_lens.circuits.evaluate import faithfulness_curve
from strace_lens.circuits.experiment import make_experiment
from strace_lens.model.weights import weights_hash
from tests import cases, tiny
from tests.circuits.made import tiny_task

REFUSED = r"made with other weights \(.*allow_other_model=True"
TASK = tiny_task()


def model_of_other_weights() -> Any:
    model = cases.fresh_bridge("mistral")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    return model


def run_circuits(model: Any, scores: sl.Scores, **allowed: bool) -> object:
    return sl.run_circuits(model, TASK, [~scores.top(0.2)], **allowed)


def faithfulness(model: Any, scores: sl.Scores, **allowed: bool) -> object:
    return sl.faithfulness(model, TASK, scores, fractions=(0.1, 1.0), **allowed)


@pytest.mark.extended
@pytest.mark.parametrize("verb", [run_circuits, faithfulness])
def test_scores_of_other_weights_are_refused_unless_asked_for(verb: Callable[..., object]) -> None:
    model, other = tiny.bridge("mistral"), model_of_other_weights()
    scores = sl.discover(model, TASK, "eap")
    assert scores.metadata["weights"] == scores.top(3).metadata["weights"] == weights_hash(model)
    with pytest.raises(ValueError, match=REFUSED):
        verb(other, scores)
    verb(other, scores, allow_other_model=True)
    verb(cases.fresh_bridge("mistral"), scores)  # equal weights in another object
    verb(other, dataclasses.replace(scores, metadata={}))  # made by hand
    renamed = dataclasses.replace(scores.graph, model="checkpoint-2")
    verb(other, dataclasses.replace(scores, graph=renamed), allow_other_model=True)


@pytest.mark.parametrize("verb", [run_circuits, faithfulness])
def test_a_graph_of_another_shape_is_refused_in_any_case(verb: Callable[..., object]) -> None:
    scores = sl.discover(tiny.bridge("mistral"), TASK, "random")
    with pytest.raises(ValueError, match="this belongs to"):
        verb(tiny.bridge("llama"), scores, allow_other_model=True)


def test_a_saved_circuit_keeps_its_weights(tmp_path: Path) -> None:
    scores = sl.discover(tiny.bridge("mistral"), TASK, "eap")
    sl.save(scores.top(5), tmp_path / "circuit.safetensors")
    circuit = sl.load(tmp_path / "circuit.safetensors")
    with pytest.raises(ValueError, match=REFUSED):
        sl.run_circuits(model_of_other_weights(), TASK, [circuit])


def test_a_task_made_ready_before_the_weights_changed_is_refused() -> None:
    model = cases.fresh_bridge("mistral")
    experiment = make_experiment(model, TASK)
    scores = discover_in(experiment, "random")
    with torch.no_grad():
        model.blocks[0].ln1.original_component.weight.mul_(1.1)
    for use in (
        lambda: discover_in(experiment, "eap"),
        lambda: faithfulness_curve(experiment, dataclasses.replace(scores, metadata={})),
    ):
        with pytest.raises(ValueError, match="have changed since task 'words' was prepared"):
            use()
