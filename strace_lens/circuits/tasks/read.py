"""A user's own task: prompts and answers from lists, or from a JSONL file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from strace_lens.circuits.metrics import METRICS
from strace_lens.circuits.task import Task, TaskError
from strace_lens.circuits.tasks.alignment import Pair, Text, Vocabulary, task_of
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


Answers = str | int | Sequence[str | int]
"""What follows a prompt, each as one token: its text or id, or several of them."""


@verb
def task(
    model: Model,
    clean: Iterable[str | Sequence[int]],
    corrupted: Iterable[str | Sequence[int]],
    correct: Iterable[Answers] | None = None,
    incorrect: Iterable[Answers] | None = None,
    *,
    metric: str = "logit_difference",
    name: str = "given",
) -> Task:
    """Make a task of prompts and answers of your own.

    Args:
        model: whose tokenizer reads them; token ids need none.
        clean: prompts that the model does right, as text or token ids.
        corrupted: a prompt for each, of the same number of tokens, with another answer or none.
        correct: what follows each clean prompt: a text or token id, or a list of them. Each is one
            token, its text with the leading space where it has one. None for a metric that asks for
            no answers.
        incorrect: likewise, what a model that fails would say.
        metric: key of `METRICS`.
        name: of the task, for tables.

    Raises:
        TaskError: no pairs, lists of different lengths, an unknown metric or one that needs answers
            which are not given, or a pair that will not do: prompts that do not align token by
            token or read alike, an answer that is not one token or both right and wrong. The
            message names the pair, counted from 0.

    Example:
        >>> clean, corrupted = ["The capital of France is"], ["The capital of Italy is"]
        >>> sl.task(model, clean, corrupted, correct=[" Paris"], incorrect=[" Rome"])
        Task(given: 1 pairs of up to 5 tokens)
    """
    if metric not in METRICS:
        raise TaskError(f"unknown metric {metric!r}; choose from {', '.join(METRICS)}")
    given = {"clean": clean, "corrupted": corrupted, "correct": correct, "incorrect": incorrect}
    lists = {
        what: [] if of is None and what in _ANSWERS else _listed(what, of)
        for what, of in given.items()
    }
    pairs = len(lists["clean"])
    if not pairs:
        raise TaskError("a task needs at least one pair of prompts; clean is empty")
    for what, of in lists.items():
        if len(of) != pairs and given[what] is not None:
            raise TaskError(f"{pairs} clean, but {len(of)} {what}; give one item for each pair")
    vocabulary = Vocabulary(model, architecture_of(model))
    read = []
    for number, (one, other) in enumerate(zip(lists["clean"], lists["corrupted"], strict=True)):
        try:
            answers = [_several(lists[what][number]) if lists[what] else [] for what in _ANSWERS]
            prompts = _prompt("clean", one), _prompt("corrupted", other)
            pair = _pair(vocabulary, *prompts, *answers)
        except ValueError as error:
            raise TaskError(f"pair {number}: {error}") from error
        if pair is None:
            lengths = [len(vocabulary.ids(prompt)) for prompt in prompts]
            raise TaskError(
                f"pair {number} does not align: clean has {lengths[0]} tokens and corrupted "
                f"{lengths[1]}; give prompts of one length"
            )
        read.append(pair)
    return task_of(name, read, metric, 0, {"model": vocabulary.architecture.name})


_ANSWERS = ("correct", "incorrect")


def _listed(what: str, items: object) -> list[Any]:
    """The items of a list with one for each pair."""
    if isinstance(items, str) or not isinstance(items, Iterable):
        raise TaskError(f"{what} must be a list with one item for each pair; got {items!r:.80}")
    return list(items)


def _prompt(what: str, prompt: Any) -> Text:
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, Iterable):
        raise ValueError(f"{what} is a text or token ids; got {prompt!r}")
    return tuple(prompt)


def _several(answers: Any) -> list[str | int]:
    """The answers of a pair, one or several, as texts and plain integers."""
    if isinstance(answers, str | Integral) or not isinstance(answers, Iterable):
        answers = [answers]
    return [int(answer) if isinstance(answer, Integral) else answer for answer in answers]


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
            pair = _pair(vocabulary, *_texts(facts).values())
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
    """The texts of a line's object in the order of `KEYS`, its answers made lists."""
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


def _pair(
    vocabulary: Vocabulary,
    clean: Text,
    corrupted: Text,
    answers: Sequence[str | int],
    wrong: Sequence[str | int],
) -> Pair | None:
    """The tokens of a pair; None where its prompts do not align.

    Raises:
        ValueError: a prompt or an answer that will not do.
    """
    ids, others = _ids(vocabulary, "clean", clean), _ids(vocabulary, "corrupted", corrupted)
    right, incorrect = (_answers(vocabulary, clean, texts) for texts in (answers, wrong))
    both = set(right) & set(incorrect)
    if both:
        raise ValueError(
            f"{vocabulary.text((both.pop(),))!r} is among the answers and the wrong answers"
        )
    if ids == others:
        raise ValueError("clean and corrupted are the same tokens; there is nothing to patch")
    if len(ids) != len(others):
        return None
    texts = vocabulary.text(clean), vocabulary.text(corrupted)
    return Pair(ids, others, right, incorrect, texts)


def _ids(vocabulary: Vocabulary, key: str, prompt: Text) -> tuple[int, ...]:
    try:
        return vocabulary.ids(prompt)
    except PromptError as error:
        raise ValueError(f"{key!r}: {error}") from error


def _answers(vocabulary: Vocabulary, prompt: Text, texts: Sequence[str | int]) -> tuple[int, ...]:
    """The token of each answer, each token once."""
    found = []
    for text in texts:
        if not isinstance(text, str | int):
            raise ValueError(f"an answer is a text or a token id; got {text!r}")
        token = vocabulary.answer(prompt, text)
        if token is None:
            raise ValueError(
                f"the answer {text!r} is not one known token after the prompt for "
                f"{vocabulary.architecture.name}; give its first token, with the space before it "
                "if it starts a word"
            )
        found.append(token)
    return tuple(dict.fromkeys(found))
