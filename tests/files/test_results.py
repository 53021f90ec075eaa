"""Results written and read back, and the ways in which a file can be wrong."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import strace_lens as sl
from strace_lens.circuits.circuit import Circuit, circuit_of_edges
from strace_lens.circuits.graph import ComponentGraph
from strace_lens.circuits.run_circuits import run_circuits
from strace_lens.circuits.scores import Scores
from strace_lens.circuits.wiring import component_graph
from strace_lens.files.result_files import ResultFileError, read_result, write_result
from strace_lens.files.results import load, save
from strace_lens.utils.choices import KINDS
from tests import cases, tiny
from tests.circuits.made import random_keep, tiny_task

SIZES = (0.02, 0.1, 0.3, 0.7, 1.0)


@pytest.fixture(scope="module")
def curve() -> sl.DensityCurve:
    model = tiny.bridge("llama")
    trace = sl.extract(sl.token_graph(model, tiny.PROMPT))
    return sl.density_curve(model, trace, sizes=SIZES)


@pytest.fixture(scope="module")
def content(curve, tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "curve.safetensors"
    sl.save(curve, path)
    return path.read_bytes()


def test_a_curve_comes_back_as_it_was(curve, tmp_path):
    path = tmp_path / "curve.safetensors"
    sl.save(curve, path)
    back = sl.load(path, sl.DensityCurve)
    assert back.table.equals(curve.table)
    assert repr(back) == repr(curve)
    facts = ("top", "tops", "top_tokens", "entropy", "head", "head_mass", "logit_gap")
    for name in (*facts, "ablation", "seed", "keep"):
        assert getattr(back, name) == getattr(curve, name)
    assert [p.name for p in tmp_path.iterdir()] == ["curve.safetensors"]


@pytest.mark.parametrize("keep", [("attention",), ("residual", "mlp"), KINDS])
def test_a_curve_comes_back_with_the_kinds_that_it_keeps(curve, tmp_path, keep):
    path = tmp_path / "curve.safetensors"
    model = tiny.bridge("llama")
    kept = sl.density_curve(model, curve.trace, sizes=SIZES, refine=0, keep=keep)
    sl.save(kept, path)
    back = sl.load(path, sl.DensityCurve)
    assert back.keep == kept.keep == keep
    assert back.table.equals(kept.table)


def test_a_trace_comes_back_and_reruns_to_the_same_curve(curve, tmp_path):
    sl.save(curve.trace, tmp_path / "trace.safetensors")
    sl.save(curve, tmp_path / "curve.safetensors")
    whole = sl.load(tmp_path / "curve.safetensors", sl.DensityCurve)
    for back in (sl.load(tmp_path / "trace.safetensors", sl.Trace), whole.trace):
        assert all(torch.equal(a, b) for a, b in zip(back.ranks, curve.trace.ranks, strict=True))
        assert torch.equal(back.importance.flat(), curve.trace.importance.flat())
        assert (back.prompt, back.shape) == (curve.trace.prompt, curve.trace.shape)
        assert dict(back.metadata) == dict(curve.trace.metadata)
        assert sl.density_curve(tiny.bridge("llama"), back, sizes=SIZES).table.equals(curve.table)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        sl.load(tmp_path / "nothing.safetensors", sl.DensityCurve)


@settings(max_examples=30)
@given(data=st.data())
def test_a_truncated_file_is_refused(content, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("cut") / "curve.safetensors"
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(ResultFileError, match="truncated or foreign"):
        sl.load(path, sl.DensityCurve)


def test_foreign_files_are_refused(curve, tmp_path):
    path = tmp_path / "foreign"
    for wrong in (b"\x80\x04pickle", b"{}", b"\x00" * 100):
        path.write_bytes(wrong)
        with pytest.raises(ResultFileError):
            sl.load(path, sl.DensityCurve)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ResultFileError, match="no curve of strace-lens/3; it has no format"):
        sl.load(path, sl.DensityCurve)
    sl.save(curve.trace, path)
    with pytest.raises(ResultFileError, match="it says strace-lens/3, trace"):
        sl.load(path, sl.DensityCurve)


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]) -> None:
    """Change the facts or the arrays of a curve's file and give it a checksum that is right."""
    kind, arrays, facts = read_result(path, ("curve",))
    change(facts, arrays)
    write_result(path, kind, arrays, facts)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f, _: f["prompt"]["ids"].reverse(), "it does not belong to the prompt"),
        (lambda f, _: f["shape"].update(heads=1), "its order is .*; its graph has 243 edges"),
        (lambda f, _: f["shape"].update(layers=10**12), "its order is .*; its graph has"),
        (lambda f, _: f["shape"].update(depth=3), "depth"),
        (lambda f, _: f.pop("curve"), "'curve'"),
        (lambda _, a: a.pop("table.tv"), "'table.tv'"),
        (lambda _, a: a.update(order=a["order"][:-1]), "its order is torch.int32 of shape"),
        (lambda _, a: a["order"].__setitem__(0, a["order"][1]), "it does not rank every edge of"),
        (lambda _, a: a["order"].__setitem__(0, 2**30), "index"),
    ],
)
def test_what_does_not_fit_together_is_refused_by_name(content, tmp_path, change, words):
    path = tmp_path / "curve.safetensors"
    path.write_bytes(content)
    rewritten(path, change)
    with pytest.raises(ResultFileError, match=rf"^{path} is no whole curve: .*{words}"):
        sl.load(path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(curve, tmp_path, monkeypatch):
    path = tmp_path / "curve.safetensors"
    sl.save(curve, path)
    before = path.read_bytes()

    def no_space(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="no space"):
        sl.save(curve.trace, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["curve.safetensors"]


# ------------------------------------------------------------------ circuits and scores

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
    save(circuit, tmp_path / "c.safetensors")
    back = load(tmp_path / "c.safetensors", Circuit)
    assert torch.equal(back.keep, circuit.keep)
    assert back.keep.dtype == circuit.keep.dtype
    assert (back.graph, back.metadata) == (circuit.graph, circuit.metadata)
    assert back.edge_names() == circuit.edge_names()
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize("positions", [(), (5,)])
def test_scores_come_back_as_they_were(tmp_path, positions):
    scores = made_scores(*positions)
    save(scores, tmp_path / "s")
    back = load(tmp_path / "s", Scores)
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
    save(circuit, tmp_path / "c")
    back = load(tmp_path / "c", Circuit)
    runs = run_circuits(model, tiny_task(), [circuit, back])
    assert torch.equal(runs[0], runs[1])
    with pytest.raises(ValueError, match="belongs to tiny-gpt2"):
        run_circuits(cases.model_of("llama"), tiny_task(), [back])


def test_a_circuit_is_not_read_where_scores_are_wanted(tmp_path):
    save(made_scores().top(10), tmp_path / "c")
    with pytest.raises(ResultFileError, match=r"no scores of strace-lens/3; it says .*, circuit"):
        load(tmp_path / "c", Scores)
    assert isinstance(load(tmp_path / "c"), Circuit)
    with pytest.raises(TypeError, match="save"):
        save(cast(Any, GRAPH.exists), tmp_path / "c")


@pytest.mark.parametrize("change", [{"layers": 3}, {"colour": "red"}, {"heads": 1}])
def test_a_graph_that_does_not_fit_its_values_is_refused(tmp_path, change):
    for found in (made_scores(), made_scores().top(10)):
        save(found, tmp_path / "f")
        kind, arrays, facts = read_result(tmp_path / "f", ("scores", "circuit"))
        write_result(tmp_path / "f", kind, arrays, {**facts, "graph": facts["graph"] | change})
        with pytest.raises(ResultFileError, match=f"^{tmp_path / 'f'} is no whole {kind}"):
            load(tmp_path / "f")


def test_what_no_json_can_hold_is_refused_before_anything_is_written(tmp_path):
    circuit = Circuit(GRAPH, GRAPH.exists, {"weights": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"the circuit says what no JSON can hold.*Tensor"):
        save(circuit, tmp_path / "c")
    assert list(tmp_path.iterdir()) == []
