"""The layouts in which the MIB benchmark stores its tasks: what is a pair, and what is left out.

Source: Mueller et al. 2025 (arXiv 2504.13151), the classes `HFEAPDataset` and `EAPDataset` of the
circuit track. Its data sets have a counterfactual prompt in each row, and answers are the first
token of a text that the tokenizer reads on its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from strace_lens.circuits.tasks.alignment import Example, Vocabulary
from strace_lens.circuits.tasks.rows import KEYS
from strace_lens.model.prompts import bare_ids
from strace_lens.utils.disk import JsonError, parse_json

Facts = Mapping[str, Any]

IOI, CHOICE, ARITHMETIC = (
    "s2_io_flip_counterfactual",
    "symbol_counterfactual",
    "random_counterfactual",
)
"""The counterfactual by which each of MIB's layouts is known, and from which its pairs are made."""

INDICES = ("correct_idx", "incorrect_idx")
"""Token ids of the answers, in the CSV files of EAP-IG and MIB."""


class Layout(NamedTuple):
    """How the rows of a file become pairs.

    Attributes:
        name: for `Task.metadata`.
        read: what a row says, or None where MIB leaves the row out.
        left_out: which rows these are, for the message of an error.
    """

    name: str
    read: Callable[[Vocabulary, Facts], Example | None]
    left_out: str = ""


def layout_of(facts: Facts, name: str) -> Layout:
    """The layout of a file by the keys of its first row.

    Args:
        facts: of that row.
        name: of the file or data set; for arithmetic it may name the operation.

    Raises:
        ValueError: none of the layouts.
    """
    if "clean" in facts or "prompt" not in facts:
        indexed = not set(KEYS[2:]) & set(facts) and bool(set(INDICES) & set(facts))
        return Layout("indices", _indices) if indexed else Layout("own", _own)
    if IOI in facts:
        return Layout("ioi", _ioi, "names of different numbers of tokens, or one first token")
    if CHOICE in facts:
        return Layout(
            "multiple choice", _choice, "labels of different numbers of tokens, or the same label"
        )
    if ARITHMETIC in facts:
        operator = _operator(facts, name)
        return Layout(
            f"arithmetic {operator}",
            functools.partial(_arithmetic, operator=operator),
            f"no counterfactual, another operator than {operator!r}, or results that are not one "
            "token or the same",
        )
    raise ValueError(
        f"'prompt' comes without a counterfactual of MIB: {IOI}, {CHOICE} or {ARITHMETIC}; or give "
        f"{', '.join(KEYS)}"
    )


# ------------------------------------------------------------------ layouts


def _own(_: Vocabulary, facts: Facts) -> Example:
    """The layout of `read_task`: prompts and answers as texts."""
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
        found[key] = tuple(texts) if "answers" in key else texts[0]
    return Example(*found.values())


def _indices(_: Vocabulary, facts: Facts) -> Example:
    right, wrong = (_whole(facts, key) for key in INDICES)
    return Example(_text(facts, "clean"), _text(facts, "corrupted"), (right,), (wrong,))


def _ioi(vocabulary: Vocabulary, facts: Facts) -> Example | None:
    who = ["indirect_object", "subject"]
    if "random_c" in _object(facts, "metadata"):  # MIB compares the third name, where there is one
        who.append("random_c")
    names = [_tokens(vocabulary, f" {_text(facts, 'metadata', one)}") for one in who]
    return _example(facts, IOI, *names)


def _choice(vocabulary: Vocabulary, facts: Facts) -> Example | None:
    labels = [_label(facts), _label(_object(facts, CHOICE), CHOICE)]
    return _example(facts, CHOICE, *(_tokens(vocabulary, label) for label in labels))


def _arithmetic(vocabulary: Vocabulary, facts: Facts, operator: str) -> Example | None:
    other = _value(facts, ARITHMETIC)
    if other is None or _value(facts, "operator") != operator:
        return None
    if _value(_object(facts, ARITHMETIC), "prompt") is None:
        return None
    results = [_result(facts), _result(_object(facts, ARITHMETIC), ARITHMETIC)]
    tokens = [_tokens(vocabulary, result) for result in results]
    return _example(facts, ARITHMETIC, *tokens) if len(tokens[0]) == 1 else None


def _example(
    facts: Facts, counterfactual: str, right: list[int], wrong: list[int], *others: list[int]
) -> Example | None:
    """A pair, or None if the answers have other numbers of tokens or begin with the same one."""
    if len({len(right), len(wrong), *map(len, others)}) > 1 or right[0] == wrong[0]:
        return None
    prompts = _text(facts, "prompt"), _text(facts, counterfactual, "prompt")
    return Example(*prompts, (right[0],), (wrong[0],))


def _operator(facts: Facts, name: str) -> str:
    """The operator of a file: MIB's name of the task says it, else the first row."""
    for word, operator in (("subtraction", "-"), ("addition", "+")):
        if word in name.lower():
            return operator
    return _text(facts, "operator")


def _label(facts: Facts, *within: str) -> str:
    """The label of the right choice."""
    labels = _value(_object(facts, "choices", within=within), "label", within=(*within, "choices"))
    if isinstance(labels, str):  # a cell of a CSV
        try:
            labels = parse_json(labels, "'choices.label'")
        except JsonError as error:
            raise ValueError(f"{error}; a list is written as JSON") from error
    place = _whole(facts, "answerKey", within=within)
    if not isinstance(labels, list | tuple) or not 0 <= place < len(labels):
        raise ValueError(
            f"{_path('answerKey', within)} is {place}, counted from 0, but "
            f"{_path('choices.label', within)} is {labels!r}"
        )
    return _written(labels[place], "choices.label", within)


def _result(facts: Facts, *within: str) -> str:
    return _written(_value(facts, "label", within=within), "label", within)


# ------------------------------------------------------------------ values


def _tokens(vocabulary: Vocabulary, text: str) -> list[int]:
    """Token ids of an answer on its own, as MIB reads it, without any that the tokenizer adds."""
    if vocabulary.tokenizer is None:
        raise ValueError(f"{vocabulary.architecture.name} has no tokenizer, which answers need")
    ids = bare_ids(vocabulary.tokenizer, text)
    if not ids or ids[0] == vocabulary.unknown:
        raise ValueError(f"{vocabulary.architecture.name} has no token for the answer {text!r}")
    return ids


def _path(key: str, within: tuple[str, ...]) -> str:
    return repr(".".join((*within, key)))


def _value(facts: Facts, key: str, within: tuple[str, ...] = ()) -> Any:
    if key not in facts:
        raise ValueError(f"the key {_path(key, within)} is missing")
    return facts[key]


def _object(facts: Facts, key: str, within: tuple[str, ...] = ()) -> Facts:
    value = _value(facts, key, within)
    if not isinstance(value, Mapping):
        raise ValueError(
            f"{_path(key, within)} must be an object; got {value!r:.80} (in CSV give its parts as "
            f"columns, {key}.prompt and so on)"
        )
    return value


def _text(facts: Facts, *keys: str) -> str:
    *outer, last = keys
    inner = facts
    for place, key in enumerate(outer):
        inner = _object(inner, key, tuple(outer[:place]))
    value = _value(inner, last, tuple(outer))
    if not isinstance(value, str) or not value:
        raise ValueError(f"{_path(last, tuple(outer))} must be a text; got {value!r}")
    return value


def _whole(facts: Facts, key: str, within: tuple[str, ...] = ()) -> int:
    value = _value(facts, key, within)
    if isinstance(value, str) and value.isdecimal():  # a cell of a CSV
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{_path(key, within)} must be a whole number; got {value!r}")
    return value


def _written(value: Any, key: str, within: tuple[str, ...]) -> str:
    """A label or a result, which may be stored as a number."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError(f"{_path(key, within)} must be a text or a whole number; got {value!r}")
    return str(value)
