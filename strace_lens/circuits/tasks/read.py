"""A user's own task: prompts and answers from lists, or from a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from strace_lens.circuits.metrics import METRICS
from strace_lens.circuits.task import Task, TaskError
from strace_lens.circuits.tasks.alignment import Pair, Text, Vocabulary, task_of, vocabulary_of
from strace_lens.circuits.tasks.mib import Layout, layout_of
from strace_lens.circuits.tasks.rows import Row, read_rows
from strace_lens.model.architecture import Model
from strace_lens.model.hold import verb
from strace_lens.model.prompts import PromptError
from strace_lens.model.skeleton import Skeleton

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
        Task(given: 1 pair of up to 5 tokens)
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
    vocabulary = vocabulary_of(model)
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
def read_task(
    model: Model | Skeleton,
    path: str | Path,
    metric: str = "logit_difference",
    *,
    prepend_bos: bool = False,
) -> Task:
    """Read a task from a file of pairs: JSON Lines, a JSON array or CSV.

    Keys of an object, or columns: `clean` and `corrupted`, prompts; `answers` and `wrong_answers`,
    each one text or a list of them: what follows the clean prompt, as one token and with its
    leading space where it has one. Rows whose prompts differ in their number of tokens are dropped
    and counted; the numbers of their lines stand in `Task.metadata`.

    The layouts of the MIB benchmark are read as well (Mueller et al. 2025, arXiv 2504.13151): IOI,
    arithmetic, multiple choice (MCQA, ARC) and its CSV of token ids (`clean`, `corrupted`,
    `correct_idx`, `incorrect_idx`). Rows that MIB leaves out are dropped too.

    Args:
        model: whose tokenizer reads them; or a `skeleton`.
        path: of the file; one that ends in `.csv` is read as CSV.
        metric: key of `METRICS`.
        prepend_bos: begin each prompt with one BOS even if the tokenizer itself adds none, as MIB
            does (GPT-2).

    Raises:
        OSError: the file cannot be read.
        TaskError: an unknown metric, a file without text or pairs, a BOS that the tokenizer lacks,
            or a line that will not do; the message names the line, counted from 1.

    Example:
        >>> task = sl.read_task(sl.load_model(), "pairs.jsonl")
    """
    made = {"file": str(path)}
    return _task_of_rows(model, read_rows(path), Path(path).stem, metric, prepend_bos, made)


@verb
def task_of_rows(
    model: Model | Skeleton,
    rows: Iterable[Mapping[str, Any]],
    name: str,
    metric: str = "logit_difference",
    *,
    prepend_bos: bool = False,
) -> Task:
    """Make a task of objects in one of the layouts of `read_task`, as a data set yields them.

    Args:
        model: whose tokenizer reads them; or a `skeleton`.
        rows: values by key.
        name: of the task, for tables; in messages a row is called by it and its number from 1.
        metric: key of `METRICS`.
        prepend_bos: begin each prompt with one BOS even if the tokenizer itself adds none.

    Raises:
        TaskError: as `read_task`.

    Example:
        >>> from strace_lens.circuits.tasks.read import task_of_rows
        >>> other = {"prompt": "2 + 5 =", "label": "7"}
        >>> row = {"prompt": "2 + 4 =", "label": "6", "operator": "+"}
        >>> row["random_counterfactual"] = other
        >>> task_of_rows(sl.load_model(), [row], "addition")
        Task(addition: 1 pair of up to 5 tokens)
    """
    numbered = (Row(f"{name}, row {i}", i, facts) for i, facts in enumerate(rows, start=1))
    return _task_of_rows(model, numbered, name, metric, prepend_bos, {})


def _task_of_rows(
    model: Model | Skeleton,
    rows: Iterable[Row],
    name: str,
    metric: str,
    prepend_bos: bool,
    made: Mapping[str, Any],
) -> Task:
    vocabulary = vocabulary_of(model, prepend_bos or None)
    source = made.get("file", name)
    pairs: list[Pair] = []
    unaligned: list[int] = []
    left_out: list[int] = []
    layout: Layout | None = None
    for row in rows:
        try:
            layout = layout or layout_of(row.facts, name)
            example = layout.read(vocabulary, row.facts)
            pair = None if example is None else _pair(vocabulary, *example)
        except ValueError as error:
            raise TaskError(f"{row.where}: {error}") from error
        if pair is not None:
            pairs.append(pair)
        else:
            (left_out if example is None else unaligned).append(row.number)
    if layout is None:
        raise TaskError(f"{source} has no rows; a task needs at least one pair of prompts")
    model_name = vocabulary.architecture.name
    made = {**made, "dropped lines": sorted(unaligned + left_out), "model": model_name}
    if not pairs:
        reason = f"; MIB leaves out {len(left_out)} rows ({layout.left_out})" if left_out else ""
        raise TaskError(
            f"{source}: on none of {len(unaligned)} lines do clean and corrupted "
            f"have the same number of tokens for {model_name}{reason}; give prompts that align"
        )
    if layout.name != "own":
        made |= {"layout": layout.name}
    return task_of(name, pairs, metric, len(made["dropped lines"]), made)


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
