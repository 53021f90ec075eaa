"""Prompts of a trial: a JSONL file, one object a line, each with what its controls need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strace_lens.model.architecture import Model
from strace_lens.model.checks import architecture_of
from strace_lens.model.prompts import Prompt, PromptError, tokenize
from strace_lens.utils.disk import lines_of, parse_object, read_text

_KEYS = {"prompt": str, "kind": str, "sibling": str, "wrong": int}


@dataclass(frozen=True)
class TrialPrompt:
    """A prompt and its controls.

    Attributes:
        prompt: the text whose next token is traced.
        wrong: index of the prompt whose output is the wrong target.
        kind: what sort of prompt it is, for grouping.
        sibling: a text of the same structure and number of tokens, or None.
    """

    prompt: str
    wrong: int
    kind: str = ""
    sibling: str | None = None


@dataclass(frozen=True)
class Case:
    """A `TrialPrompt` as a model reads it.

    Attributes:
        index: of the prompt, from 0.
        kind: what sort of prompt it is.
        prompt, sibling, wrong: tokens; the sibling's are as many as the prompt's.
    """

    index: int
    kind: str
    prompt: Prompt
    sibling: Prompt | None
    wrong: Prompt


def read_prompts(path: str | Path) -> list[TrialPrompt]:
    """Read prompts from a JSONL file with one object a line.

    Keys: `prompt` (required), `kind`, `sibling`, and `wrong`, the line of the prompt whose output
    is the wrong target, counted from 0 (by default the next line, after the last the first).

    Raises:
        OSError: the file cannot be read.
        ValueError: an empty file or a line that will not do; names the line, counted from 1.
    """
    lines = lines_of(read_text(path).rstrip())
    if not lines:
        raise ValueError(f"{path} is empty; give one JSON object a line, with a prompt")
    prompts = []
    for i, line in enumerate(lines):
        facts = parse_object(line, f"{path}, line {i + 1}")
        try:
            _check_keys(facts)
        except ValueError as error:
            raise ValueError(f"{path}, line {i + 1}: {error}") from error
        facts.setdefault("wrong", (i + 1) % len(lines))
        prompts.append(TrialPrompt(**facts))
    for i, prompt in enumerate(prompts):
        try:
            _check_wrong(i, prompt, prompts)
        except ValueError as error:
            raise ValueError(f"{path}, line {i + 1}: {error}") from error
    return prompts


def cases(model: Model, prompts: Sequence[TrialPrompt], bos: bool | None) -> list[Case]:
    """Tokenize prompts and their controls.

    Raises:
        PromptError: a prompt that cannot be traced, or a sibling of another number of tokens; names
            the line, counted from 1.
        ValueError: no prompts, or a wrong target that is the prompt's own output or that of none.
    """
    if not prompts:
        raise ValueError("no prompts; give two at least")
    architecture = architecture_of(model)
    tokenized, siblings = [], []
    for i, one in enumerate(prompts):
        try:
            tokens = tokenize(model, architecture, one.prompt, bos)
            sibling = None
            if one.sibling is not None:
                sibling = tokenize(model, architecture, one.sibling, bos)
                _check_sibling(tokens, sibling)
            _check_wrong(i, one, prompts)
        except ValueError as error:
            raise type(error)(f"line {i + 1}: {error}") from error
        tokenized.append(tokens)
        siblings.append(sibling)
    return [
        Case(i, one.kind, tokenized[i], siblings[i], tokenized[one.wrong])
        for i, one in enumerate(prompts)
    ]


def _check_keys(facts: dict[str, Any]) -> None:
    if "prompt" not in facts:
        raise ValueError('the key "prompt" is missing')
    for key, value in facts.items():
        if key not in _KEYS:
            raise ValueError(f"unknown key {key!r}; known are {', '.join(_KEYS)}")
        if type(value) is not _KEYS[key]:
            raise ValueError(f"{key!r} must be of type {_KEYS[key].__name__}; got {value!r}")


def _check_wrong(index: int, one: TrialPrompt, prompts: Sequence[TrialPrompt]) -> None:
    if len(prompts) == 1:
        raise ValueError(
            "a single prompt has no other whose output could be its wrong target; add a line"
        )
    if not 0 <= one.wrong < len(prompts):
        raise ValueError(
            f"'wrong' must be one of the lines 0 to {len(prompts) - 1}, counted from 0; "
            f"got {one.wrong}"
        )
    if one.wrong == index or prompts[one.wrong].prompt == one.prompt:
        raise ValueError(
            f"'wrong' is {one.wrong} (counted from 0), which is this prompt itself: "
            "its output is the right target"
        )


def _check_sibling(prompt: Prompt, sibling: Prompt) -> None:
    if len(sibling.ids) != len(prompt.ids):
        raise PromptError(
            f"the sibling has {len(sibling.ids)} tokens, the prompt {len(prompt.ids)}; "
            "give texts of equal token length"
        )
