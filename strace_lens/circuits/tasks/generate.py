"""Tasks made from a seed, with no download, on the tokenizer of the loaded model."""

from __future__ import annotations

import functools
import operator
import random
from collections.abc import Callable, Mapping

from strace_lens.circuits.metrics import METRICS
from strace_lens.circuits.task import Task, TaskError
from strace_lens.circuits.tasks.alignment import (
    Example,
    Pair,
    Vocabulary,
    align,
    task_of,
    vocabulary_of,
)
from strace_lens.circuits.tasks.words import (
    ADJECTIVES,
    ARGUMENTS,
    CAPITALS,
    EVENTS,
    FUNCTIONS,
    MEN,
    OBJECTS,
    PEOPLE,
    PLACES,
    PLURAL_VERBS,
    PREPOSITIONS,
    ROLES,
    SINGULAR_VERBS,
    SUBJECTS,
    THINGS,
    WOMEN,
)
from strace_lens.model.architecture import Model
from strace_lens.model.hold import verb
from strace_lens.model.prompts import PromptError
from strace_lens.model.skeleton import Skeleton

# All of one length where names, places and objects are one token each.
_STORIES = (
    "When{0} and{1} went to the {place},{2} gave a {object} to",
    "While{0} and{1} were at the {place},{2} gave a {object} to",
    "After{0} and{1} left from the {place},{2} handed a {object} to",
    "Once{0} and{1} came to the {place},{2} passed a {object} to",
)


def indirect_object(generator: random.Random, vocabulary: Vocabulary) -> Example:
    """The name that was named once receives the object; ABBA or BABA by chance.

    The corrupted prompt has three other names (ABC), none of them twice. Wang et al. (2023),
    "Interpretability in the Wild".
    """
    receiver, giver, *others = generator.sample(WOMEN + MEN, 5)
    story = generator.choice(_STORIES)
    words = {"place": generator.choice(PLACES), "object": generator.choice(OBJECTS)}
    first, second = generator.choice([(receiver, giver), (giver, receiver)])
    return Example(
        clean=story.format(*_spaced(first, second, giver), **words),
        corrupted=story.format(*_spaced(*others), **words),
        answers=_spaced(receiver),
        incorrect=_spaced(giver),
    )


def gendered_pronoun(generator: random.Random, vocabulary: Vocabulary) -> Example:
    """The pronoun agrees with a name; the corrupted prompt has a name of the other gender.

    Mathwin et al. (2023), "Identifying a preliminary circuit for predicting gendered pronouns in
    GPT-2 small".
    """
    sides = [(WOMEN, " she"), (MEN, " he")]
    generator.shuffle(sides)
    (names, answer), (others, wrong) = sides
    story = f"So{{}} is such a good {generator.choice(ROLES)}, isn't"
    return Example(
        clean=story.format(*_spaced(generator.choice(names))),
        corrupted=story.format(*_spaced(generator.choice(others))),
        answers=(answer,),
        incorrect=(wrong,),
    )


def _spaced(*words: str) -> tuple[str, ...]:
    """Words as they stand in a sentence: a tokenizer reads the space as part of the word."""
    return tuple(f" {word}" for word in words)


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


_VERBS = tuple(tuple(f" {verb}" for verb in verbs) for verbs in (SINGULAR_VERBS, PLURAL_VERBS))


def agreement(
    generator: random.Random, vocabulary: Vocabulary, *, attractor: bool = False
) -> Example:
    """The verb agrees with its subject; the corrupted subject has the other number.

    With an attractor, a noun of the other number stands between subject and verb in both prompts.
    Linzen et al. (2016), "Assessing the ability of LSTMs to learn syntax-sensitive dependencies".
    """
    number = generator.randrange(2)
    person = generator.choice(PEOPLE)
    noun = generator.choice(THINGS)[1 - number] if attractor else ""
    start = f"Everyone knows that the {generator.choice(ADJECTIVES)} "
    between = f" {generator.choice(PREPOSITIONS)} the {noun}" if attractor else ""
    return Example(
        clean=start + person[number] + between,
        corrupted=start + person[1 - number] + between,
        answers=_VERBS[number],
        incorrect=_VERBS[1 - number],
    )


def country_capital(generator: random.Random, vocabulary: Vocabulary) -> Example:
    """The capital of a country; the corrupted prompt asks for another country's.

    After the capital-country task of Merullo et al. (2024), "Language models implement simple
    word2vec-style vector arithmetic".
    """
    country, other = generator.sample(sorted(CAPITALS), 2)
    return Example(
        clean=f"The capital of {country} is the city of",
        corrupted=f"The capital of {other} is the city of",
        answers=(f" {CAPITALS[country]}",),
        incorrect=(f" {CAPITALS[other]}",),
    )


def docstring(generator: random.Random, vocabulary: Vocabulary) -> Example:
    """The third argument of a function follows the first two in its docstring.

    The corrupted prompt has other arguments in the definition; wrong are the definition's other
    arguments. Heimersheim and Janiak (2023), "A circuit for Python docstrings in a 4-layer
    attention-only transformer".
    """
    names = generator.sample(ARGUMENTS, 8)
    about = generator.sample(SUBJECTS, 7)
    head = f"def {generator.choice(FUNCTIONS)}(self"
    body = (
        f'):\n    """The {about[0]} {about[1]} {about[2]}\n\n'
        f"    :param {names[0]}: {about[3]} {about[4]}\n"
        f"    :param {names[1]}: {about[5]} {about[6]}\n"
        "    :param"
    )
    clean, corrupted = ("".join(f", {name}" for name in some) for some in (names[:4], names[4:]))
    return Example(
        clean=head + clean + body,
        corrupted=head + corrupted + body,
        answers=(f" {names[2]}",),
        incorrect=tuple(f" {names[i]}" for i in (0, 1, 3)),
    )


def induction(generator: random.Random, vocabulary: Vocabulary) -> Example:
    """Random tokens are repeated; what followed the last one before follows again.

    The block `x x x x x a b x c d` comes twice, then `x x x x x a`: the answer is b. In the
    corrupted prompt a and c change places in both blocks, so that a is followed by d; every other
    token stays where it was. Olsson et al. (2022), "In-context learning and induction heads".
    """
    *start, a, b, between, c, d = vocabulary.ordinary(generator, 10)
    clean, corrupted = (*start, a, b, between, c, d), (*start, c, b, between, a, d)
    first, last = vocabulary.start, (*start, a)
    return Example(
        clean=(*first, *clean, *clean, *last),
        corrupted=(*first, *corrupted, *corrupted, *last),
        answers=(b,),
        incorrect=(d,),
    )


TASKS: dict[str, Callable[[random.Random, Vocabulary], Example]] = {
    "ioi": indirect_object,
    "greater-than": greater_than,
    "agreement": agreement,
    "agreement-attractor": functools.partial(agreement, attractor=True),
    "gendered-pronoun": gendered_pronoun,
    "docstring": docstring,
    "country-capital": country_capital,
    "induction": induction,
}
"""Generators by name of the task: each draws one pair of prompts."""

DEFAULT_METRIC: Mapping[str, str] = {"greater-than": "probability_difference"}
"""Metric of a task where it is not `logit_difference`."""

_DRAWS_PER_PAIR = 50


@verb
def make_task(
    model: Model | Skeleton,
    name: str,
    pairs: int = 32,
    seed: int = 0,
    metric: str | None = None,
) -> Task:
    """Generate a task for a model.

    Pairs that do not align token by token on the model's tokenizer are dropped and counted; more
    are drawn in their place. No pair comes twice, so a task may end up with fewer pairs than asked.

    Args:
        model: any model with a tokenizer (`induction` needs none), or a `skeleton`.
        name: key of `TASKS`.
        pairs: how many pairs, at least 1.
        seed: the same seed gives the same task.
        metric: key of `METRICS`; by default the task's own.

    Raises:
        TaskError: an unknown task or metric, no pairs asked for, or fewer than 2 that align.
        PromptError: no tokenizer, or a prompt longer than the model's context.

    Example:
        >>> sl.make_task(sl.load_model(), "ioi", pairs=4)
        Task(ioi: 4 pairs of up to 14 tokens)
    """
    if name not in TASKS:
        raise TaskError(f"unknown task {name!r}; choose from {', '.join(TASKS)}")
    if operator.index(pairs) < 1:
        raise TaskError(f"a task needs at least one pair; got pairs={pairs}")
    metric = DEFAULT_METRIC.get(name, "logit_difference") if metric is None else metric
    if metric not in METRICS:
        raise TaskError(f"unknown metric {metric!r}; choose from {', '.join(METRICS)}")
    vocabulary = vocabulary_of(model)
    kept, dropped = _draw(TASKS[name], vocabulary, pairs, random.Random(f"{name} {seed}"))
    if len(kept) < min(2, pairs):
        raise TaskError(
            f"of {len(kept) + dropped} pairs of {name}, {len(kept)} align on the tokenizer of "
            f"{vocabulary.architecture.name}; give pairs of your own with read_task"
        )
    made = {"seed": seed, "pairs": pairs, "model": vocabulary.architecture.name}
    return task_of(name, kept, metric, dropped, made)


def _draw(
    draw: Callable[[random.Random, Vocabulary], Example],
    vocabulary: Vocabulary,
    pairs: int,
    generator: random.Random,
) -> tuple[list[Pair], int]:
    """The first different pairs that align, and how many did not."""
    seen: set[Example] = set()
    kept: list[Pair] = []
    for _ in range(_DRAWS_PER_PAIR * pairs):
        example = draw(generator, vocabulary)
        if example in seen:
            continue
        seen.add(example)
        pair = align(vocabulary, example)
        if pair is not None:
            kept.append(pair)
        if len(kept) == pairs:
            break
    return kept, len(seen) - len(kept)
