"""A user's own task, from a file or lists: what is read, and each way it can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from strace_lens.circuits.task import Task, TaskError
from strace_lens.circuits.tasks.read import read_task, task
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


# ------------------------------------------------------------------ lists

CLEAN = ["the capital of France is", "the city of Tokyo is in"]
CORRUPTED = ["the capital of Italy is", "the city of London is in"]
CORRECT = [" Paris", [" Japan"]]
INCORRECT = [[" Rome", " London"], " England"]


def test_lists_are_the_task_of_a_file_with_the_same_lines(tmp_path: Path) -> None:
    keys = ("clean", "corrupted", "answers", "wrong_answers")
    rows = zip(CLEAN, CORRUPTED, CORRECT, INCORRECT, strict=True)
    of_file = read(tmp_path, *(dict(zip(keys, row, strict=True)) for row in rows))
    model = cases.model_of("llama")
    given = task(model, CLEAN, CORRUPTED, CORRECT, INCORRECT, name="mine")
    table = pd.DataFrame({"clean": CLEAN, "corrupted": CORRUPTED})
    of_table = task(model, table["clean"], table["corrupted"], CORRECT, INCORRECT)
    numbers = [ids(*text.split()) for text in CLEAN], [ids(*text.split()) for text in CORRUPTED]
    right, wrong = [ids("Paris"), ids("Japan")[0]], [ids("Rome", "London"), ids("England")]
    of_ids = task(model, *numbers, right, wrong)
    for made in (given, of_table, of_ids):
        for part in ("clean", "corrupted", "lengths", "answers", "incorrect"):
            assert getattr(made, part).tolist() == getattr(of_file, part).tolist(), part
        assert (made.metric, made.dropped) == ("logit_difference", 0)
        assert made.texts == of_file.texts
    assert (given.name, of_table.name) == ("mine", "given")
    assert given.metadata == {"model": "tiny-llama"}


def test_a_metric_that_asks_for_no_answers_needs_none() -> None:
    made = task(cases.model_of("llama"), CLEAN, CORRUPTED, metric="kl_divergence")
    assert made.answers.shape == made.incorrect.shape == (2, 0)
    with pytest.raises(TaskError, match="pair 0 has no answers, which logit_difference needs"):
        task(cases.model_of("llama"), CLEAN, CORRUPTED)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"clean": []}, "at least one pair of prompts; clean is empty"),
        ({"clean": CLEAN[0]}, "clean must be a list with one item for each pair; got 'the capital"),
        ({"corrupted": CORRUPTED[:1]}, "2 clean, but 1 corrupted; give one item for each pair"),
        ({"incorrect": INCORRECT * 2}, "2 clean, but 4 incorrect"),
        ({"metric": "guess"}, "unknown metric 'guess'; choose from"),
        (
            {"corrupted": [CORRUPTED[0], "the big city of London is in"]},
            "pair 1 does not align: clean has 6 tokens and corrupted 7",
        ),
        ({"corrupted": [CORRUPTED[0], CLEAN[1]]}, "pair 1: clean and corrupted are the same"),
        ({"correct": [" Paris", " London Japan"]}, "pair 1: the answer ' London Japan' is not one"),
        ({"correct": [" Paris", 10**6]}, "pair 1: the answer 1000000 is not one known token"),
        ({"incorrect": [" Paris", " Rome"]}, "pair 0: 'Paris' is among the answers and the wrong"),
        ({"clean": ["", CLEAN[1]]}, "pair 0: 'clean': "),
    ],
)
def test_lists_that_will_not_do_are_refused_by_pair(changed: dict[str, Any], message: str) -> None:
    given = {"clean": CLEAN, "corrupted": CORRUPTED, "correct": CORRECT, "incorrect": INCORRECT}
    with pytest.raises(TaskError, match=message):
        task(cases.model_of("llama"), **{**given, **changed})
