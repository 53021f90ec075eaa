"""A user's own task: a JSONL file of clean and corrupted prompts with right and wrong answers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from strace_lens.circuits.task import Task, TaskError
from strace_lens.circuits.tasks.alignment import Pair, Vocabulary, task_of
from strace_lens.model.architecture import Model
from strace_lens.model.checks import architecture_of
from strace_lens.model.hold import verb
from strace_lens.model.prompts import PromptError
from strace_lens.utils.disk import JsonError, TextFileError, lines_of, parse_object, read_text

KEYS = ("clean", "corrupted", "answers", "wrong_answers")
"""Keys of a line; others are ignored."""

_EXAMPLE = (
    '{"clean": "The capital of France is", "corrupted": "The capital of Italy is", '
    '"answers": " Paris", "wrong_answers": " Rome"}'
)


@verb
def read_task(model: Model, path: str | Path, metric: str = "logit_difference") -> Task:
    """Read a task from a JSONL file with one object a line.

    Keys: `clean` and `corrupted`, prompts; `answers` and `wrong_answers`, each one text or a list
    of them: what follows the clean prompt, as one token and with its leading space where it has
    one. Lines whose prompts differ in their number of tokens are dropped and counted; their numbers
    stand in `Task.metadata`.

    Raises:
        OSError: the file cannot be read.
        TaskError: an unknown metric, a file without text or pairs, or a line that will not do; the
            message names the line, counted from 1.

    Example:
        >>> task = sl.read_task(sl.load_model(), "pairs.jsonl")
    """
    vocabulary = Vocabulary(model, architecture_of(model))
    pairs: list[Pair] = []
    dropped: list[int] = []
    for number, line in enumerate(_lines(path), start=1):
        where = f"{path}, line {number}"
        facts = _facts(line, where)
        try:
            pair = _pair(vocabulary, _texts(facts))
        except ValueError as error:
            raise TaskError(f"{where}: {error}") from error
        if pair is None:
            dropped.append(number)
        else:
            pairs.append(pair)
    if not pairs:
        raise TaskError(
            f"{path}: on none of {len(dropped)} lines do clean and corrupted have the same number "
            f"of tokens for {vocabulary.architecture.name}; give prompts that align"
        )
    made = {"file": str(path), "dropped lines": dropped, "model": vocabulary.architecture.name}
    return task_of(Path(path).stem, pairs, metric, len(dropped), made)


def _lines(path: str | Path) -> list[str]:
    try:
        lines = lines_of(read_text(path).rstrip())
    except TextFileError as error:
        raise TaskError(str(error)) from error
    if not lines:
        raise TaskError(f"{path} is empty; give one JSON object a line, with {', '.join(KEYS)}")
    return lines


def _facts(line: str, where: str) -> dict[str, Any]:
    """The object of a line."""
    if not line.strip():
        raise TaskError(f"{where}: the line is blank; remove it")
    try:
        return parse_object(line, where)
    except JsonError as error:
        if line.lstrip().startswith(("{", "[")):  # meant as JSON: the error says where it fails
            raise TaskError(str(error)) from error
        what = "CSV" if {"clean", "corrupted"} <= set(re.split(r'[\s",;]+', line)) else "text"
        raise TaskError(
            f"{where}: not JSON Lines but {what}; give one object a line, as {_EXAMPLE}"
        ) from error


def _texts(facts: dict[str, Any]) -> dict[str, Any]:
    """The texts of a line's object, its answers made lists."""
    for key in KEYS:
        if key not in facts:
            raise ValueError(f"the key {key!r} is missing; a line needs {', '.join(KEYS)}")
    found: dict[str, Any] = {}
    for key in KEYS:
        several = "answers" in key and isinstance(facts[key], list)
        texts = facts[key] if several else [facts[key]]
        if not texts or not all(isinstance(text, str) and text for text in texts):
            what = "a text or a list of texts" if "answers" in key else "a text"
            raise ValueError(f"{key!r} must be {what}, none of them empty; got {facts[key]!r}")
        found[key] = texts if "answers" in key else texts[0]
    return found


def _pair(vocabulary: Vocabulary, facts: dict[str, Any]) -> Pair | None:
    """The tokens of a line; None where its prompts do not align."""
    texts = facts["clean"], facts["corrupted"]
    clean, corrupted = _ids(vocabulary, "clean", texts[0]), _ids(vocabulary, "corrupted", texts[1])
    answers = _answers(vocabulary, texts[0], facts["answers"])
    wrong = _answers(vocabulary, texts[0], facts["wrong_answers"])
    both = set(answers) & set(wrong)
    if both:
        raise ValueError(
            f"{vocabulary.text((both.pop(),))!r} is among the answers and the wrong answers"
        )
    if clean == corrupted:
        raise ValueError("clean and corrupted are the same tokens; there is nothing to patch")
    if len(clean) != len(corrupted):
        return None
    return Pair(clean, corrupted, answers, wrong, texts)


def _ids(vocabulary: Vocabulary, key: str, text: str) -> tuple[int, ...]:
    try:
        return vocabulary.ids(text)
    except PromptError as error:
        raise ValueError(f"{key!r}: {error}") from error


def _answers(vocabulary: Vocabulary, prompt: str, texts: list[str]) -> tuple[int, ...]:
    """The token of each answer, each token once."""
    found = []
    for text in texts:
        token = vocabulary.answer(prompt, text)
        if token is None:
            raise ValueError(
                f"the answer {text!r} is not one known token after the prompt for "
                f"{vocabulary.architecture.name}; give its first token, with the space before it "
                "if it starts a word"
            )
        found.append(token)
    return tuple(dict.fromkeys(found))
