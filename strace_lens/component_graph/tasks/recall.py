"""Tasks of recall: a known fact, an argument of a function, a token seen before."""

from __future__ import annotations

import random

from strace_lens.component_graph.tasks.alignment import Example, Vocabulary
from strace_lens.component_graph.tasks.words import ARGUMENTS, CAPITALS, FUNCTIONS, SUBJECTS


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
