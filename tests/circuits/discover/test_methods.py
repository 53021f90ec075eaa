"""The verb that runs a method, on tasks on which nothing can be found."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from strace_lens.circuits.discover.attribution import eap
from strace_lens.circuits.discover.methods import (
    METHODS,
    method,
    options_of,
    passes_of,
    random_scores,
)
from strace_lens.circuits.discover.run_method import discover
from strace_lens.circuits.experiment import Experiment, make_experiment
from strace_lens.circuits.task import Task
from strace_lens.circuits.wiring import component_graph
from strace_lens.comparison.compare import compare
from tests import cases
from tests.circuits.made import double_model, tiny_task, uneven_task


def unchanged(rows: list[int], pairs: int = 4) -> Task:
    """A task whose corrupted prompts are the clean ones in some pairs."""
    task = tiny_task(pairs, 5)
    corrupted = task.corrupted.clone()
    corrupted[rows] = task.clean[rows]
    return dataclasses.replace(task, corrupted=corrupted)


@pytest.mark.parametrize("method", METHODS)
def test_a_task_on_which_nothing_changes_is_refused_by_every_method(method: str) -> None:
    with pytest.raises(
        ValueError, match="clean and corrupted do not differ in the tokens of any pair of task"
    ):
        discover(cases.model_of("gpt2"), unchanged([0, 1, 2, 3]), method)


def test_pairs_that_differ_in_their_padding_alone_are_the_same() -> None:
    task = dataclasses.replace(tiny_task(2, 5), lengths=torch.tensor([2, 5]))
    corrupted = task.clean.clone()
    corrupted[0, 3] += 1
    same = dataclasses.replace(task, corrupted=corrupted)
    assert same.unchanged == (0, 1)
    with pytest.raises(ValueError, match="do not differ in the tokens of any pair"):
        discover(cases.model_of("gpt2"), same, "eap")


def test_pairs_that_do_not_differ_are_named() -> None:
    task = unchanged([1, 3])
    assert task.unchanged == (1, 3)
    said = r"the same tokens in 2 of 4 pairs of task 'words' \(1, 3, counted from 0\)"
    with pytest.warns(UserWarning, match=said):
        found = discover(cases.model_of("gpt2"), task, "eap")
    assert bool(found.values.any())


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_another_ablation_needs_no_other_prompt(ablation: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = discover(cases.model_of("gpt2"), unchanged([0, 1, 2, 3]), "eap", ablation=ablation)
    assert bool(found.values.any())


@pytest.mark.parametrize("method", ["edge-patching", "eap"])
def test_other_tokens_with_the_same_output_are_no_change(method: str) -> None:
    model = double_model("gpt2")
    task = tiny_task(2, 5)
    with torch.no_grad():
        table = model.W_E.clone()
        for token in task.clean.unique().tolist():  # its twin, some tokens further on
            model.W_E[(token + 60) % len(table)] = table[token]
        twins = dataclasses.replace(task, corrupted=(task.clean + 60) % len(table))
        assert twins.unchanged == ()
        try:
            with pytest.raises(ValueError, match="do not differ in the tokens or output of any"):
                discover(model, twins, method)
        finally:
            model.W_E[:] = table


@pytest.mark.parametrize("method", ["eap", "attribution-patching"])
def test_scores_that_are_zero_but_for_rounding_are_no_ranking(method: str) -> None:
    # The divergence from the clean output has no slope at the clean output.
    task = tiny_task(2, 5, metric="kl_divergence")
    with pytest.raises(ValueError, match=f"{method} scores every edge of task 'words' zero"):
        discover(cases.model_of("gpt2"), task, method)
    assert bool(discover(cases.model_of("gpt2"), task, "eap-ig").values.any())


def test_random_is_uniform_and_seeded() -> None:
    experiment = make_experiment(cases.model_of("llama"), tiny_task())
    exists = experiment.graph.exists
    first, again, other = (random_scores(experiment, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not first[~exists].any()
    assert 0.4 < float(first[exists].mean()) < 0.6
    assert experiment.passes.forward_rows == 0
    by_position = random_scores(experiment, positions=True)
    assert by_position.shape == (*exists.shape, 6)
    assert by_position[exists].unique().numel() > 0.99 * 6 * experiment.graph.edges


def test_random_positions_need_one_length() -> None:
    experiment = make_experiment(cases.model_of("llama"), uneven_task())
    with pytest.raises(ValueError, match="one length"):
        random_scores(experiment, positions=True)


# ------------------------------------------------------------------ methods of a user's own


@pytest.fixture
def registry() -> Iterator[None]:
    """The methods are afterwards what they were."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


def twice_eap(experiment: Experiment, *, seed: int = 0, times: float = 2.0) -> Tensor:
    """Another method's scores times a number, with nonsense where there is no edge."""
    return (eap(experiment) * times).masked_fill(~experiment.graph.exists, 7.0)


@pytest.mark.usefixtures("registry")
def test_a_method_of_ones_own_runs_as_any_other() -> None:
    assert method("twice-eap", signed=False, first_order=True)(twice_eap) is twice_eap
    model, task = cases.model_of("gpt2"), tiny_task()
    known = discover(model, task, "eap")
    ours = discover(model, task, "twice-eap", times=3.0)
    assert torch.equal(ours.values, known.values * 3)
    assert (ours.forwards, ours.backwards) == (known.forwards, known.backwards)
    assert (ours.method, ours.signed, ours.metadata["times"]) == ("twice-eap", False, 3.0)
    assert METHODS["twice-eap"].first_order
    with pytest.raises(ValueError, match="twice-eap has no option 'steps'; it has times"):
        discover(model, task, "twice-eap", steps=3)
    found = compare(model, task, ["twice-eap", "random"], sample=2)
    assert [result.method for result in found.results] == ["twice-eap", "random"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("eap", r"there is a method 'eap' already; choose another name, or del METHODS\['eap'\]"),
        ("a,b", "letters, digits and hyphens; got 'a,b'"),
        ("", "letters, digits and hyphens; got ''"),
    ],
)
def test_a_name_that_is_taken_or_no_word_is_refused(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        method(name)
    assert METHODS["eap"].find is eap


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    "function",
    [
        lambda experiment: experiment,
        lambda it, *, seed=0: it,
        lambda experiment, *, seed=0, order: experiment,
    ],
)
def test_a_function_of_other_parameters_is_refused(function: Any) -> None:
    with pytest.raises(ValueError, match=r"'mine' must be a function \(experiment, \*, seed=0"):
        method("mine")(function)
    assert "mine" not in METHODS


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda shape: torch.ones(shape)[1:], r"mine must return a tensor \[destination, source\]"),
        (lambda shape: [1.0], "third axis of token positions; it returned list"),
        (lambda shape: torch.full(shape, torch.nan), "mine gave NaN or infinite scores"),
        (torch.zeros, "mine scores every edge of task 'words' zero"),
    ],
)
def test_what_a_method_returns_is_checked(returned: Any, said: str) -> None:
    method("mine")(lambda experiment, *, seed=0: returned(experiment.graph.exists.shape))
    with pytest.raises(ValueError, match=said):
        discover(cases.model_of("gpt2"), tiny_task(), "mine")


@pytest.mark.parametrize("name", METHODS)
def test_the_passes_that_a_method_states_are_those_it_takes(name: str) -> None:
    pairs = 2 if name == "acdc" else 6
    model, task = cases.model_of("llama"), tiny_task(pairs, 6)
    options = {"steps": 3} if "steps" in options_of(name) else {}
    told = passes_of(name, component_graph(model), pairs, options)
    found = discover(model, task, name, **options)
    assert told is not None
    assert found.backwards == pytest.approx(told.backwards)
    if name == "acdc":  # edges behind one that stays are run again
        assert told.forwards <= found.forwards <= 2 * told.forwards
    else:
        assert found.forwards == pytest.approx(told.forwards)


def test_the_passes_of_a_screened_search_are_those_of_its_screen() -> None:
    model, task = cases.model_of("llama"), tiny_task(2, 6)
    told = passes_of("acdc", component_graph(model), 2, {"screen": 5})
    found = discover(model, task, "acdc", screen=5)
    assert told is not None
    assert (found.backwards, told.backwards) == (1, 1)
    assert told.forwards <= found.forwards <= told.forwards + 5


@pytest.mark.usefixtures("registry")
def test_nobody_has_said_how_many_passes_a_method_of_ones_own_takes() -> None:
    method("mine")(lambda experiment, *, seed=0: experiment.graph.exists.float())
    graph = component_graph(cases.model_of("llama"))
    assert passes_of("mine", graph, 2) is None
    assert passes_of("ensemble", graph, 2, {"members": ("eap", "mine")}) is None


@pytest.mark.parametrize(
    "members", [("eap", "relp"), ("eap", "eap-ig", "node-patching"), ("ifr", "clean-corrupted")]
)
def test_the_passes_of_several_methods_share_the_runs_without_gradients(members: Any) -> None:
    model, task = cases.model_of("llama"), tiny_task(2, 6)
    told = passes_of("ensemble", component_graph(model), 2, {"members": members})
    found = discover(model, task, "ensemble", members=members)
    assert told is not None
    assert (found.forwards, found.backwards) == (told.forwards, told.backwards)
