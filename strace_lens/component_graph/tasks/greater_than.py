"""Greater-than: a span of years ends after it starts."""

from __future__ import annotations

import random

from strace_lens.component_graph.tasks.alignment import Example, Vocabulary
from strace_lens.component_graph.tasks.words import EVENTS
from strace_lens.model.prompts import PromptError

_CENTURIES = range(11, 18)
_TRIES = 100


def greater_than(generator: random.Random, vocabulary: Vocabulary) -> Example:
    """The last digits of the year in which an event ends are greater than those of its start.

    Hanna et al. (2023), "How does GPT-2 compute greater-than?": answers are the
    two-digit tokens above the start's, wrong all others, and the corrupted start is the year 01.
    Where the tokenizer splits years into single digits, years end in 9, so that the tens digit
    alone decides: answers are the tens digits above the start's, wrong the others, and the
    corrupted start is the year 09.

    Raises:
        PromptError: the tokenizer splits years in neither way.
    """
    event = generator.choice(EVENTS)
    for _ in range(_TRIES):
        century = generator.choice(_CENTURIES)
        start = f"The {event} lasted from the year {century}"
        year = generator.randrange(2, 99)
        if _adds(vocabulary, start, f"{year:02}", 1):
            endings, bound, corrupted = [f"{i:02}" for i in range(100)], year, "01"
            clean = f"{year:02}"
        elif _adds(vocabulary, start, f"{year:02}", 2):
            tens = generator.randrange(1, 9)
            endings, bound, corrupted = [str(i) for i in range(10)], tens, "09"
            clean = f"{tens}9"
        else:  # a year that is one token
            continue
        return Example(
            clean=f"{start}{clean} to the year {century}",
            corrupted=f"{start}{corrupted} to the year {century}",
            answers=tuple(endings[bound + 1 :]),
            incorrect=tuple(endings[: bound + 1]),
        )
    raise PromptError(
        f"the tokenizer of {vocabulary.architecture.name} splits years like 1739 neither into "
        "two and two digits nor into single ones; greater-than cannot be asked"
    )


def _adds(vocabulary: Vocabulary, start: str, digits: str, tokens: int) -> bool:
    """Whether the digits add that many tokens to the start and change none of it."""
    before, after = vocabulary.ids(start), vocabulary.ids(start + digits)
    return after[: len(before)] == before and len(after) - len(before) == tokens
