"""The same prompts from each kind of file, whatever their values; folders; values that mislead."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path

import datasets
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strace_lens.corpus.prompts import CorpusError, CorpusPrompt
from strace_lens.corpus.read import read_corpus

# A CSV cannot hold NUL, and a lone carriage return ends its line for a reader of text.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
ROW = st.fixed_dictionaries(
    {
        "text": TEXT.filter(str.strip),
        "next": st.none() | TEXT,
        "size": st.integers(-(2**31), 2**31),
        "share": st.floats(allow_nan=False, allow_infinity=False),
        "word": st.text('xyz ,"\n', min_size=1),
    }
)


@settings(max_examples=30)
@given(st.lists(ROW, min_size=1, max_size=4))
def test_every_kind_of_file_gives_the_same_prompts(rows: list[dict[str, object]]) -> None:
    expected = [
        CorpusPrompt(
            str(row["text"]),
            None if row["next"] is None else str(row["next"]),
            {name: row[name] for name in ("size", "share", "word")},  # type: ignore[misc]
        )
        for row in rows
    ]
    frame = pd.DataFrame(rows).astype({"next": "object"})
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"x.{suffix}" for suffix in ("jsonl", "csv", "parquet")]
        paths[0].write_bytes("\n".join(map(json.dumps, rows)).encode())
        frame.to_csv(paths[1], index=False, quoting=2)
        frame.to_parquet(paths[2])
        for path in paths:
            assert read_corpus(path) == expected


def test_a_label_of_csv_is_a_number_where_json_would_say_so_all_the_way(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("text,year,code,part,nothing\na b,3,007,1,\nc d,,12,x,\n")
    assert [p.labels for p in read_corpus(path)] == [
        {"year": 3, "code": "007", "part": "1"},
        {"code": "12", "part": "x"},
    ]


def test_a_missing_value_is_no_label(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a b", "x": NaN, "y": null, "z": true, "next": ""}')
    assert read_corpus(path) == [CorpusPrompt("a b", None, {"z": True})]


def test_a_text_of_any_length(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(f"text\n{'word ' * 60_000}\n")
    assert len(read_corpus(path)[0].text) == 300_000


def test_a_folder_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [
        {"text": "a b", "next": " c", "kind": "x", "nested": {"left": "out"}},
        {"text": "", "next": None, "kind": "x", "nested": None},
    ]
    folder, torn = tmp_path / "whole", tmp_path / "torn"
    folder.mkdir()
    torn.mkdir()
    (folder / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (torn / "x.jsonl").write_text('{"text": "a b"}\noops')
    assert read_corpus(folder) == [CorpusPrompt("a b", " c", {"kind": "x"})]
    with pytest.raises(CorpusError, match="no column 'body'; there are 'text', 'next', 'kind'"):
        read_corpus(folder, text_column="body")
    with pytest.raises(CorpusError, match="cannot be loaded: JSON parse error"):
        read_corpus(torn)
    assert capfd.readouterr() == ("", "")  # neither bars nor notices
    assert logging.root.manager.disable == logging.NOTSET


def test_a_class_is_read_as_its_name(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "kind": datasets.ClassLabel(names=["sea", "sky"]),
        }
    )
    rows = {"text": ["a b", "c d", "e f"], "kind": [1, 0, None]}
    datasets.Dataset.from_dict(rows, features).save_to_disk(tmp_path / "saved")
    kinds = [p.labels for p in read_corpus(tmp_path / "saved")]
    assert kinds == [{"kind": "sky"}, {"kind": "sea"}, {}]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.jsonl", b'{"text": "\\ud800 x"}', "line 1: not JSON (half of a surrogate pair"),
        ("x.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("x.jsonl", b'{"text": "a b", "next": 3}', "'next' must be text; got 3"),
        ("x.csv", b"text,k,k\na,1,2\n", "has the column 'k' twice"),
        ("x.csv", b",text\n0,a\n", "column 1 has no name"),
        ("x.csv", b'text,k\na,1\n"b,2\n', "line 3: not CSV"),
        ("x.csv", b'text,k\n"a\nb",1\n,2\n', "line 4: 'text' is empty"),
        ("x.tsv", b"\tb\tc\td\te\tf", "line 1: 'text' is empty"),
    ],
)
def test_values_that_mislead(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CorpusError) as error:
        read_corpus(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_a_torn_parquet_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pd.DataFrame({"text": ["a b"] * 5000}).to_parquet(path)
    whole = path.read_bytes()
    for torn in (whole[: len(whole) // 2], whole[:40] + b"\xff" * 60 + whole[100:], b""):
        path.write_bytes(torn)
        with pytest.raises(CorpusError, match=r"x.parquet cannot be read as Parquet") as error:
            read_corpus(path)
        assert "\n" not in str(error.value)
