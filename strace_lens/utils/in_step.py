"""Searches that ask for measurements, run in step so that what they ask for is measured at once.

A search is a generator: it yields a list of things to measure and is sent a tensor with a row for
each. Many searches side by side then need no more rounds of measurement than the longest of them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from torch import Tensor

R = TypeVar("R")
Search = Generator[list[Any], Tensor, R]


def in_step(searches: Sequence[Search[R]]) -> Search[list[R]]:
    """Many searches as one, which asks in each round for all that they ask for.

    Returns:
        The results, in the order of the searches.
    """
    results: dict[int, R] = {}
    asked: dict[int, list[Any]] = {}

    def send(place: int, found: Tensor | None) -> None:
        try:
            asked[place] = _step(searches[place], found)
        except StopIteration as done:
            results[place] = done.value

    for place in range(len(searches)):
        send(place, None)
    while asked:
        round_ = list(asked.items())
        asked.clear()
        found = yield [thing for _, things in round_ for thing in things]
        of_each = found.split([len(things) for _, things in round_])
        for (place, _), own in zip(round_, of_each, strict=True):
            send(place, own)
    return [results[place] for place in range(len(searches))]


def translated(
    search: Search[R], question: Callable[[Any], Any], answer: Callable[[Tensor], Tensor]
) -> Search[R]:
    """A search that asks for other things, and is sent what is read off other measurements.

    Args:
        search: the search.
        question: what to ask for instead of a thing.
        answer: what the search is sent, from what was measured.
    """
    found = None
    while True:
        try:
            things = _step(search, found)
        except StopIteration as done:
            return done.value
        found = answer((yield [question(thing) for thing in things]))


def run_search(search: Search[R], measure: Callable[[list[Any]], Tensor]) -> R:
    """Run a search to its end."""
    found = None
    while True:
        try:
            things = _step(search, found)
        except StopIteration as done:
            return done.value
        found = measure(things)


def _step(search: Search[Any], found: Tensor | None) -> list[Any]:
    """What a search asks for next; raises StopIteration with its result at its end."""
    return next(search) if found is None else search.send(found)
