"""Prompts made alike: repeats dropped, cut to whole words at a range of tokens, sampled."""

from __future__ import annotations

import bisect
import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from strace_lens.corpus.altered import generator_for
from strace_lens.corpus.prompts import CorpusPrompt

_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""A character of a script that puts no spaces between words."""

SLACK = 4
"""By so many tokens at most may a longer prefix have fewer than a shorter one."""


@dataclass(frozen=True)
class Cut:
    """Prompts cut to a range of tokens, and how many were dropped.

    Attributes:
        prompts: within the range, in the order given.
        too_short: texts with fewer tokens than the range begins at.
        no_boundary: texts with no place to be cut in the range, as one very long word.
    """

    prompts: tuple[CorpusPrompt, ...]
    too_short: int
    no_boundary: int


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
    """Cut each text behind a word, so that its tokens lie in a range.

    Words end where spaces are. In scripts that write no spaces between words (Chinese, Japanese,
    Thai, Lao, Khmer, Burmese) a text may be cut behind a token as well, if `token_ends` is given.

    The end is drawn evenly from all ends of words whose prefix lies in the range, by seed and text
    alone: neither the order nor the other prompts matter. The text keeps its spacing. `next`
    becomes the word that followed, with the space before it; a text that stays whole keeps its own.

    Args:
        count: tokens of a text.
        prompts: of any length.
        low: fewest tokens.
        high: most tokens.
        seed: of the draw.
        token_ends: places in a text at which its tokens end, as `ends_of_tokens` of a tokenizer.

    Raises:
        ValueError: a range that is empty or begins below 1.
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
            place = inside[_draw(prompt.text, seed, len(inside))]
            kept.append(_cut(prompt, ends, place))
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


def _draw(text: str, seed: int, choices: int) -> int:
    return int(generator_for(text, seed).integers(choices))


def _cut(prompt: CorpusPrompt, ends: Sequence[int], place: int) -> CorpusPrompt:
    end = ends[place]
    if place + 1 < len(ends):
        following = prompt.text[end : ends[place + 1]]
    else:
        following = prompt.text[end:] + prompt.next if prompt.next else None
    return replace(prompt, text=prompt.text[:end], next=following)
