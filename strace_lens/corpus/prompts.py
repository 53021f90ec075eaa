"""Prompts of a corpus as given: read from rows, repeats dropped, sampled, cut to whole words."""

from __future__ import annotations

import bisect
import functools
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

Label = str | int | float | bool

CONTROL_LABELS = ("sibling", "wrong")
"""Labels of a prompt that name its controls: a text, and a text or the number of a prompt."""

_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""A character of a script that puts no spaces between words."""

SLACK = 4
"""By so many tokens at most may a longer prefix have fewer than a shorter one."""


class CorpusError(ValueError):
    """Raised when a corpus cannot be read, with the file, the line and the reason."""


@dataclass(frozen=True)
class CorpusPrompt:
    """A prompt as given, before tokenization.

    Attributes:
        text: the text, which is never blank.
        next: the text that really follows, with its leading space; None if it is unknown.
        labels: scalars by name; a missing one has no key.
    """

    text: str
    next: str | None = None
    labels: Mapping[str, Label] = field(default_factory=dict)


class Cut(NamedTuple):
    """Prompts cut to a range of tokens, and how many were dropped."""

    prompts: tuple[CorpusPrompt, ...]
    """Within the range, in the order given."""

    too_short: int
    """Texts with fewer tokens than the range begins at."""

    no_boundary: int
    """Texts with no place to be cut in the range, as one very long word."""


def generator_for(text: str, seed: int) -> np.random.Generator:
    """A random generator that depends on a text and a seed alone."""
    entropy = hashlib.sha256(text.encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(entropy[:16])])


def prompt_of(
    values: Mapping[str, Any], where: str, text_column: str, next_column: str
) -> CorpusPrompt:
    """A prompt of one row of a source: text, next, and every other column a label.

    What follows may be missing, null or empty. `where` names the row in an error.

    Raises:
        CorpusError: the text is missing, no string or blank, or a value is no scalar.
    """
    if text_column not in values:
        raise CorpusError(f"{where}: no {text_column!r}; there are {listed(values)}")
    text, following = values[text_column], values.get(next_column)
    if not isinstance(text, str):
        raise CorpusError(
            f"{where}: {text_column!r} must be text; got {_shown(text)}; fill it in or drop the row"
        )
    if not text.strip():
        raise CorpusError(f"{where}: {text_column!r} is empty")
    if not (following is None or isinstance(following, str)):
        raise CorpusError(f"{where}: {next_column!r} must be text; got {_shown(following)}")
    for name in values:
        if name not in (text_column, next_column) and name.strip() in (text_column, next_column):
            raise CorpusError(
                f"{where}: the name {name!r} has a space at its ends; write {name.strip()!r}"
            )
    labels = {}
    for name, value in values.items():
        if name in (text_column, next_column) or value is None or value != value:  # NaN
            continue
        if not isinstance(value, Label):
            raise CorpusError(
                f"{where}: label {name!r} must be text, a number or a truth value; got "
                f"{_shown(value)}; drop the column or write it as text"
            )
        labels[name] = value
    return CorpusPrompt(text, following or None, labels)


def listed(names: Mapping[str, Any] | list[str]) -> str:
    """Names in a row, for an error."""
    return ", ".join(map(repr, names)) or "none"


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def with_wrong_texts(prompts: Sequence[CorpusPrompt]) -> list[CorpusPrompt]:
    """Prompts whose label `wrong` is the text whose output is the wrong target.

    The label may hold the text, or the number of a prompt from 0; without it the next prompt is
    taken, after the last the first.

    Raises:
        CorpusError: a label that names no prompt, or the prompt itself; or a single prompt.
    """
    named = []
    for number, one in enumerate(prompts):
        wrong = one.labels.get("wrong", (number + 1) % len(prompts))
        where = f"prompt {number} (counted from 0)"
        if not isinstance(wrong, str):
            if len(prompts) == 1:
                raise CorpusError(
                    f"{where} has no other whose output could be its wrong target; add a prompt, "
                    "or name a text as its 'wrong'"
                )
            if isinstance(wrong, bool | float) or not 0 <= wrong < len(prompts):
                raise CorpusError(
                    f"{where}: 'wrong' must be a text or the number of a prompt, from 0 to "
                    f"{len(prompts) - 1}; got {wrong!r}"
                )
            wrong = prompts[wrong].text
        if wrong == one.text:
            raise CorpusError(
                f"{where}: its 'wrong' is its own text, whose output is the right target; name "
                "another prompt"
            )
        named.append(replace(one, labels={**one.labels, "wrong": wrong}))
    return named


def deduplicate(prompts: Sequence[CorpusPrompt]) -> list[CorpusPrompt]:
    """The first of all prompts whose texts differ in nothing but whitespace."""
    firsts: dict[str, CorpusPrompt] = {}
    for prompt in prompts:
        firsts.setdefault(" ".join(prompt.text.split()), prompt)
    return list(firsts.values())


def sample(prompts: Sequence[CorpusPrompt], count: int, seed: int = 0) -> list[CorpusPrompt]:
    """So many prompts, drawn without replacement, in the order given.

    Raises:
        ValueError: there are not so many.
    """
    if not 1 <= count <= len(prompts):
        raise ValueError(f"cannot sample {count} of {len(prompts)} prompts; ask for 1 to all")
    drawn = np.random.default_rng(seed).choice(len(prompts), count, replace=False)
    return [prompts[i] for i in sorted(drawn)]


def cut_to_words(
    count: Callable[[str], int],
    prompts: Sequence[CorpusPrompt],
    low: int,
    high: int,
    seed: int = 0,
    token_ends: Callable[[str], Sequence[int]] | None = None,
) -> Cut:
    """Cut each text after a word, so that its number of tokens lies in a range.

    Words end at spaces. In scripts without spaces between words (Chinese, Japanese, Thai, Lao,
    Khmer, Burmese) a text may also be cut after a token, if `token_ends` is given. The end is drawn
    uniformly from all ends of words whose prefix lies in the range, and depends only on seed and
    text. `next` becomes the word that followed, with the space before it; a text that is not cut
    keeps its own.

    Args:
        count: returns the number of tokens of a text.
        prompts: prompts of any length.
        low: fewest tokens.
        high: most tokens.
        seed: seed of the draw.
        token_ends: returns where the tokens of a text end, as `ends_of_tokens` of a tokenizer does.

    Raises:
        ValueError: the range is empty or begins below 1.
    """
    if not 1 <= low <= high:
        raise ValueError(f"the range of tokens must be 1 <= low <= high; got {low} to {high}")
    kept: list[CorpusPrompt] = []
    too_short = no_boundary = 0
    for prompt in prompts:
        ends = _ends(prompt.text, token_ends)
        tokens = functools.cache(lambda end, text=prompt.text: count(text[:end]))
        inside = _inside(tokens, ends, low, high)
        if inside:
            drawn = generator_for(prompt.text, seed).integers(len(inside))
            kept.append(_cut(prompt, ends, inside[drawn]))
        elif not ends or tokens(ends[-1]) < low:
            too_short += 1
        else:
            no_boundary += 1
    return Cut(tuple(kept), too_short, no_boundary)


def ends_of_tokens(tokenizer: Any, text: str) -> list[int]:
    """Places in a text at which one of its tokens ends, and a character with it.

    A tokenizer that does not say where its tokens lie (a slow one of transformers) gives the end of
    every character.
    """
    if not getattr(tokenizer, "is_fast", False):
        return list(range(1, len(text) + 1))
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = [*found["offset_mapping"], (len(text), len(text))]
    # A character of several tokens is the span of each of them.
    return [end for (_, end), (following, _) in pairwise(spans) if following >= end]


def _ends(text: str, token_ends: Callable[[str], Sequence[int]] | None) -> list[int]:
    """Ends of words, and ends of tokens next to a character of a script without spaces."""
    words = [word.end() for word in re.finditer(r"\S+", text)]
    if token_ends is None or not _UNSPACED.search(text):
        return words
    tokens = [
        end
        for end in token_ends(text)
        if 0 < end < len(text)
        and not re.search(r"\s", text[end - 1 : end + 1])
        and _UNSPACED.search(text[end - 1 : end + 1])
    ]
    return sorted({*words, *tokens})


def _inside(tokens: Callable[[int], int], ends: Sequence[int], low: int, high: int) -> list[int]:
    """Which ends of words have a prefix in the range; all of them, if `SLACK` holds.

    Bisection leaves on either side only ends that it knows to be out: those before an end with
    fewer than low - SLACK tokens, and those behind one with more than high + SLACK.
    """

    def beyond(end: int) -> bool:
        return tokens(end) > high + SLACK

    # A long text is never counted whole: a word is rarely less than a token.
    width = high + SLACK
    while width < len(ends) and not beyond(ends[width]):
        width *= 2
    stop = bisect.bisect_left(ends, True, hi=min(width, len(ends)), key=beyond)
    start = bisect.bisect_left(ends, True, hi=stop, key=lambda end: tokens(end) >= low - SLACK)
    return [place for place in range(start, stop) if low <= tokens(ends[place]) <= high]


def _cut(prompt: CorpusPrompt, ends: Sequence[int], place: int) -> CorpusPrompt:
    end = ends[place]
    if place + 1 < len(ends):
        following = prompt.text[end : ends[place + 1]]
    else:
        following = prompt.text[end:] + prompt.next if prompt.next else None
    return replace(prompt, text=prompt.text[:end], next=following)
