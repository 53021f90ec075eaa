"""Which objective a search keeps when it is told none."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from strace_lens.component_graph.discover.objective import objective_of
from strace_lens.component_graph.experiment import make_experiment
from strace_lens.component_graph.task import Task
from strace_lens.ground_truth.linear import linear_weights
from strace_lens.ground_truth.weights import model_of
from tests import cases
from tests.component_graph.made import tiny_task


def test_the_default_is_the_divergence_of_distributions() -> None:
    experiment = make_experiment(cases.model_of("llama"), tiny_task())
    assert objective_of(experiment, None) == "kl_divergence"
    assert objective_of(experiment, "task") == "logit_difference"
    assert objective_of(experiment, "recovered") == "recovered"
    with pytest.raises(ValueError, match="unknown objective 'loss'; choose from task, logit_diff"):
        objective_of(experiment, "loss")


def test_a_single_number_has_no_distribution() -> None:
    weights = linear_weights()
    one = model_of(dataclasses.replace(weights, W_U=weights.W_U[:, :1]), "one output")
    none = torch.full((2, 1), -1)
    clean, corrupted = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[7, 2, 3], [4, 8, 6]])
    task = Task("number", clean, corrupted, torch.tensor([3, 3]), none, none, "recovered")
    assert objective_of(make_experiment(one, task), None) == "recovered"
