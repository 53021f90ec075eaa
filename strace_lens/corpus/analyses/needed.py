"""The size a prompt needs for its nuclei, its top token, its head and its tail.

Source: s-Trace (arXiv 2605.27033), section "measures"; its authors' code for the rule "first".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from strace_lens.corpus.analyses.arrays import every_size
from strace_lens.corpus.run_folder import Run
from strace_lens.measures.refinement import THRESHOLD, restored_from
from strace_lens.measures.distributions import NUCLEI
from strace_lens.measures.sizes import RULES, size_for_nucleus

ERRORS = (0.01, 0.05, 0.1)
"""Absolute errors of head and tail to stay under."""

_QUARTILES = {"q1": 0.25, "median": 0.5, "q3": 0.75}


class Needed(NamedTuple):
    """The size that each prompt needs for what is asked, at a level, by a rule; NaN for none."""

    what: str
    level: float
    rule: str
    sizes: Float[np.ndarray, " prompt"]


def size_needed(run: Run) -> pd.DataFrame:
    """The smallest sizes at which prompts have what is asked for.

    Nuclei and the top token are asked for by two rules. By "stable" a size is enough if what is
    asked for holds there and at every larger size; by "first" it is enough if it holds there, as
    in the authors' code. Heads and tails are asked for by "stable" alone.

    A quartile is the smallest measured size at which that share of the prompts has it. A prompt
    that no size is enough for counts as infinite: a quartile that falls on such a prompt is NaN, as
    is the median where more than half are such. The authors' code drops these prompts instead,
    so that its medians are of those that get there; it also interpolates between the two middle
    prompts, has no refined sizes, and states sizes as k / |E|. The more sizes are measured, the
    earlier a first one is found by accident: `--refine 0` measures the grid alone.

    Returns:
        Columns `what`, `level`, `rule`, `median`, `q1`, `q3` (relative sizes), `never` (how many
        prompts no size is enough for: by "stable" those that do not have it at the largest size,
        by "first" those that have it at none) and `prompts`. By `what`:

        - "nucleus": the nucleus is shared up to p = `level`, for every p of `NUCLEI`;
        - "top1": the top token is the full model's; `level` is NaN;
        - "head_share" and "tail_share": the error stays under `level` times the full model's mass
          in that part;
        - "head_error" and "tail_error": the error stays under `level`.
    """
    return pd.DataFrame(
        [
            {
                "what": one.what,
                "level": one.level,
                "rule": one.rule,
                **{name: _reached_by(one.sizes, share) for name, share in _QUARTILES.items()},
                "never": int(np.isnan(one.sizes).sum()),
                "prompts": len(one.sizes),
            }
            for one in needed_by_prompt(run)
        ]
    ).reindex(columns=["what", "level", "rule", "median", "q1", "q3", "never", "prompts"])


def needed_by_prompt(run: Run) -> Iterator[Needed]:
    """The sizes that prompts need, by what is asked for, level and rule."""
    tables = every_size(run)

    def enough(
        column: str, holds: Callable[[np.ndarray], np.ndarray], rule: str = "stable"
    ) -> Float[np.ndarray, " prompt"]:
        curves = ((t["size"].to_numpy(), holds(t[column].to_numpy())) for t in tables)
        return np.array([RULES[rule](*curve) for curve in curves])

    for p in NUCLEI:
        for rule in RULES:
            curves = ((t["size"].to_numpy(), t["nucleus"].to_numpy()) for t in tables)
            sizes = np.array([size_for_nucleus(*curve, p, rule) for curve in curves])
            yield Needed("nucleus", p, rule, sizes)
    for rule in RULES:
        yield Needed("top1", math.nan, rule, enough("top1", lambda same: same.astype(bool), rule))
    masses = run.prompts["head_mass"].to_numpy(dtype=np.float64)
    shares = [restored_from(t, float(mass)) for t, mass in zip(tables, masses, strict=True)]
    for part, sizes in zip(("head", "tail"), np.array(shares, dtype=np.float64).T, strict=True):
        yield Needed(f"{part}_share", THRESHOLD, "stable", sizes)
    for part in ("head_error", "tail_error"):
        for error in ERRORS:
            under = enough(part, lambda errors, most=error: errors < most)
            yield Needed(part, error, "stable", under)


def _reached_by(sizes: Float[np.ndarray, " prompt"], share: float) -> float:
    """The smallest of the values that a share of the prompts does not exceed; NaN sorts last."""
    return float(np.sort(sizes)[math.ceil(share * len(sizes)) - 1])
