"""Two small trials of a tiny model for every test of trials."""

from __future__ import annotations

import functools

import strace_lens as sl
from tests import tiny

SIZES = (0.001, 0.01, 0.05, 0.1, 0.2, 0.4, 0.9)
ESTIMATORS = ("greedy", "fisher")


def text(first: int, words: int = 9) -> str:
    return " ".join(tiny.WORDS[first : first + words])


PROMPTS = (
    sl.TrialPrompt(text(0), wrong=2, kind="with sibling", sibling=text(12)),
    sl.TrialPrompt(text(24, 10), wrong=0, kind="alone"),
    sl.TrialPrompt(text(36), wrong=1),
)


@functools.cache
def trials() -> sl.Trials:
    """Two estimators on the first two prompts, two seeds."""
    return sl.run_trials(tiny.bridge("llama"), PROMPTS, estimators=ESTIMATORS, sizes=SIZES, limit=2)
