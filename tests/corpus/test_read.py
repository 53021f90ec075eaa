"""Prompts from every kind of file, and one clear line for each that is none."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from strace_lens.corpus.prompts import CorpusError, CorpusPrompt
from strace_lens.corpus.read import CARRIED, read_corpus

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


def test_a_folder_that_datasets_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [*ROWS, {"text": "  ", "next": None, "kind": "c", "year": 5}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "one")
    assert read_corpus(tmp_path / "one") == PROMPTS
    parts = datasets.DatasetDict({"test": datasets.Dataset.from_list(ROWS)})
    parts.save_to_disk(tmp_path / "parts")
    assert read_corpus(tmp_path / "parts", split="test") == PROMPTS
    with pytest.raises(CorpusError, match="no split 'train'; there are 'test'"):
        read_corpus(tmp_path / "parts")


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
        ("x.tsv", b"a\tb\n", "a TSV has 6 columns"),
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
        read_corpus(CARRIED, limit=0)


def test_the_carried_prompts() -> None:
    prompts: list[Any] = read_corpus(CARRIED)
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
