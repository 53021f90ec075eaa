"""Prompts from every kind of file and data set, and one clear line for each that is none."""

from __future__ import annotations

import datetime
import json
import logging
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strace_lens.corpus.prompts import CorpusError, CorpusPrompt
from strace_lens.corpus.read import read_corpus
from strace_lens.utils.choices import BUILTIN

ROWS = [
    {"text": "The sea is", "next": " blue", "kind": "a", "year": 3},
    {"text": "The sky, too, is", "next": None, "kind": "b", "year": 4},
]
PROMPTS = [
    CorpusPrompt("The sea is", " blue", {"kind": "a", "year": 3}),
    CorpusPrompt("The sky, too, is", None, {"kind": "b", "year": 4}),
]


def written(folder: Path, suffix: str) -> Path:
    path = folder / f"prompts.{suffix}"
    frame = pd.DataFrame(ROWS)
    if suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)) + "\n")
    elif suffix == "csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_named_columns(suffix: str, tmp_path: Path) -> None:
    assert read_corpus(written(tmp_path, suffix)) == PROMPTS
    assert read_corpus(written(tmp_path, suffix), limit=1) == PROMPTS[:1]


def test_other_names_of_columns(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("passage,after\na b c, d\n")
    found = read_corpus(path, text_column="passage", next_column="after")
    assert found == [CorpusPrompt("a b c", " d")]


def test_lines_of_text(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"one line\r\n\n  spaces stay \nlast")
    assert [p.text for p in read_corpus(path)] == ["one line", "  spaces stay ", "last"]


def test_prompt_stands_for_text(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "a b", "wrong": 2}')
    assert read_corpus(path) == [CorpusPrompt("a b", None, {"wrong": 2})]


@pytest.mark.parametrize("header", [True, False])
def test_the_tsv_of_the_paper_s_authors(header: bool, tmp_path: Path) -> None:
    lines = ["context\tlast\tpos\tnext\tnext pos\tnext token"] * header
    lines += ['He said "no', "x\t"][:1]
    lines[-1] = 'He said "no\tno\tUH\tway\tNN\tĠway'
    path = tmp_path / "x.tsv"
    path.write_text("\n".join(lines))
    labels = {"last_word": "no", "last_pos": "UH", "next_word": "way", "next_pos": "NN"}
    assert read_corpus(path) == [CorpusPrompt('He said "no', " way", labels)]


def test_the_authors_own_files_are_named_txt(tmp_path: Path) -> None:
    line = "The sea\tsea\tNN\tis\tVBZ\t\u0120is"
    labels = {"last_word": "sea", "last_pos": "NN", "next_word": "is", "next_pos": "VBZ"}
    path = tmp_path / "x.txt"
    path.write_text(f"{line}\n{line}\n")
    assert read_corpus(path) == [CorpusPrompt("The sea", " is", labels)] * 2
    path.write_text("\tif x:\n\t\treturn y\n")
    assert [p.text for p in read_corpus(path)] == ["\tif x:", "\t\treturn y"]
    path.write_text(f"{line}\na line of text\n")
    assert [p.text for p in read_corpus(path)] == [line, "a line of text"]


@pytest.mark.parametrize("header", ["", "context\tnext token\n"])
def test_a_context_and_its_next_token(header: str, tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_text(f"{header}The sea\t\u0120is\nun\tlike\n")
    assert read_corpus(path) == [CorpusPrompt("The sea", " is"), CorpusPrompt("un", "like")]


def test_a_header_with_spaces_behind_its_commas(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("text, next, year\nThe sea is, blue,3\n")
    assert read_corpus(path) == [CorpusPrompt("The sea is", " blue", {"year": 3})]


@pytest.mark.parametrize("packing", ["gz", "bz2", "zst", "lz4"])
def test_packed_files(packing: str, tmp_path: Path) -> None:
    for suffix in ("jsonl", "csv"):
        plain = written(tmp_path, suffix)
        path = tmp_path / f"{plain.name}.{packing}"
        codec = {"gz": "gzip", "zst": "zstd"}.get(packing, packing)
        with pa.output_stream(str(path), compression=codec) as stream:
            stream.write(plain.read_bytes())
        assert read_corpus(path) == PROMPTS


def test_json_is_a_list_of_objects_or_an_object_a_line(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(ROWS, indent=1))
    assert read_corpus(path) == PROMPTS
    path.write_text("\n".join(map(json.dumps, ROWS)))
    assert read_corpus(path) == PROMPTS


def test_no_source_is_not_the_folder_that_one_is_in() -> None:
    for source in ("", "  "):
        with pytest.raises(ValueError, match="the source is empty; name a file, a folder"):
            read_corpus(source)


@pytest.mark.parametrize(
    ("column", "value"), [("day", datetime.date(2020, 1, 1)), ("list", [1, 2]), ("text", None)]
)
def test_values_that_are_no_label_are_refused_by_their_row(
    column: str, value: object, tmp_path: Path
) -> None:
    rows = [{"text": "a b", column: None}, {"text": "c d", column: value}]
    rows[0] |= {"text": "a b"}
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(CorpusError, match=rf"x\.parquet, row 2: .*{column}.*; (drop|fill)"):
        read_corpus(path)


def test_a_null_text_and_another_encoding_in_a_folder_are_named(tmp_path: Path) -> None:
    rows = [{"text": "a b"}, {"text": None}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "null")
    with pytest.raises(CorpusError, match="null, row 2: 'text' must be text; got None; fill it in"):
        read_corpus(tmp_path / "null")
    (tmp_path / "latin").mkdir()
    (tmp_path / "latin" / "x.txt").write_bytes("caf\xe9 noir\n".encode("latin1"))
    with pytest.raises(CorpusError, match=r"x\.txt, line 1: not UTF-8 \(byte 3 is 0xE9\)"):
        read_corpus(tmp_path / "latin")


def test_a_folder_that_datasets_saved(tmp_path: Path) -> None:
    rows = [*ROWS, {"text": "  ", "next": None, "kind": "c", "year": 5}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "one")
    assert read_corpus(tmp_path / "one") == PROMPTS
    parts = datasets.DatasetDict({"test": datasets.Dataset.from_list(ROWS)})
    parts.save_to_disk(tmp_path / "parts")
    assert read_corpus(tmp_path / "parts", split="test") == PROMPTS
    assert read_corpus(tmp_path / "parts") == PROMPTS
    with pytest.raises(CorpusError, match="no split 'train'; there are 'test'"):
        read_corpus(tmp_path / "parts", split="train")


def test_the_split_of_a_single_saved_data_set_is_no_other(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "none")
    datasets.Dataset.from_list(ROWS, split="validation").save_to_disk(tmp_path / "one")
    for name, split in (("none", None), ("one", None), ("one", "validation")):
        assert read_corpus(tmp_path / name, split=split) == PROMPTS
    with pytest.raises(CorpusError, match=r"one is the split 'validation' alone, and 'test' was"):
        read_corpus(tmp_path / "one", split="test")
    with pytest.raises(CorpusError, match=r"none is one data set without splits, and 'train' was"):
        read_corpus(tmp_path / "none", split="train")
    with pytest.raises(ValueError, match="builtin has no splits, and 'test' was asked for"):
        read_corpus(BUILTIN, split="test")
    with pytest.raises(ValueError, match=r"x\.jsonl has no splits, and 'test' was asked for"):
        read_corpus(written(tmp_path, "jsonl").rename(tmp_path / "x.jsonl"), split="test")


def test_a_name_of_the_hub_without_a_network_is_one_line() -> None:
    with pytest.raises(CorpusError, match="no/such is no file or folder, and as a data set") as e:
        read_corpus("no/such")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.txt", b"", "is empty"),
        ("x.jsonl", b"\n\n", "is empty"),
        ("x.csv", b"", "is empty"),
        ("x.txt", b"a\x00b", "is a binary file"),
        ("x.txt", b"a\n\xff\xfe", "line 2: not UTF-8"),
        ("x.jsonl", b'{"text": "a b"}\noops', "line 2: not JSON"),
        ("x.jsonl", b"[1]", "not a JSON object but a list"),
        ("x.jsonl", b'{"body": "a b"}', "no 'text'; there are 'body'"),
        ("x.jsonl", b'{"text": 3}', "'text' must be text; got 3"),
        ("x.jsonl", b'{"text": " "}', "'text' is empty"),
        ("x.jsonl", b'{"text": "a b", "tags": ["x"]}', "label 'tags' must be text, a number"),
        ("x.csv", b"body\na b", "no column 'text'; there are 'body'"),
        ("x.csv", b"text\na,b\n", "2 cells under a header of 1"),
        ("x.tsv", b"a\tb\tc\n", "a TSV has 6 columns"),
        ("x.tsv", b"a\tb\na b\tc\td\n", "line 2: a TSV has 6 columns"),
        ("x.txt", b"a b\tc\nd e\tf\n", "is a table: each line has 2 columns separated by tabs"),
        ("x.json", b'{"text":\n "a b"}', "line 1: not JSON"),
        ("x.json", b"[1]", "object 1: not a JSON object but a int"),
        ("x.jsonl", b'{"text": "a b", " next": " c"}', "' next' has a space at its ends"),
        ("x.jsonl", b'{"text": "a b", "n": 1e400}', "line 1: not JSON"),
        ("x.csv", b"text\ncaf\xe9 noir\n", "line 2: not UTF-8"),
        ("x.jsonl.gz", b"\x1f\x8b\x08 no more", "cannot be unpacked as gzip"),
        ("x.parquet.gz", b"a", "prompts are read from .txt"),
        ("x.zst", b"a", "prompts are read from .txt"),
        ("x.parquet", b"PAR1 but no more", "cannot be read as Parquet"),
        ("x.docx", b"a", "prompts are read from .txt"),
    ],
)
def test_what_is_no_corpus(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CorpusError, match=said.replace("(", r"\(")) as error:
        read_corpus(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_no_file_and_no_limit(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_corpus(tmp_path / "x.jsonl")
    with pytest.raises(ValueError, match="limit must be at least 1; got 0"):
        read_corpus(BUILTIN, limit=0)


def test_the_builtin_prompts() -> None:
    prompts: list[Any] = read_corpus(BUILTIN)
    assert Counter(p.labels["kind"] for p in prompts) == dict.fromkeys(
        [
            *("encyclopedic", "narrative", "code", "arithmetic"),
            *("dialogue", "list", "other language", "random tokens"),
        ],
        13,
    )
    assert len({p.text for p in prompts}) == 104
    assert all(p.text == p.text.strip() for p in prompts)
    random = [p.next for p in prompts if p.labels["kind"] == "random tokens"]
    assert random == [None] * 13
    assert sum(p.next is None for p in prompts) == 13


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
