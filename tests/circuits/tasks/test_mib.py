"""MIB's layouts: the pairs that its own rules make of a row, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from strace_lens.circuits.task import Task, TaskError
from strace_lens.circuits.tasks.read import read_task, task_of_rows
from tests import cases, tiny

IOI: dict[str, Any] = {
    "prompt": "when Rome and Paris had a book , Paris had to",
    "metadata": {"indirect_object": "Rome", "subject": "Paris", "random_c": "Tokyo"},
    "s2_io_flip_counterfactual": {"prompt": "when Rome and Paris had a book , Rome had to"},
    "abc_counterfactual": None,
}
CHOICE: dict[str, Any] = {
    "prompt": "the city : 1 . Rome 2 . Paris ; Paris is",
    "choices": {"label": ["1", "2"], "text": ["Rome", "Paris"]},
    "answerKey": 1,
    "symbol_counterfactual": {
        "prompt": "the city : 7 . Rome 8 . Paris ; Paris is",
        "choices": {"label": ["7", "8"], "text": ["Rome", "Paris"]},
        "answerKey": 1,
    },
    "random_counterfactual": None,
}
SUM: dict[str, Any] = {
    "prompt": "1 and 2 is",
    "label": "3",
    "operator": "+",
    "random_counterfactual": {"prompt": "4 and 5 is", "label": "9"},
}
ROWS = {"ioi": (IOI, "Rome", "Paris"), "mcqa": (CHOICE, "2", "8"), "sum": (SUM, "3", "9")}


def ids(text: str) -> list[int]:
    return tiny.tokenizer()(text, add_special_tokens=False).input_ids


def read(folder: Path, *rows: dict[str, Any], name: str = "mine.jsonl", **options: Any) -> Task:
    path = folder / name
    whole = path.suffix == ".json"
    path.write_text(json.dumps(rows) if whole else "\n".join(map(json.dumps, rows)), "utf-8")
    return read_task(cases.model_of("llama"), path, **options)


def changed(row: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of a row with another value at a path of keys."""
    copy = json.loads(json.dumps(row))
    *outer, last = path.split(".")
    inner = copy
    for key in outer:
        inner = inner[key]
    inner[last] = value
    return copy


@pytest.mark.parametrize("file", ["mine.jsonl", "mine.json"])
@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_the_pair_that_mib_makes_of_it(tmp_path: Path, name: str, file: str) -> None:
    row, right, wrong = ROWS[name]
    other = next(row[key]["prompt"] for key in row if "counterfactual" in key and row[key])
    task = read(tmp_path, row, row, name=file)
    assert task.clean.tolist() == [ids(row["prompt"])] * 2
    assert task.corrupted.tolist() == [ids(other)] * 2
    assert (task.answers.tolist(), task.incorrect.tolist()) == ([ids(right)] * 2, [ids(wrong)] * 2)
    assert (task.name, task.metric, task.dropped) == ("mine", "logit_difference", 0)
    expected = {"ioi": "ioi", "mcqa": "multiple choice", "sum": "arithmetic +"}[name]
    assert task.metadata["layout"] == expected


def test_an_answer_is_its_first_token() -> None:
    row = changed(IOI, "metadata", {"indirect_object": "Rome king", "subject": "Paris war"})
    task = task_of_rows(cases.model_of("llama"), [row], "ioi")
    assert (task.answers.tolist(), task.incorrect.tolist()) == ([ids("Rome")], [ids("Paris")])


@pytest.mark.parametrize(
    ("row", "path", "value"),
    [
        (IOI, "metadata.random_c", "Tokyo king"),
        (IOI, "metadata.subject", "Paris king"),
        (IOI, "metadata.subject", "Rome"),
        (CHOICE, "symbol_counterfactual.choices.label", ["7", "8 9"]),
        (CHOICE, "symbol_counterfactual.choices.label", ["7", "2"]),
        (SUM, "random_counterfactual", None),
        (SUM, "random_counterfactual.prompt", None),
        (SUM, "random_counterfactual.label", "1 2"),
        (SUM, "random_counterfactual.label", "3"),
        (SUM, "label", "1 2"),
        (SUM, "operator", "-"),
    ],
)
def test_what_mib_leaves_out_is_dropped_and_counted(
    tmp_path: Path, row: dict[str, Any], path: str, value: Any
) -> None:
    other = changed(row, path, value)
    task = read(tmp_path, row, other, row)
    assert (len(task), task.dropped, task.metadata["dropped lines"]) == (2, 1, [2])


def test_rows_that_do_not_align_are_dropped_and_all_reasons_are_said(tmp_path: Path) -> None:
    longer = changed(IOI, "s2_io_flip_counterfactual.prompt", "when the king had to")
    left_out = changed(IOI, "metadata.random_c", "Tokyo king")
    task = read(tmp_path, longer, IOI, left_out)
    assert (len(task), task.metadata["dropped lines"]) == (1, [1, 3])
    with pytest.raises(TaskError, match=r"none of 1 lines .* MIB leaves out 2 rows \(names of"):
        read(tmp_path, left_out, longer, left_out)


def test_both_prompts_of_two_lengths_at_once_are_padded() -> None:
    short = {**SUM, "prompt": "1 2 is", "random_counterfactual": {"prompt": "4 5 is", "label": 9}}
    task = task_of_rows(cases.model_of("llama"), [SUM, short], "sum")
    assert task.lengths.tolist() == [4, 3]


def test_the_name_of_arithmetic_says_its_operator(tmp_path: Path) -> None:
    minus = {**SUM, "operator": "-"}
    task = read(tmp_path, SUM, minus, name="arithmetic_subtraction.jsonl")
    assert (len(task), task.metadata["layout"]) == (1, "arithmetic -")
    assert read(tmp_path, minus, SUM, SUM).dropped == 2  # the first row says it


def test_a_csv_has_token_ids_or_parts_as_columns(tmp_path: Path) -> None:
    model = cases.model_of("llama")
    by_id = {
        "clean": SUM["prompt"],
        "corrupted": "4 and 5 is",
        "correct_idx": ids("3")[0],
        "incorrect_idx": ids("9")[0],
    }
    flat = pd.json_normalize([SUM])
    words = {"clean": SUM["prompt"], "corrupted": "4 and 5 is", "answers": "3", "wrong_answers": 9}
    choice = pd.json_normalize([CHOICE])
    lists = [column for column in choice if column.endswith("label")]
    choice[lists] = choice[lists].map(json.dumps)
    tables = pd.DataFrame([by_id]), flat, pd.DataFrame([words])
    tasks = []
    for number, table in enumerate((*tables, choice)):
        table.to_csv(tmp_path / f"{number}.csv")  # with the index, as MIB's own
        tasks.append(read_task(model, tmp_path / f"{number}.csv"))
    truths = [read(tmp_path, SUM)] * 3 + [read(tmp_path, CHOICE)]
    for task, truth in zip(tasks, truths, strict=True):
        for part in ("clean", "corrupted", "lengths", "answers", "incorrect"):
            assert getattr(task, part).tolist() == getattr(truth, part).tolist(), part


def test_a_bos_is_prepended_only_where_asked_for_and_once(tmp_path: Path) -> None:
    bos = tiny.tokenizer().bos_token_id
    without, task = read(tmp_path, SUM), read(tmp_path, SUM, prepend_bos=True)
    assert task.clean.tolist() == [[bos, *without.clean[0].tolist()]]
    assert task.corrupted.tolist() == [[bos, *without.corrupted[0].tolist()]]
    assert task.answers.equal(without.answers)
    begun = {**SUM, "prompt": f"<s> {SUM['prompt']}"}
    assert read(tmp_path, begun, prepend_bos=True).clean.equal(task.clean)


@pytest.mark.parametrize(
    ("row", "path", "value", "message"),
    [
        (IOI, "prompt", 3, "'prompt' must be a text; got 3"),
        (IOI, "metadata", "x", r"'metadata' must be an object; got 'x' \(in CSV give its parts"),
        (IOI, "metadata.subject", "", "'metadata.subject' must be a text; got ''"),
        (IOI, "metadata", {"subject": "Rome"}, "the key 'metadata.indirect_object' is missing"),
        (IOI, "metadata.subject", "Madrid", "tiny-llama has no token for the answer ' Madrid'"),
        (IOI, "s2_io_flip_counterfactual", None, "'s2_io_flip_counterfactual' must be an object"),
        (CHOICE, "answerKey", 2, r"'answerKey' is 2, counted from 0, but 'choices.label' is \['1"),
        (CHOICE, "answerKey", "B", "'answerKey' must be a whole number; got 'B'"),
        (CHOICE, "choices.label", "['1']", "'choices.label': not JSON"),
        (
            CHOICE,
            "symbol_counterfactual.answerKey",
            True,
            "'symbol_counterfactual.answerKey' must be a whole number; got True",
        ),
        (CHOICE, "choices", {}, "the key 'choices.label' is missing"),
        (SUM, "label", None, "'label' must be a text or a whole number; got None"),
        (
            SUM,
            "random_counterfactual",
            {"prompt": "4 and 5 is"},
            "'random_counterfactual.label' is",
        ),
    ],
)
def test_a_row_that_will_not_do_is_named(
    tmp_path: Path, row: dict[str, Any], path: str, value: Any, message: str
) -> None:
    bad = changed(row, path, value)
    with pytest.raises(TaskError, match=rf"mine\.jsonl, line 2: .*{message}"):
        read(tmp_path, row, bad)
    with pytest.raises(TaskError, match=rf"mine\.json, object 2: .*{message}"):
        read(tmp_path, row, bad, name="mine.json")
    with pytest.raises(TaskError, match=rf"sum, row 2: .*{message}"):
        task_of_rows(cases.model_of("llama"), [row, bad], "sum")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("clean,corrupted,correct_idx\na,b,3", "line 2: the key 'incorrect_idx' is missing"),
        ("clean,corrupted,correct_idx,incorrect_idx\na,b,x,4", "'correct_idx' must be a whole"),
        ("clean,corrupted,correct_idx,incorrect_idx\nof a,of it,9999,4", "answer 9999 is not"),
        ("clean,clean\na,b", "has the column 'clean' twice"),
        ("a,a.b\n1,2", "the columns 'a' and 'a.b' exclude each other"),
        ("clean,corrupted\na", "line 2: 1 cells under a header of 2"),
        ('clean,corrupted\n"a', "line 2: not CSV"),
        ("clean,corrupted", r"\.csv has no rows"),
        ("prompt\na", "line 2: 'prompt' comes without a counterfactual of MIB: s2_io_flip"),
    ],
)
def test_a_csv_that_will_not_do_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(content, "utf-8")
    with pytest.raises(TaskError, match=rf"mine(\.csv)?.*{message}"):
        read_task(cases.model_of("llama"), path)


@pytest.mark.parametrize(
    ("content", "message"), [("[3]", "object 1: not a JSON object but a int"), ("[{", "not JSON")]
)
def test_an_array_that_will_not_do_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "mine.json").write_text(content, "utf-8")
    with pytest.raises(TaskError, match=rf"mine\.json.*{message}"):
        read_task(cases.model_of("llama"), tmp_path / "mine.json")
