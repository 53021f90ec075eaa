"""What every benchmark prints with."""

from __future__ import annotations


def report(name: str, ratio: float, goal: float, at_most: bool = False) -> None:
    """Print one line, `NAME: 31.4x (goal 30x) ok`, or `SHORT` where the goal is missed.

    The goal is a lower bound of the ratio, or with `at_most` an upper bound. NaN misses both.
    """
    met = ratio <= goal if at_most else ratio >= goal
    digits = 1 if ratio >= 10 else 2
    bound = "at most " if at_most else ""
    verdict = "ok" if met else "SHORT"
    print(f"{name}: {ratio:.{digits}f}x (goal {bound}{goal:g}x) {verdict}", flush=True)
