"""The projection of a trace to components, against counts over its edges one by one."""

from __future__ import annotations

import dataclasses
import math

import pandas as pd
import pytest
import torch

import strace_lens as sl
from strace_lens.circuits.circuit import (
    Circuit,
    circuit_of_edges,
    circuit_of_nodes,
    empty_circuit,
    full_circuit,
)
from strace_lens.circuits.task import TaskError
from strace_lens.circuits.wiring import component_graph
from strace_lens.comparison.projection import (
    containing_size,
    project,
    projection_of_task,
    traces_of_task,
)
from strace_lens.ground_truth.tracr import compile_program, tracr_task
from strace_lens.ground_truth.weights import model_of as model_of_weights
from strace_lens.traces.trace import Trace
from tests import cases
from tests.circuits.made import tiny_task

SIZES = (0.002, 0.03, 0.2, 0.7, 1.0)
NAMES = ["llama", "gpt_neox", *cases.HOOKED[-4:]]  # in sequence, parallel, and other shapes


def trace_of(name: str) -> Trace:
    (trace,) = traces_of_task(cases.model_of(name), tiny_task())
    return trace


def edges_by_component(trace: Trace, size: float) -> dict[str, int]:
    """Attention and MLP edges of a trace, counted one by one."""
    counts: dict[str, int] = {}
    for _, _, edge in trace.subgraph(size).to_networkx().edges(data=True):
        if edge["kind"] != "residual":
            head = edge["head"]
            name = f"m{edge['layer']}" if head is None else f"a{edge['layer']}.h{head}"
            counts[name] = counts.get(name, 0) + 1
    return counts


def some_circuit(name: str) -> Circuit:
    graph = component_graph(cases.model_of(name))
    return circuit_of_nodes(graph, ["a0.h1", "a1.h2", "a1.h3", "m0"])


def test_a_circuit_is_found_in_the_trace_component_by_component():
    trace, circuit = trace_of("llama"), some_circuit("llama")
    table = project(trace, {"mine": circuit}, SIZES)
    whole = edges_by_component(trace, 1.0)
    inside = set(circuit.nodes()) - {"embed"}
    for row, size in zip(table.itertuples(), SIZES, strict=True):
        kept = edges_by_component(trace, size)
        found = set(kept)
        assert row.edges == trace.subgraph(size).edges
        assert row.components == len(found)
        assert row.circuit_components == len(inside)
        assert row.recall == pytest.approx(len(found & inside) / len(inside))
        if found:
            assert row.precision == pytest.approx(len(found & inside) / len(found))
        else:
            assert math.isnan(row.precision)
        shares = {name: kept.get(name, 0) / edges for name, edges in whole.items()}
        mine = [share for name, share in shares.items() if name in inside]
        other = [share for name, share in shares.items() if name not in inside]
        assert row.share_inside == pytest.approx(sum(mine) / len(mine))
        assert row.share_outside == pytest.approx(sum(other) / len(other))
        wins = [(a > b) + (a == b) / 2 for a in mine for b in other]
        assert row.auroc == pytest.approx(sum(wins) / len(wins))


def test_an_edge_has_its_reader_among_the_components():
    trace = trace_of("llama")  # grouped queries: heads 2 and 3 share their keys
    circuit = circuit_of_edges(component_graph(cases.model_of("llama")), ["m0->a1.kv1<k>"])
    row = project(trace, {"one edge": circuit}, [1.0]).iloc[0]
    assert row["circuit_components"] == 3
    assert row["precision"] == pytest.approx(3 / 15)


def test_the_whole_trace_contains_every_circuit():
    trace = trace_of("llama")
    circuits = {"a": some_circuit("llama"), "all": full_circuit(some_circuit("llama").graph)}
    table = project(trace, circuits)
    assert table["circuit"].unique().tolist() == ["a", "all"]
    last = table[table["size"] == 1.0]
    assert last["recall"].tolist() == last["share_inside"].tolist() == [1.0, 1.0]
    assert last["auroc"].tolist()[0] == 0.5  # every component has all of its edges
    assert last[["auroc", "share_outside"]].iloc[1].isna().all()  # no component is outside
    for name in circuits:
        rows = table[(table["circuit"] == name) & (table["recall"] == 1)]
        assert containing_size(table, name) == rows["size"].min() <= 1.0
    assert containing_size(table, "a") <= containing_size(table, "all")


def test_a_trace_too_small_contains_no_circuit():
    table = project(trace_of("llama"), {"a": some_circuit("llama")}, [1e-5])
    assert table["components"].tolist() == [0]
    assert math.isnan(containing_size(table, "a"))


def test_an_empty_circuit_has_nothing_to_be_found():
    graph = component_graph(cases.model_of("llama"))
    row = project(trace_of("llama"), {"none": empty_circuit(graph)}, [0.5]).iloc[0]
    assert row["circuit_components"] == 0
    assert row[["recall", "auroc", "share_inside"]].isna().all()


@pytest.mark.parametrize("weights", [None, [1.0, 1.0, 1.0], [0.2, 0.0, 3.0]])
@pytest.mark.parametrize("agree", [0.4, 0.5, 1.0])
def test_an_aggregate_holds_what_most_of_its_traces_hold(weights, agree: float) -> None:
    traces = traces_of_task(cases.model_of("llama"), tiny_task(3, 6), range(3))
    circuit, sizes = some_circuit("llama"), (0.03, 0.1, 0.3)
    table = project(traces, {"mine": circuit}, sizes, weights=weights, agree=agree)
    inside, given = set(circuit.nodes()) - {"embed"}, weights or [1, 1, 1]
    for row, size in zip(table.itertuples(), sizes, strict=True):
        of_trace = [edges_by_component(trace, size) for trace in traces]
        whole = [edges_by_component(trace, 1.0) for trace in traces]
        shares, held = {}, set()
        for name in whole[0]:
            having = sum(w for w, kept in zip(given, of_trace, strict=True) if name in kept)
            if having >= agree * sum(given):
                held.add(name)
            shares[name] = sum(
                w * kept.get(name, 0) / total[name]
                for w, kept, total in zip(given, of_trace, whole, strict=True)
            ) / sum(given)
        assert row.components == len(held)
        assert row.recall == pytest.approx(len(held & inside) / len(inside))
        mine = [share for name, share in shares.items() if name in inside]
        assert row.share_inside == pytest.approx(sum(mine) / len(mine))
        assert row.edges == round(sum(t.edge_count(size) for t in traces) / 3)


def test_one_trace_is_its_own_aggregate() -> None:
    trace, circuits = trace_of("llama"), {"a": some_circuit("llama")}
    alone = project(trace, circuits, SIZES)
    pd.testing.assert_frame_equal(alone, project([trace, trace], circuits, SIZES, agree=1.0))
    pd.testing.assert_frame_equal(alone, project([trace], circuits, SIZES, weights=[0.3]))


def test_the_contrast_is_traced_under_the_corrupted_prompt() -> None:
    task, model = tiny_task(2, 6), cases.model_of("gpt2")
    for pair, trace in enumerate(traces_of_task(model, task, range(2), contrast=True)):
        graph = sl.token_graph(model, task.clean[pair].tolist())
        swap = sl.replacement(
            model, graph.prompt, "resample", corrupted=task.corrupted[pair].tolist()
        )
        target = task.answers[pair].tolist(), task.incorrect[pair].tolist()
        by_hand = sl.estimate(model, graph, "fisher", target=target, replacement=swap)
        assert all(torch.equal(a, b) for a, b in zip(trace.ranks, by_hand.ranks, strict=True))
    plain = traces_of_task(model, task, [1])[0]
    assert not torch.equal(trace.ranks.attention, plain.ranks.attention)


def test_a_task_is_projected_by_output_and_by_contrast() -> None:
    task, model = tiny_task(3, 6), cases.model_of("llama")
    circuits = {"a": some_circuit("llama")}
    table = projection_of_task(model, task, circuits, pairs=2)
    assert table is not None
    for kind, rows in table.groupby("trace"):
        traces = traces_of_task(model, task, range(2), contrast=kind == "contrast")
        alone = rows.drop(columns="trace").reset_index(drop=True)
        pd.testing.assert_frame_equal(alone, project(traces, circuits))
    assert table["trace"].unique().tolist() == ["output", "contrast"]
    unanswered = dataclasses.replace(
        tiny_task(1), incorrect=torch.full((1, 1), -1), metric="kl_divergence"
    )
    alone = projection_of_task(model, unanswered, circuits)
    assert alone is not None
    assert alone["trace"].unique().tolist() == ["output"]


def test_padding_is_no_part_of_the_prompt():
    task = tiny_task(2, 6, lengths=torch.tensor([4, 6]))
    model = cases.model_of("llama")
    for pair, length in enumerate((4, 6)):
        (trace,) = traces_of_task(model, task, [pair])
        assert list(trace.prompt.ids) == task.clean[pair, :length].tolist()
        by_hand = sl.extract(sl.token_graph(model, trace.prompt.ids))
        assert all(torch.equal(a, b) for a, b in zip(trace.ranks, by_hand.ranks, strict=True))


def test_what_does_not_fit_is_refused():
    trace, circuit = trace_of("llama"), some_circuit("llama")
    with pytest.raises(ValueError, match=r"the circuit is of tiny-gpt2.*the trace of tiny-llama"):
        project(trace, {"other": some_circuit("gpt2")})
    larger = dataclasses.replace(circuit.graph, layers=5)
    with pytest.raises(ValueError, match=r"5 layers, 4 heads.*3 layers, 4 heads"):
        project(trace, {"larger": full_circuit(larger)})
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\]; got 2"):
        project(trace, {"mine": circuit}, [2.0])
    for weights in ([1.0], [-1.0, 2.0], [0.0, 0.0], [math.nan, 1.0]):
        with pytest.raises(ValueError, match="one number of at least 0 a trace, not all 0; got"):
            project([trace, trace], {"mine": circuit}, weights=weights)
    with pytest.raises(ValueError, match=r"agree must lie in \(0, 1\]; got 0.0"):
        project(trace, {"mine": circuit}, agree=0.0)
    with pytest.raises(ValueError, match="no traces to project"):
        project([], {"mine": circuit})
    unanswered = dataclasses.replace(
        tiny_task(), incorrect=torch.full((2, 1), -1), metric="kl_divergence"
    )
    with pytest.raises(TaskError, match="pair 0 of task 'words' has no answers to contrast"):
        traces_of_task(cases.model_of("llama"), unanswered, contrast=True)
    with pytest.raises(IndexError):
        traces_of_task(cases.model_of("llama"), tiny_task(), [5])


@pytest.mark.extended
def test_a_model_that_reads_in_both_directions_has_no_trace():
    pytest.importorskip("tracr")
    compiled = compile_program("count")
    model = model_of_weights(compiled.weights, "count")
    with pytest.raises(sl.UnsupportedModelError, match="not causal"):
        traces_of_task(model, tracr_task(compiled, pairs=2))
