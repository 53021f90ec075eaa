"""Prompts made alike: repeats dropped, cut to whole words at a range of tokens, sampled."""

from __future__ import annotations

import bisect
import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from strace_lens.corpus.prompts import CorpusPrompt

SLACK = 4
"""By so many tokens at most may a longer prefix have fewer than a shorter one."""


@dataclass(frozen=True)
class Cut:
    """Prompts cut to a range of tokens, and how many were dropped.

    Attributes:
        prompts: within the range, in the order given.
        too_short: texts with fewer tokens than the range begins at.
        no_boundary: texts with no end of a word in the range, as one very long word.
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
) -> Cut:
    """Cut each text behind a word, so that its tokens lie in a range.

    The end is drawn evenly from all ends of words whose prefix lies in the range, by seed and text
    alone: neither the order nor the other prompts matter. The text keeps its spacing. `next`
    becomes the word that followed, with the space before it; a text that stays whole keeps its own.

    Args:
        count: tokens of a text.
        prompts: of any length.
        low: fewest tokens.
        high: most tokens.
        seed: of the draw.

    Raises:
        ValueError: a range that is empty or begins below 1.
    """
    if not 1 <= low <= high:
        raise ValueError(f"the range of tokens must be 1 <= low <= high; got {low} to {high}")
    kept: list[CorpusPrompt] = []
    too_short = no_boundary = 0
    for prompt in prompts:
        ends = [word.end() for word in re.finditer(r"\S+", prompt.text)]
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
    entropy = hashlib.sha256(text.encode()).digest()
    draw = np.random.default_rng([seed, int.from_bytes(entropy[:16])])
    return int(draw.integers(choices))


def _cut(prompt: CorpusPrompt, ends: Sequence[int], place: int) -> CorpusPrompt:
    end = ends[place]
    if place + 1 < len(ends):
        following = prompt.text[end : ends[place + 1]]
    else:
        following = prompt.text[end:] + prompt.next if prompt.next else None
    return replace(prompt, text=prompt.text[:end], next=following)
