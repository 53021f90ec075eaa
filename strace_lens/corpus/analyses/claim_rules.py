"""What the s-Trace paper claims, by which statistics it is tested, and when a claim holds.

Source: s-Trace (arXiv 2605.27033). The six claims are those of its abstract and results, on ten
models of 7 to 14B parameters; the statistics and the rules are this package's. Every rule is a
range: the claim holds if the whole 95 % interval lies in it, does not hold if none of the interval
does, and otherwise it cannot be told.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

HOLDS, HOLDS_NOT, CANNOT_TELL = "holds", "does not hold", "cannot be told"
VERDICTS = (HOLDS, HOLDS_NOT, CANNOT_TELL)

LEAST_PROMPTS = 4
"""Prompts below which no interval is trusted with a verdict."""

TOLERANCE = 10
"""A size agrees with the paper's if it is within this factor: one order of magnitude."""

CLAIMS = {
    1: "Computation falls into two phases as the trace grows: construction, then refinement.",
    2: "A small trace, mostly of early layers, rebuilds the head of the output distribution.",
    3: "What is added afterwards lies in later layers, and is more and more attention.",
    4: "The computation that a prompt needs (its density) grows with the model's uncertainty.",
    5: "Sparse traces predict shallow statistics: their output is near the unigram distribution.",
    6: "The organisation is consistent across models: the densities of prompts correlate.",
}
"""The claims by number."""

NOT_KNOWN = "not known here"
_START, _STOP, _SMALL = 1e-4, 1e-2, 1e-3  # where the paper draws construction; its small trace
_POSITIVE, _NEGATIVE = (0.0, math.inf), (-math.inf, 0.0)
_DIFFERENCE, _RHO = "{:+.2g}", "{:.2f}"


class Statistic(NamedTuple):
    """One number by which a claim is tested."""

    claim: int
    """Its number in `CLAIMS`."""

    text: str
    """What it is, in words."""

    within: tuple[float, float]
    """The claim holds between these values: both included, or above or below the finite one."""

    decides: bool = False
    """Whether the verdict on the claim depends on it. The others are shown and decide nothing."""

    paper: str = NOT_KNOWN
    """The paper's own value, as text."""

    shown: str = "{:.3g}"
    """The format of the value."""

    @property
    def rule(self) -> str:
        """The rule in words."""
        low, high = self.within
        if high == math.inf:
            where, other = f"above {low:g}", "below"
        elif low == -math.inf:
            where, other = f"below {high:g}", "above"
        else:
            where = f"from {low:g} to {high:g}" if low else f"at or below {high:g}"
            other = "outside" if low else "above"
        return f"holds if the interval lies {where}, does not hold if it lies {other}"

    def verdict(self, low: float, high: float, prompts: int) -> str:
        """What an interval over so many prompts says; `CANNOT_TELL` without an interval."""
        if math.isnan(low) or math.isnan(high) or prompts < LEAST_PROMPTS:
            return CANNOT_TELL
        least, most = self.within
        if math.isinf(least) or math.isinf(most):
            inside = least < low and high < most
        else:
            inside = least <= low and high <= most
        if inside:
            return HOLDS
        return HOLDS_NOT if high < least or low > most else CANNOT_TELL


STATISTICS = {
    "two_phases": Statistic(
        1,
        "share of prompts whose curve has construction followed by refinement",
        within=(0.5, math.inf),
        decides=True,
    ),
    "construction_start": Statistic(
        1,
        "size at which construction starts (geometric mean of the prompts that have it)",
        within=(_START / TOLERANCE, _START * TOLERANCE),
        paper=f"drawn at {_START:g}",
    ),
    "construction_stop": Statistic(
        1,
        "size at which construction ends (geometric mean of the prompts that have it)",
        within=(_STOP / TOLERANCE, _STOP * TOLERANCE),
        paper=f"drawn at {_STOP:g}",
    ),
    "top1_first": Statistic(
        2,
        "first size with the model's top token (median)",
        within=(0.0, _SMALL * TOLERANCE),
        decides=True,
        paper=f"about {_SMALL:g}",
    ),
    "top1_stable": Statistic(
        2,
        "size from which on the top token is the model's (median)",
        within=(0.0, _SMALL * TOLERANCE),
    ),
    "head_size": Statistic(
        2,
        "size of the head subgraph (geometric mean)",
        within=(0.0, _SMALL * TOLERANCE),
        decides=True,
    ),
    "head_ablatable_size": Statistic(
        2,
        "share of the ablatable edges that the head subgraph holds (geometric mean)",
        within=(0.0, _SMALL * TOLERANCE),
    ),
    "head_depth": Statistic(
        2,
        "depth of the head subgraph less the whole graph's",
        within=_NEGATIVE,
        decides=True,
        shown=_DIFFERENCE,
    ),
    "head_ablatable_depth": Statistic(
        2,
        "depth of the head subgraph's ablatable edges less that of all ablatable edges",
        within=_NEGATIVE,
        shown=_DIFFERENCE,
    ),
    "added_depth": Statistic(
        3,
        "depth of the tail refinement less that of random draws from what the head subgraph "
        "leaves, as many of each kind",
        within=_POSITIVE,
        decides=True,
        shown=_DIFFERENCE,
    ),
    "added_ablatable_depth": Statistic(
        3,
        "depth of the tail refinement's ablatable edges less that of such draws",
        within=_POSITIVE,
        shown=_DIFFERENCE,
    ),
    "added_depth_from_head": Statistic(
        3,
        "depth of the tail refinement less the head subgraph's",
        within=_POSITIVE,
        shown=_DIFFERENCE,
    ),
    "added_attention": Statistic(
        3,
        "attention's share of the tail refinement less its share of what the head subgraph leaves",
        within=_POSITIVE,
        decides=True,
        shown=_DIFFERENCE,
    ),
    "added_attention_from_head": Statistic(
        3,
        "attention's share of the tail refinement less its share of the head subgraph",
        within=_POSITIVE,
        shown=_DIFFERENCE,
    ),
    "density_entropy": Statistic(
        4, "rank correlation of density and entropy", within=_POSITIVE, decides=True, shown=_RHO
    ),
    "half_size_entropy": Statistic(
        4,
        "rank correlation of entropy and the size at which TV falls to half of its plateau",
        within=_POSITIVE,
        shown=_RHO,
    ),
    "unigram": Statistic(
        5,
        "TV of sparse traces to the unigram distribution less the full model's",
        within=_NEGATIVE,
        decides=True,
        shown=_DIFFERENCE,
    ),
    "no_context": Statistic(
        5,
        "TV of sparse traces to the model's output without context less the full model's",
        within=_NEGATIVE,
        shown=_DIFFERENCE,
    ),
    "density_between": Statistic(
        6,
        "rank correlation of the prompts' densities with another run's",
        within=_POSITIVE,
        decides=True,
        shown=_RHO,
    ),
}
"""Every statistic by name, in the order of the claims."""


def claim_verdict(verdicts: Iterable[str]) -> str:
    """The verdict on a claim from those of the statistics that decide it.

    It holds if every part holds, and does not hold as stated if one part does not.
    """
    parts = set(verdicts)
    if HOLDS_NOT in parts:
        return HOLDS_NOT
    return HOLDS if parts == {HOLDS} else CANNOT_TELL
