"""Circuits and scores written and read back, and every way a file can be wrong."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from strace_lens.circuits.circuit import Circuit, Scores, circuit_of_edges
from strace_lens.circuits.graph import ComponentGraph
from strace_lens.circuits.run_circuits import run_circuits
from strace_lens.circuits.wiring import component_graph
from strace_lens.files.circuits import load_circuit, load_scores, save_circuit, save_scores
from strace_lens.files.result_files import ResultFileError, write_result
from tests import cases
from tests.circuits.made import random_keep, tiny_task

GRAPH = ComponentGraph("made", layers=2, heads=4, kv_heads=2)
MADE = {"seed": 3, "ablation": "resample", "tau": 0.5}


def made_scores(*positions: int) -> Scores:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(*GRAPH.exists.shape, *positions, generator=generator)
    costs = {"forwards": 2.0, "backwards": 1.5, "seconds": 0.25}
    return Scores(GRAPH, values, "acdc", "ioi", **costs, signed=False, metadata=MADE)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("positions", [0, 5])
def test_a_circuit_comes_back_as_it_was(tmp_path, soft, positions):
    circuit = Circuit(GRAPH, random_keep(GRAPH, 1, soft=soft, positions=positions), MADE)
    save_circuit(circuit, tmp_path / "c.safetensors")
    back = load_circuit(tmp_path / "c.safetensors")
    assert torch.equal(back.keep, circuit.keep)
    assert back.keep.dtype == circuit.keep.dtype
    assert (back.graph, back.metadata) == (circuit.graph, circuit.metadata)
    assert back.edge_names() == circuit.edge_names()
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize("positions", [(), (5,)])
def test_scores_come_back_as_they_were(tmp_path, positions):
    scores = made_scores(*positions)
    save_scores(scores, tmp_path / "s")
    back = load_scores(tmp_path / "s")
    assert torch.equal(back.values, scores.values)
    for field in dataclasses.fields(Scores):
        if field.name == "seconds":  # how long it took is no part of what was found
            assert math.isnan(back.seconds)
        elif field.name != "values":
            assert getattr(back, field.name) == getattr(scores, field.name)
    assert back.top(9).edge_names() == scores.top(9).edge_names()


def test_a_circuit_read_back_runs_on_its_model_and_on_no_other(tmp_path):
    model = cases.model_of("gpt2")
    circuit = circuit_of_edges(component_graph(model), ["embed->a1.h2<q>", "m0->logits"])
    save_circuit(circuit, tmp_path / "c")
    back = load_circuit(tmp_path / "c")
    runs = run_circuits(model, tiny_task(), [circuit, back])
    assert torch.equal(runs[0], runs[1])
    with pytest.raises(ValueError, match="belongs to tiny-gpt2"):
        run_circuits(cases.model_of("llama"), tiny_task(), [back])


# ------------------------------------------------------------------ wrong files

LOADERS = [load_circuit, load_scores]


@pytest.fixture(scope="module")
def contents(tmp_path_factory) -> dict[Callable, bytes]:
    folder = tmp_path_factory.mktemp("saved")
    save_circuit(made_scores().top(10), folder / "c")
    save_scores(made_scores(), folder / "s")
    return dict(zip(LOADERS, [(folder / n).read_bytes() for n in "cs"], strict=True))


@pytest.mark.parametrize("load", LOADERS)
def test_a_missing_file_is_named(load, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nothing"):
        load(tmp_path / "nothing")


@settings(max_examples=30)
@given(data=st.data())
def test_a_truncated_file_is_refused(contents, tmp_path_factory, data):
    load = data.draw(st.sampled_from(LOADERS))
    path = tmp_path_factory.mktemp("cut") / "file"
    path.write_bytes(contents[load][: data.draw(st.integers(0, len(contents[load]) - 1))])
    with pytest.raises(ResultFileError, match="truncated or foreign"):
        load(path)


def test_foreign_files_are_refused(contents, tmp_path):
    path = tmp_path / "foreign"
    for load, other in zip(LOADERS, LOADERS[::-1], strict=True):
        for wrong in (b"\x80\x04pickle", b"{}", b"\x00" * 100):
            path.write_bytes(wrong)
            with pytest.raises(ResultFileError):
                load(path)
        save_file({"weight": torch.zeros(3)}, path)
        with pytest.raises(ResultFileError, match="it has no format and no kind"):
            load(path)
        path.write_bytes(contents[other])
        with pytest.raises(
            ResultFileError, match=r"is no (circuit|scores) of strace-lens/3; it says"
        ):
            load(path)


WHOLE_GRAPH = {
    **{"model": "made", "layers": 2, "heads": 4, "kv_heads": 2},
    **{"mlp": True, "parallel": False},
}
CIRCUIT_FACTS = {"graph": WHOLE_GRAPH, "metadata": {}}
FACTS = {
    **{**CIRCUIT_FACTS, "method": "eap", "task": "ioi", "effects": True},
    **{"forwards": 1.0, "backwards": 0.0},
}
CELLS = GRAPH.exists.shape


def refused(path: Path, facts: dict, circuit: torch.Tensor, values: torch.Tensor) -> None:
    own = {name: fact for name, fact in facts.items() if name in CIRCUIT_FACTS}
    write_result(path, "circuit", {"keep": circuit}, own)
    with pytest.raises(ResultFileError, match="no whole circuit"):
        load_circuit(path)
    write_result(path, "scores", {"values": values}, facts)
    with pytest.raises(ResultFileError, match="no whole scores"):
        load_scores(path)


def test_these_facts_and_cells_are_whole(tmp_path):
    write_result(tmp_path / "c", "circuit", {"keep": GRAPH.exists}, CIRCUIT_FACTS)
    assert len(load_circuit(tmp_path / "c")) == GRAPH.edges
    write_result(tmp_path / "s", "scores", {"values": torch.zeros(CELLS)}, FACTS)
    assert load_scores(tmp_path / "s").forwards == 1.0


@pytest.mark.parametrize(
    "change",
    [
        {"layers": 3},
        {"layers": 2**31},
        {"layers": True},
        {"model": None},
        {"layers": 0},
        {"heads": 4.0},
        {"heads": "4"},
        {"kv_heads": 3},
        {"mlp": 1},
        {"parallel": None},
        {"colour": "red"},
    ],
)
def test_a_graph_that_does_not_fit_is_refused(tmp_path, change):
    facts = {**FACTS, "graph": {**WHOLE_GRAPH, **change}}
    refused(tmp_path / "f", facts, GRAPH.exists, torch.zeros(CELLS))


@pytest.mark.parametrize("missing", ["graph", "metadata"])
def test_facts_that_are_missing_are_refused(tmp_path, missing):
    facts = {name: fact for name, fact in FACTS.items() if name != missing}
    refused(tmp_path / "f", facts, GRAPH.exists, torch.zeros(CELLS))


@pytest.mark.parametrize(
    "change",
    [
        {"forwards": None},
        {"forwards": -1.0},
        {"backwards": "2"},
        {"graph": None},
        {"metadata": 3},
        {"effects": "no"},
        {"method": 3},
        {"task": None},
        {"seconds": 2.0},
    ],
)
def test_facts_of_another_type_are_refused(tmp_path, change):
    write_result(tmp_path / "f", "scores", {"values": torch.zeros(CELLS)}, {**FACTS, **change})
    with pytest.raises(ResultFileError, match="no whole scores"):
        load_scores(tmp_path / "f")


@pytest.mark.parametrize(
    ("circuit", "values"),
    [
        (torch.ones(3, 3, dtype=torch.bool), torch.zeros(3, 3)),
        (torch.ones(7, dtype=torch.bool), torch.zeros(7)),
        (torch.ones(CELLS, dtype=torch.int32), torch.zeros(CELLS, dtype=torch.int32)),
        (torch.full(CELLS, 2.0), torch.full(CELLS, torch.inf)),
        (torch.full(CELLS, torch.nan), torch.full(CELLS, torch.nan)),
    ],
)
def test_values_that_are_no_edges_are_refused(tmp_path, circuit, values):
    refused(tmp_path / "f", FACTS, circuit, values)


def test_an_array_of_another_name_is_refused(tmp_path):
    write_result(tmp_path / "c", "circuit", {"kept": GRAPH.exists}, CIRCUIT_FACTS)
    with pytest.raises(ResultFileError, match="no whole circuit: it has no 'keep'"):
        load_circuit(tmp_path / "c")


def test_what_no_json_can_hold_is_refused_before_anything_is_written(tmp_path):
    circuit = Circuit(GRAPH, GRAPH.exists, {"weights": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"the circuit says what no JSON can hold.*Tensor"):
        save_circuit(circuit, tmp_path / "c")
    assert list(tmp_path.iterdir()) == []
