"""Results written and read back, and every way a file can be wrong."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import strace_lens as sl
from strace_lens.storage import ResultFileError
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
    curve.save(path)
    return path.read_bytes()


def test_a_curve_comes_back_as_it_was(curve, tmp_path):
    path = tmp_path / "curve.safetensors"
    curve.save(path)
    back = sl.load_curve(path)
    assert back.table.equals(curve.table)
    assert repr(back) == repr(curve)
    for name in ("top", "entropy", "head", "head_mass", "logit_gap", "ablation", "seed"):
        assert getattr(back, name) == getattr(curve, name)
    assert [p.name for p in tmp_path.iterdir()] == ["curve.safetensors"]


def test_a_trace_comes_back_and_reruns_to_the_same_curve(curve, tmp_path):
    sl.save_trace(curve.trace, tmp_path / "trace.safetensors")
    curve.save(tmp_path / "curve.safetensors")
    for name in ("trace", "curve"):
        back = sl.load_trace(tmp_path / f"{name}.safetensors")
        assert all(torch.equal(a, b) for a, b in zip(back.ranks, curve.trace.ranks, strict=True))
        assert torch.equal(back.importance.flat(), curve.trace.importance.flat())
        assert (back.prompt, back.shape) == (curve.trace.prompt, curve.trace.shape)
        assert dict(back.made) == dict(curve.trace.made)
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
    with pytest.raises(ResultFileError, match="no curve of strace-lens/1"):
        sl.load_curve(path)
    sl.save_trace(curve.trace, path)
    with pytest.raises(ResultFileError, match="trace"):
        sl.load_curve(path)


def rewritten(content: bytes, change) -> bytes:
    """The file with its metadata changed, all lengths right."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    facts = json.loads(header["__metadata__"]["facts"])
    change(facts)
    header["__metadata__"]["facts"] = json.dumps(facts)
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded + content[8 + length :]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f["prompt"]["ids"].reverse(), "does not belong to the prompt"),
        (lambda f: f["shape"].update(heads=1), "whole trace|rank every edge"),
        (lambda f: f["shape"].update(parallel=True), "whole trace|rank every edge"),
        (lambda f: f["shape"].pop("layers"), "whole trace"),
        (lambda f: f["columns"].append("missing"), "no whole density curve"),
        (lambda f: f["texts"]["beside"].pop(), "no whole density curve"),
        (lambda f: f["curve"].pop("entropy"), "no whole density curve"),
    ],
)
def test_inconsistent_metadata_is_refused(content, tmp_path, change, words):
    path = tmp_path / "curve.safetensors"
    path.write_bytes(rewritten(content, change))
    with pytest.raises(ResultFileError, match=words):
        sl.load_curve(path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(curve, tmp_path, monkeypatch):
    path = tmp_path / "curve.safetensors"
    curve.save(path)
    before = path.read_bytes()

    def no_space(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="no space"):
        sl.save_trace(curve.trace, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["curve.safetensors"]
