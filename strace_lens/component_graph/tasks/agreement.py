"""Subject-verb agreement, with and without an attractor between subject and verb."""

from __future__ import annotations

import random

from strace_lens.component_graph.tasks.alignment import Example, Vocabulary
from strace_lens.component_graph.tasks.words import (
    ADJECTIVES,
    PEOPLE,
    PLURAL_VERBS,
    PREPOSITIONS,
    SINGULAR_VERBS,
    THINGS,
)

_VERBS = tuple(tuple(f" {verb}" for verb in verbs) for verbs in (SINGULAR_VERBS, PLURAL_VERBS))


def agreement(generator: random.Random, vocabulary: Vocabulary) -> Example:
    """The verb agrees with its subject; the corrupted subject has the other number.

    Linzen et al. (2016), "Assessing the ability of LSTMs to learn syntax-sensitive dependencies".
    """
    number = generator.randrange(2)
    person = generator.choice(PEOPLE)
    start = f"Everyone knows that the {generator.choice(ADJECTIVES)} "
    return Example(
        clean=start + person[number],
        corrupted=start + person[1 - number],
        answers=_VERBS[number],
        incorrect=_VERBS[1 - number],
    )


def agreement_attractor(generator: random.Random, vocabulary: Vocabulary) -> Example:
    """The same with a noun of the other number between subject and verb.

    The corrupted prompt changes the number of the subject alone. Linzen et al. (2016).
    """
    number = generator.randrange(2)
    person = generator.choice(PEOPLE)
    attractor = generator.choice(THINGS)[1 - number]
    start = f"Everyone knows that the {generator.choice(ADJECTIVES)} "
    between = f" {generator.choice(PREPOSITIONS)} the {attractor}"
    return Example(
        clean=start + person[number] + between,
        corrupted=start + person[1 - number] + between,
        answers=_VERBS[number],
        incorrect=_VERBS[1 - number],
    )
