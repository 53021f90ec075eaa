"""A user's own task from a file: what is read, and each way a line can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from strace_lens.circuits.task import Task, TaskError
from strace_lens.circuits.tasks.read import read_task
from tests import cases, tiny

LINE: dict[str, Any] = {
    "clean": "the capital of France is",
    "corrupted": "the capital of Italy is",
    "answers": " Paris",
    "wrong_answers": [" Rome", " London"],
}


def read(folder: Path, *lines: dict[str, Any] | str | bytes, **options: Any) -> Task:
    path = folder / "mine.jsonl"
    raw = [line if isinstance(line, str | bytes) else json.dumps(line) for line in lines]
    path.write_bytes(b"\n".join(r if isinstance(r, bytes) else r.encode() for r in raw))
    return read_task(cases.model_of("llama"), path, **options)


def ids(*words: str) -> list[int]:
    return tiny.tokenizer().convert_tokens_to_ids(list(words))


def test_lines_become_pairs(tmp_path: Path) -> None:
    second = {
        "clean": "the city of Tokyo is in",
        "corrupted": "the city of London is in",
        "answers": [" Japan", " Japan"],
        "wrong_answers": [" England"],
        "note": "other keys are left alone",
    }
    task = read(tmp_path, LINE, second, "", "", metric="answer_rank")
    assert task.clean.tolist() == [
        [*ids("the", "capital", "of", "France", "is"), 0],
        ids("the", "city", "of", "Tokyo", "is", "in"),
    ]
    assert task.corrupted[0, 3] == ids("Italy")[0]
    assert task.lengths.tolist() == [5, 6]
    assert task.answers.tolist() == [ids("Paris"), ids("Japan")]
    assert task.incorrect.tolist() == [ids("Rome", "London"), [*ids("England"), -1]]
    assert (task.name, task.metric, task.dropped) == ("mine", "answer_rank", 0)
    assert task.texts[0] == (LINE["clean"], LINE["corrupted"])
    assert task.metadata["file"] == str(tmp_path / "mine.jsonl")
    assert read(tmp_path, LINE).metric == "logit_difference"


def test_lines_that_do_not_align_are_dropped_and_counted(tmp_path: Path) -> None:
    longer = {**LINE, "corrupted": "the capital city of Italy is"}
    task = read(tmp_path, longer, LINE, longer)
    assert (len(task), task.dropped) == (1, 2)
    assert task.metadata["dropped lines"] == [1, 3]
    with pytest.raises(TaskError, match="on none of 2 lines do clean and corrupted have the same"):
        read(tmp_path, longer, longer)


def test_a_byte_order_mark_and_other_line_ends_are_read(tmp_path: Path) -> None:
    text = json.dumps(LINE).encode()
    assert len(read(tmp_path, b"\xef\xbb\xbf" + text + b"\r", text + b"\r")) == 2


def without(key: str) -> dict[str, Any]:
    return {k: v for k, v in LINE.items() if k != key}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"not JSON \(Expecting property name"),
        ("", "the line is blank; remove it$"),
        (" \t", "the line is blank; remove it$"),
        (
            "The capital of France is",
            'not JSON Lines but text; give one object a line, as {"clean":',
        ),
        ("3,4", "not JSON Lines but text; give one object a line"),
        ("{'clean': 'a'}", r"not JSON \(Expecting property name"),
        ("3", "not JSON Lines but text; give one object a line"),
        ("[" * 100_000, r"not JSON \(nested too deeply\)"),
        ('{"clean": 1e400}', r"not JSON \(1e400 is larger than any 64-bit number"),
        ("[1]", "not a JSON object but a list"),
        *((without(key), f"the key '{key}' is missing; a line needs clean") for key in LINE),
        ({**LINE, "clean": 3}, "'clean' must be a text, none of them empty; got 3"),
        ({**LINE, "clean": [LINE["clean"]]}, "'clean' must be a text"),
        ({**LINE, "corrupted": ""}, "'corrupted' must be a text"),
        ({**LINE, "answers": []}, r"'answers' must be a text or a list of texts.*; got \[\]"),
        ({**LINE, "answers": [" Paris", ""]}, "'answers' must be"),
        ({**LINE, "wrong_answers": None}, "'wrong_answers' must be .*; got None"),
        ({**LINE, "clean": "a \ud800 b"}, r"not JSON \(half of a surrogate pair, '\\ud800'"),
        ({**LINE, "clean": " "}, "'clean': the prompt is empty"),
        ({**LINE, "corrupted": "the"}, "'corrupted': the prompt has 1 token"),
        ({**LINE, "clean": "the " * 65}, "'clean': the prompt has 65 tokens, but tiny-llama reads"),
        ({**LINE, "corrupted": LINE["clean"]}, "clean and corrupted are the same tokens; there is"),
        ({**LINE, "answers": " Paris , France"}, "the answer ' Paris , France' is not one known"),
        ({**LINE, "answers": " Madrid"}, "the answer ' Madrid' is not one known token .* give"),
        ({**LINE, "wrong_answers": [" Rome", " Paris"]}, "'Paris' is among the answers and the"),
    ],
)
def test_a_line_that_will_not_do_is_named(
    tmp_path: Path, line: dict[str, Any] | str, message: str
) -> None:
    with pytest.raises(TaskError, match=rf"mine\.jsonl, line 2: {message}"):
        read(tmp_path, LINE, line, LINE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; give one JSON object a line, with clean, corrupted, answers, wrong_"),
        (b" \n\n", "is empty"),
        (b"\x80\x81\x82", r"mine\.jsonl, line 1: not UTF-8 \(byte 0 is 0x80\)"),
        (b"\x00\x01\x02", r"mine\.jsonl is a binary file"),
    ],
)
def test_a_file_that_will_not_do_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        read(tmp_path, content)


@pytest.mark.parametrize(
    "header",
    ["clean,corrupted,answers,wrong_answers", '"clean";"corrupted"', "note\tcorrupted\tclean"],
)
def test_a_table_is_told_what_is_expected_by_a_line_that_will_do(
    tmp_path: Path, header: str
) -> None:
    with pytest.raises(
        TaskError, match=r"mine\.jsonl, line 1: not JSON Lines but CSV; "
    ) as refused:
        read(tmp_path, header, "a,b,c,d")
    example = json.loads(str(refused.value).partition(" as ")[2])
    assert set(example) == set(LINE)
    # The example's words in lower case are the tiny vocabulary's.
    words = json.dumps(example).replace("The ", "the ")
    assert len(read(tmp_path, words)) == 1


def test_no_file_and_no_metric(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none"):
        read_task(cases.model_of("llama"), tmp_path / "none.jsonl")
    with pytest.raises(TaskError, match="unknown metric 'ld'"):
        read(tmp_path, LINE, metric="ld")
