"""The file format itself: what is written comes back, in the same bytes, and is checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from strace_lens.files.result_files import ResultFileError, read_result, write_result
from tests.utils.test_disk import VALUES

ARRAYS = {
    "b": torch.tensor([True, False, True]),
    "a": torch.arange(6, dtype=torch.int32).view(2, 3),
    "half": torch.tensor([0.5, -1.0], dtype=torch.bfloat16),
    "wide": torch.tensor(2.5, dtype=torch.float64),
    "none": torch.zeros(0, 4),
}
FACTS = {"name": "Tōkyō", "metadata": {"seed": 3, "0": None}, "list": [1, 2.5, "x", True]}


def test_arrays_and_facts_come_back(tmp_path):
    write_result(tmp_path / "file", "thing", ARRAYS, FACTS)
    kind, arrays, facts = read_result(tmp_path / "file", ("other", "thing"))
    assert (kind, facts) == ("thing", FACTS)
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        assert torch.equal(arrays[name], array)


@pytest.mark.extended
@given(facts=st.dictionaries(st.text(), VALUES))
def test_whatever_json_can_say_comes_back(tmp_path_factory, facts):
    path = tmp_path_factory.mktemp("files") / "file"
    write_result(path, "thing", {}, facts)
    assert read_result(path, ("thing",)) == ("thing", {}, facts)


def test_it_is_a_safetensors_file_whose_arrays_lie_aligned(tmp_path):
    write_result(tmp_path / "file", "thing", ARRAYS, FACTS)
    with safe_open(tmp_path / "file", framework="pt") as file:
        assert set(file.keys()) == set(ARRAYS)
        assert list(file.metadata()) == ["strace-lens"]  # several would be in a random order
        assert json.loads(file.metadata()["strace-lens"])["kind"] == "thing"
    assert int.from_bytes((tmp_path / "file").read_bytes()[:8], "little") % 8 == 0


def test_the_order_in_which_a_result_was_put_together_does_not_show(tmp_path):
    write_result(tmp_path / "one", "thing", ARRAYS, FACTS)
    turned = {name: ARRAYS[name] for name in reversed(ARRAYS)}
    write_result(tmp_path / "two", "thing", turned, dict(reversed(FACTS.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 2**70, {1, 2}, torch.ones(2)])
def test_what_no_json_can_hold_is_refused_before_anything_is_written(tmp_path, wrong):
    with pytest.raises(ValueError, match="the thing says what no JSON can hold"):
        write_result(tmp_path / "file", "thing", ARRAYS, {"metadata": {"it": wrong}})
    assert list(tmp_path.iterdir()) == []


def refused(path: Path, words: str) -> None:
    with pytest.raises(ResultFileError, match=f"^{path} {words}"):
        read_result(path, ("thing",))


def test_another_kind_and_other_formats_are_refused_by_what_they_say(tmp_path):
    path = tmp_path / "file"
    write_result(path, "other", ARRAYS, FACTS)
    refused(path, "is no thing of strace-lens/3; it says strace-lens/3, other")
    save_file(ARRAYS, path)
    refused(path, "is no thing of strace-lens/3; it has no format and no kind")
    save_file(ARRAYS, path, {"format": "strace-lens/1", "kind": "thing", "facts": "{}"})
    refused(path, "is of the format strace-lens/1, of an earlier version.*make the result again")
    save_file(ARRAYS, path, {"strace-lens": json.dumps({"format": "strace-lens/4"})})
    refused(path, "is no thing of strace-lens/3; it says strace-lens/4, no kind")


def test_a_change_of_the_arrays_alone_is_seen(tmp_path):
    path = tmp_path / "file"
    write_result(path, "thing", ARRAYS, FACTS)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused(path, "is damaged: its content is not what its checksum was made of")
    path.write_bytes(content.replace(b'"half"', b'"calf"'))
    refused(path, "is damaged")


def test_a_header_that_is_not_strict_json_is_refused(tmp_path):
    path = tmp_path / "file"
    for said, words in (
        ("{", "not JSON"),
        ('{"a": NaN}', "NaN is no JSON number"),
        ("[" * 200_000 + "]" * 200_000, "nested too deeply"),
        ("[]", "not a JSON object but a list"),
    ):
        save_file(ARRAYS, path, {"strace-lens": said})
        with pytest.raises(ResultFileError, match=f"^{path}: .*{words}.*; its header is damaged"):
            read_result(path, ("thing",))
