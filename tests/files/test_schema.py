"""What a file with the right checksum may not hold, because no result can be so."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import strace_lens as sl
from strace_lens.files.result_files import ResultFileError, read_result, write_result
from strace_lens.files.schema import read_as
from tests import tiny


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    model = tiny.bridge("llama")
    curve = sl.density_curve(model, sl.extract(sl.token_graph(model, tiny.token_ids(12))))
    path = tmp_path_factory.mktemp("curve") / "curve"
    sl.save(curve, path)
    return path.read_bytes()


def refusal_of(content: bytes, path: Path, change: Callable[[Any, Any], Any]) -> str:
    """The refusal of a curve whose facts or arrays are changed, with a checksum that is right."""
    path.write_bytes(content)
    _, arrays, facts = read_result(path, ("curve",))
    change(facts, arrays)
    write_result(path, "curve", arrays, facts)
    with pytest.raises(ResultFileError, match=f"^{path} is no whole curve: ") as raised:
        sl.load(path)
    return str(raised.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f["prompt"]["ids"].reverse(), "does not belong to the prompt"),
        (lambda f: f["prompt"].update(text=None), "its text is None"),
        (lambda f: f["shape"].update(heads=1), "its graph has"),
        (lambda f: f["shape"].update(parallel="false"), "its parallel is"),
        (lambda f: f["shape"].update(layers=10**12), "its graph has"),
        (lambda f: f["shape"].pop("layers"), "its shape is"),
        (lambda f: f.update(metadata=[]), "metadata"),
        (lambda f: f["columns"].append("missing"), "missing"),
        (lambda f: f["texts"]["top_tokens"].pop(), "top tokens"),
        (lambda f: f["texts"]["top_tokens"][0][0].__setitem__(3, "false"), "top_tokens"),
        (lambda f: f["curve"].pop("entropy"), "entropy"),
        (lambda f: f["curve"].update(entropy="1.3"), "entropy"),
        (lambda f: f["curve"].update(head=True), "head is True"),
        (lambda f: f["curve"].update(seed=0.5), "seed is 0.5"),
        (lambda f: f["curve"].update(keep=["heads"]), "unknown kind of edge 'heads'"),
        (lambda f: f["curve"].update(keep=["mlp", "mlp"]), "which is not how a curve stores it"),
    ],
)
def test_facts_that_are_nonsense_are_refused(content, tmp_path, change, words):
    assert words in refusal_of(content, tmp_path / "curve", lambda facts, _: change(facts))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        *(
            (f"table.{column}", value, repr(column))
            for column in ("tv", "head_error", "nucleus", "mlp", "trace_head_mass", "js")
            for value in (math.nan, -0.5, math.inf)
        ),
        ("table.tv", 1.5, "'tv' holds 1.5"),
        ("table.random_tv", 1.5, "'random_tv' holds 1.5"),
        ("table.kl", -1.0, "'kl' holds -1.0"),
        ("table.tv", 0.123, "do not add up to tv"),
        ("table.edges", 7, "disagree"),
        ("table.size", 0.9, "sizes must rise strictly"),
        ("order", -1, ""),
        ("order", 2**30, ""),
        ("importance", math.nan, "importance"),
    ],
)
def test_arrays_that_are_nonsense_are_refused(content, tmp_path, name, value, words):
    def change(_: Any, arrays: dict[str, torch.Tensor]) -> None:
        arrays[name][2] = value

    assert words in refusal_of(content, tmp_path / "curve", change)


class Pair(NamedTuple):
    name: str
    size: int


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, int, 1),
        (1, float, 1),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([], tuple[int, ...], ()),
        ([["a", 0.5]], tuple[tuple[str, float], ...], (("a", 0.5),)),
        (["a", 1], Pair, Pair("a", 1)),
        (None, int | None, None),
        ({"a": None}, Mapping[str, Any], {"a": None}),
    ],
)
def test_json_becomes_what_the_annotation_says(value, hint, expected):
    found = read_as(value, hint, "size")
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (True, int),
        (False, float),
        ("1", int),
        (1, bool),
        ([1, "2"], tuple[int, ...]),
        ([1], tuple[int, int]),
        (["a", 1.5], Pair),
        (["a"], Pair),
        ("ab", tuple[str, ...]),
        ([], Mapping[str, Any]),
        (None, float),
    ],
)
def test_another_kind_of_value_is_refused(value, hint):
    with pytest.raises(ValueError, match="its size"):
        read_as(value, hint, "size")
