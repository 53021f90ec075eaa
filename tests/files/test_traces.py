"""Results written and read back, and every way a file can be wrong."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import strace_lens as sl
from strace_lens.files.result_files import ResultFileError, read_result, write_result
from strace_lens.files.traces import save_curve
from strace_lens.traces.edges import KINDS
from tests import tiny

SIZES = (0.02, 0.1, 0.3, 0.7, 1.0)


@pytest.fixture(scope="module")
def curve() -> sl.DensityCurve:
    model = tiny.bridge("llama")
    trace = sl.extract(sl.token_graph(model, tiny.PROMPT))
    return sl.density_curve(model, trace, sizes=SIZES)


@pytest.fixture(scope="module")
def content(curve, tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "curve.safetensors"
    save_curve(curve, path)
    return path.read_bytes()


def test_a_curve_comes_back_as_it_was(curve, tmp_path):
    path = tmp_path / "curve.safetensors"
    save_curve(curve, path)
    back = sl.load_curve(path)
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
    save_curve(kept, path)
    back = sl.load_curve(path)
    assert back.keep == kept.keep == keep
    assert back.table.equals(kept.table)
    rewritten(path, lambda facts, _: facts["curve"].update(keep=[]))
    with pytest.raises(ResultFileError, match="edges that can be ablated are not its trace's"):
        sl.load_curve(path)


def test_a_trace_comes_back_and_reruns_to_the_same_curve(curve, tmp_path):
    sl.save_trace(curve.trace, tmp_path / "trace.safetensors")
    save_curve(curve, tmp_path / "curve.safetensors")
    for name in ("trace", "curve"):
        back = sl.load_trace(tmp_path / f"{name}.safetensors")
        assert all(torch.equal(a, b) for a, b in zip(back.ranks, curve.trace.ranks, strict=True))
        assert torch.equal(back.importance.flat(), curve.trace.importance.flat())
        assert (back.prompt, back.shape) == (curve.trace.prompt, curve.trace.shape)
        assert dict(back.metadata) == dict(curve.trace.metadata)
        assert sl.density_curve(tiny.bridge("llama"), back, sizes=SIZES).table.equals(curve.table)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        sl.load_curve(tmp_path / "nothing.safetensors")


@settings(max_examples=30)
@given(data=st.data())
def test_a_truncated_file_is_refused(content, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("cut") / "curve.safetensors"
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(ResultFileError, match="truncated or foreign"):
        sl.load_curve(path)


def test_foreign_files_are_refused(curve, tmp_path):
    path = tmp_path / "foreign"
    for wrong in (b"\x80\x04pickle", b"{}", b"\x00" * 100):
        path.write_bytes(wrong)
        with pytest.raises(ResultFileError):
            sl.load_curve(path)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ResultFileError, match="no curve of strace-lens/3; it has no format"):
        sl.load_curve(path)
    sl.save_trace(curve.trace, path)
    with pytest.raises(ResultFileError, match="trace"):
        sl.load_curve(path)


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]) -> None:
    """Change the facts or the arrays of a curve's file and give it a checksum that is right."""
    arrays, facts = read_result(path, ("curve",))
    change(facts, arrays)
    write_result(path, "curve", arrays, facts)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f["prompt"]["ids"].reverse(), "it does not belong to the prompt"),
        (lambda f: f["prompt"]["ids"].append(0), "strings is a list of 12, not a list of 13"),
        (lambda f: f["prompt"].update(text=None), "text is None, not a text"),
        (lambda f: f["shape"].update(heads=1), "its order is .*; its graph has 243 edges"),
        (lambda f: f["shape"].update(parallel=True), "its order is .*; its graph has 722 edges"),
        (lambda f: f["shape"].update(parallel="false"), "parallel is 'false', not true or false"),
        (lambda f: f["shape"].update(layers=10**12), "layers is 1000000000000, not a whole number"),
        (lambda f: f["shape"].pop("layers"), "shape has no 'layers'"),
        (lambda f: f["shape"].update(depth=3), "shape has a 'depth', which is not known"),
        (lambda f: f.update(metadata=[]), "metadata is a list of 0, not an object"),
        (lambda f: f.pop("curve"), "it has a 'columns', which is not known"),
        (lambda f: f["columns"].append("missing"), "it names the columns"),
        (lambda f: f["columns"].remove("tv"), "it names the columns"),
        (
            lambda f: f["texts"]["top_tokens"].pop(),
            r"top_tokens is a list of \d+, not a list of \d+",
        ),
        (lambda f: f["texts"]["top"][0][0].pop(), "top is a list of 1, not a list of 2"),
        (
            lambda f: f["texts"]["top_tokens"][0][0].__setitem__(3, "false"),
            "head is 'false', not true",
        ),
        (lambda f: f["texts"]["top"][0][0].__setitem__(1, 1.5), "a probability is 1.5, not a n"),
        (lambda f: f["curve"].pop("entropy"), "the curve has no 'entropy'"),
        (lambda f: f["curve"].update(entropy="1.3"), "entropy is '1.3', not a number"),
        (lambda f: f["curve"].update(head=True), "head is True, not a number in 0 to 1"),
        (lambda f: f["curve"].update(seed=0.5), "seed is 0.5, not a whole number"),
        (lambda f: f["curve"].update(ablation="half"), "ablation is 'half', not one of zero, mean"),
        (lambda f: f["curve"].pop("keep"), "the curve has no 'keep'"),
        (lambda f: f["curve"].update(keep="mlp"), "keep is 'mlp', not a list"),
        (lambda f: f["curve"].update(keep=["heads"]), "unknown kind of edge 'heads'"),
        (lambda f: f["curve"].update(keep=[1]), "a kind to keep is 1, not a text"),
        (
            lambda f: f["curve"].update(keep=["mlp", "mlp"]),
            r"keep is \['mlp', 'mlp'\], which no curve holds so",
        ),
        (lambda f: f["curve"].update(keep=["mlp"]), "the shares of edges that can be ablated"),
    ],
)
def test_facts_that_are_nonsense_are_refused_by_name(content, tmp_path, change, words):
    path = tmp_path / "curve.safetensors"
    path.write_bytes(content)
    rewritten(path, lambda facts, _: change(facts))
    with pytest.raises(ResultFileError, match=rf"^{path} is no whole .*: {words}"):
        sl.load_curve(path)


def set_cell(name: str, value: float, row: int = 2) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda arrays: arrays[name].__setitem__(row, value)


PARTS = (
    *("residual", "attention", "mlp", "ablatable_size"),
    *("tv", "head_error", "tail_error", "nucleus", "trace_head_mass"),
)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *(
            (set_cell(f"table.{name}", value), f"{name}, row 2 is {value}, not a number in")
            for name in (*PARTS, "js", "size")
            for value in (math.nan, -0.5, 1.5)
        ),
        *(
            (set_cell(f"table.{name}", 1.5), f"{name}, row 2")
            for name in ("random_tv", "inverse_tv", "random_inverse_tv")
        ),
        (set_cell("table.kl", -1.0), "kl, row 2 is -1.0, not a number of at least -1e-06"),
        (set_cell("table.mean_layer", -1.0), "mean_layer, row 2 is -1.0"),
        (set_cell("table.mean_layer", 3.0), "the mean layers are not its trace's"),
        (set_cell("table.mean_layer", math.nan), "the mean layers are not its trace's"),
        (set_cell("table.tv", 0.5), "head and tail do not add up to tv"),
        (set_cell("table.mlp", 0.9), "the shares of residual, attention and MLP edges"),
        (set_cell("table.ablatable_size", 0.9), "the shares of edges that can be ablated"),
        (lambda a: a.pop("table.ablatable_size"), "it names the columns"),
        (set_cell("table.edges", 7), "its sizes and edges disagree"),
        (set_cell("table.size", 0.0, 0), "its sizes do not rise from above 0"),
        (set_cell("table.size", 0.1, 2), "its sizes do not rise from above 0"),
        (lambda a: a.update({"table.tv": a["table.tv"][:4]}), "its columns are not of one length"),
        (
            lambda a: a.update({"table.tv": a["table.tv"].float()}),
            "'tv' holds float32, not float64",
        ),
        (lambda a: a.update({"table.top1": a["table.edges"] + 0}), "'top1' holds int64, not bool"),
        (lambda a: a.pop("table.tv"), "it names the columns"),
        (lambda a: a.update(more=a["order"] + 0), "it has an array 'more'"),
        (lambda a: a.pop("order"), "it has no order"),
        (lambda a: a.update(order=a["order"].long()), "its order is torch.int64"),
        (lambda a: a.update(order=a["order"][:-1]), "its order is torch.int32 of shape"),
        (set_cell("order", -1), "its order names an edge that its graph has not"),
        (set_cell("order", 2**30), "its order names an edge that its graph has not"),
        (set_cell("importance", math.nan), "its importances hold NaN or infinity"),
        (lambda a: a.update(importance=a["importance"][1:]), "its importances are torch.float32"),
    ],
)
def test_arrays_that_are_nonsense_are_refused_by_name(content, tmp_path, change, words):
    path = tmp_path / "curve.safetensors"
    path.write_bytes(content)
    rewritten(path, lambda _, arrays: change(arrays))
    with pytest.raises(ResultFileError, match=rf"^{path} is no whole .*: .*{re.escape(words)}"):
        sl.load_curve(path)


def test_an_order_that_takes_an_edge_twice_is_refused(content, tmp_path):
    path = tmp_path / "curve.safetensors"
    path.write_bytes(content)
    rewritten(path, lambda _, arrays: arrays["order"].__setitem__(0, arrays["order"][1]))
    with pytest.raises(
        ResultFileError, match=rf"^{path} does not rank every edge of its graph once"
    ):
        sl.load_trace(path)


def test_a_column_that_no_curve_has_is_refused_before_anything_is_written(curve, tmp_path):
    for table, words in (
        (curve.table.assign(speed=1.0), "the column 'speed' is missing or not known"),
        (curve.table.drop(columns="kl"), "the column 'kl' is missing or not known"),
        (curve.table.assign(tv=math.nan), "tv, row 0 is nan"),
    ):
        with pytest.raises(ValueError, match=words):
            save_curve(dataclasses.replace(curve, table=table), tmp_path / "curve.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(curve, tmp_path, monkeypatch):
    path = tmp_path / "curve.safetensors"
    save_curve(curve, path)
    before = path.read_bytes()

    def no_space(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="no space"):
        sl.save_trace(curve.trace, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["curve.safetensors"]
