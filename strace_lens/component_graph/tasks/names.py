"""Tasks of names: who is given something, and which pronoun a name takes."""

from __future__ import annotations

import random

from strace_lens.component_graph.tasks.alignment import Example, Vocabulary
from strace_lens.component_graph.tasks.words import MEN, OBJECTS, PLACES, ROLES, WOMEN

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
