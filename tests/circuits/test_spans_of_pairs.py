"""Spans that differ from pair to pair, against every pair alone with its spans written out."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import config
from torch import Tensor

import strace_lens as sl
from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.criteria import minimality
from strace_lens.circuits.discover.spans import crossing_scores
from strace_lens.circuits.experiment import make_experiment
from strace_lens.circuits.run_circuits import run_circuits
from strace_lens.circuits.task import Task, TaskError
from strace_lens.circuits.wiring import component_graph
from strace_lens.comparison.files import _task_hash
from tests import cases
from tests.circuits.made import double_model, single_pairs, tiny_task, uneven_task

FIRSTS = [[0, 1, 2], [0, 2, 6], [0, 3, 4]]
"""Of the pairs of `uneven_task`, which have 3, 7 and 5 tokens."""


def spanned() -> Task:
    return uneven_task().with_spans(FIRSTS)


def numbers(pair: int) -> Tensor:
    """The number of the span of each token of a pair."""
    length = int(uneven_task().lengths[pair])
    return torch.tensor([sum(first <= t for first in FIRSTS[pair]) - 1 for t in range(length)])


def random_mask(model: Any, seed: int, spans: int = 3) -> Tensor:
    exists = component_graph(model).exists
    drawn = torch.rand(*exists.shape, spans, generator=torch.Generator().manual_seed(seed))
    return exists[..., None] & (drawn < 0.6)


@pytest.mark.parametrize("ablation", ["resample", "zero"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_circuit_of_spans_is_run_on_each_pair_at_its_own_tokens(name: str, ablation: str) -> None:
    model = cases.model_of(name)
    graph = component_graph(model)
    masks = [random_mask(model, seed) for seed in range(3)]
    found = run_circuits(model, spanned(), [Circuit(graph, m) for m in masks], ablation=ablation)
    for pair, alone in enumerate(single_pairs(uneven_task())):
        written_out = [Circuit(graph, mask[..., numbers(pair)]) for mask in masks]
        truth = run_circuits(model, alone, written_out, ablation=ablation)
        torch.testing.assert_close(found[:, pair], truth[:, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["eap", "eap-ig", "relp", "clean-corrupted", "edge-patching"])
def test_scores_of_spans_are_sums_over_their_tokens(method: str) -> None:
    model = double_model("llama")
    found = sl.discover(model, spanned(), method, positions=True).values.double()
    assert found.shape[2] == 3
    truth = torch.zeros_like(found)
    for pair, alone in enumerate(single_pairs(uneven_task())):
        if method == "edge-patching":  # no sum: all tokens of a span at once
            graph, exists = component_graph(model), component_graph(model).exists
            whole = Circuit(graph, exists[..., None].expand(*exists.shape, len(numbers(pair))))
            full = run_circuits(model, alone, [whole])
            cells = [(d, s, k) for d, s in exists.nonzero()[::7].tolist() for k in range(3)]
            masks = whole.keep.repeat(len(cells), 1, 1, 1)
            for mask, (d, s, span) in zip(masks, cells, strict=True):
                mask[d, s, numbers(pair) == span] = False
            gaps = full - run_circuits(model, alone, [Circuit(graph, mask) for mask in masks])
            truth[tuple(torch.tensor(cells).T)] += gaps[:, 0].double() / 3
        else:
            own = sl.discover(model, alone, method, positions=True).values.double()
            truth.index_add_(2, numbers(pair), own / 3)
    checked = truth != 0
    assert checked.any()
    scale = float(truth.abs().max())
    torch.testing.assert_close(found[checked] / scale, truth[checked] / scale, atol=2e-5, rtol=0)


def test_peap_takes_the_spans_of_the_task() -> None:
    model = cases.model_of("mistral")
    by_span = sl.discover(model, spanned(), "peap")
    same = sl.discover(model, spanned(), "eap", positions=True)
    assert torch.equal(by_span.values, same.values)
    circuit = by_span.top(20)
    curve = sl.faithfulness(model, spanned(), by_span)
    assert circuit.keep.shape[2] == 3
    assert np.isfinite(curve.cmd)
    with pytest.raises(ValueError, match="has spans of its own; leave out spans="):
        sl.discover(model, spanned(), "peap", spans=[0, 1])
    with pytest.raises(ValueError, match="of a task's own spans are sums; got how='mean'"):
        sl.discover(model, spanned(), "peap", how="mean")


def test_what_crosses_from_span_to_span_is_a_mean_over_pairs() -> None:
    model = double_model("llama")
    found = crossing_scores(model, spanned())
    alone = [
        crossing_scores(model, one, firsts)["score"]
        for one, firsts in zip(single_pairs(uneven_task()), FIRSTS, strict=True)
    ]
    truth = np.mean(alone, 0)
    assert np.abs(truth).max() > 0
    np.testing.assert_allclose(found["score"], truth, atol=2e-5 * np.abs(truth).max())


def test_edges_dropped_from_a_circuit_of_spans_cost_what_runs_say() -> None:
    model = cases.model_of("llama")
    circuit = Circuit(component_graph(model), random_mask(model, 4))
    experiment = make_experiment(model, spanned())
    costs = minimality(experiment, circuit, sample=5)
    assert len(costs) == 5
    full, empty = sl.run_circuits(
        model,
        spanned(),
        [Circuit(circuit.graph, component_graph(model).exists), circuit & ~circuit],
    ).mean(1)
    own = sl.run_circuits(model, spanned(), [circuit]).mean()
    for edge, cost in costs.items():
        keep = circuit.keep.clone()
        name, _, place = edge.partition("@")
        cell = circuit.graph.parse_edge(name)
        assert place
        keep[(*cell, int(place))] = False
        less = sl.run_circuits(model, spanned(), [Circuit(circuit.graph, keep)]).mean()
        assert cost == pytest.approx(float((own - less) / (full - empty)), abs=1e-4)


def test_nodes_are_ablated_at_spans() -> None:
    model, task = cases.model_of("llama"), spanned()
    found = sl.ablate(model, task, nodes=["a0.h1"], positions="each")
    assert found["position"].tolist() == [0, 1, 2]
    graph = component_graph(model)
    keep = graph.exists[..., None].repeat(1, 1, 3)
    keep[:, graph.source_index("a0.h1"), 1] = False
    truth = run_circuits(model, task, [Circuit(graph, keep)]).mean()
    effect = found.loc[found["position"] == 1, "effect"].item()
    full = run_circuits(model, task, [Circuit(graph, graph.exists)]).mean()
    assert effect == pytest.approx(float(full - truth), abs=1e-5)


def test_senders_are_patched_along_paths_at_spans() -> None:
    model = cases.model_of("llama")
    found = sl.path_patch(
        model, spanned(), senders=["a0.h1"], receivers=["a1.h0.q"], positions="each"
    )
    truth = np.zeros(3)
    for pair, alone in enumerate(single_pairs(uneven_task())):
        for span in range(3):
            tokens = (numbers(pair) == span).nonzero()[:, 0].tolist()
            own = sl.path_patch(
                model, alone, senders=["a0.h1"], receivers=["a1.h0.q"], positions=[tokens]
            )
            truth[span] += own["effect"].item() / 3
    np.testing.assert_allclose(found["effect"], truth, atol=1e-5)


def test_spans_go_with_their_pairs_and_into_the_hash_of_the_task() -> None:
    task = spanned()
    part = task.take([2, 0])
    assert part.spans is not None
    assert task.spans is not None
    assert torch.equal(part.spans, task.spans[[2, 0]])
    assert task.positions == part.positions == 3
    assert uneven_task().positions == 7
    others = (uneven_task(), uneven_task().with_spans([[0, 1, 2], [0, 2, 5], [0, 3, 4]]))
    assert len({_task_hash(one) for one in (task, *others)}) == 3


@pytest.mark.parametrize(
    ("firsts", "said"),
    [
        ([[0, 1]], "spans of 1 pairs, but task 'words' has 3"),
        ([[0, 1], [0, 2], [1, 2]], "the spans of pair 2 must begin at token 0"),
        ([[0, 3], [0, 2], [0, 2]], "the spans of pair 0 must begin at token 0, rise within its 3"),
        ([[0, 1], [0, 2, 3], [0, 2]], r"pair 1 .* be as many as those of pair 0 \(2\)"),
        ([[0, 2, 2], [0, 2, 3], [0, 2, 3]], "the spans of pair 0"),
        ([[], [], []], "the spans of pair 0"),
    ],
)
def test_spans_that_do_not_fit_are_refused(firsts: Any, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        uneven_task().with_spans(firsts)


def test_spans_of_another_shape_or_below_zero_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # users run without type checks
    task = tiny_task(2, 6)
    with pytest.raises(TaskError, match=r"spans of shape \(2, 5\) for prompts of shape \(2, 6\)"):
        dataclasses.replace(task, spans=torch.zeros(2, 5, dtype=torch.int64))
    with pytest.raises(TaskError, match="spans are counted from 0; got -1"):
        dataclasses.replace(task, spans=torch.full((2, 6), -1))


def test_a_circuit_with_other_spans_is_refused_and_so_are_hooks() -> None:
    model = cases.model_of("llama")
    graph = component_graph(model)
    with pytest.raises(ValueError, match=r"has 4 token positions, .* have 3 spans"):
        run_circuits(model, spanned(), [Circuit(graph, random_mask(model, 0, spans=4))])
    found = sl.discover(model, spanned(), "peap").top(9)
    with pytest.raises(ValueError, match=r"are spans of task 'words', and task 'words' has none"):
        run_circuits(model, tiny_task(2, 3), [found])
    even = tiny_task(2, 6).with_spans([[0, 1, 2], [0, 3, 4]])
    circuit = Circuit(graph, random_mask(model, 0))
    with pytest.raises(ValueError, match="these hooks do not know of which pair a run is"):
        circuit.hooks(model, task=even)
