"""The size a prompt needs for its nuclei, its top token, its head and its tail.

Source: s-Trace (arXiv 2605.27033), section "measures".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from jaxtyping import Float

from strace_lens.corpus.analyses.arrays import every_size
from strace_lens.corpus.run_folder import Run
from strace_lens.measures import NUCLEI
from strace_lens.phases import THRESHOLD, restored_from
from strace_lens.sizes import size_for_nucleus, smallest_size_from_which

ERRORS = (0.01, 0.05, 0.1)
"""Absolute errors of head and tail to stay under."""

_QUARTILES = {"q1": 0.25, "median": 0.5, "q3": 0.75}


def size_needed(run: Run) -> pd.DataFrame:
    """From which size on prompts have what is asked for, at every larger size too.

    A quartile is the smallest measured size at which that share of the prompts has it. A prompt
    that does not have it at the largest size counts as infinite: a quartile that falls on such a
    prompt is NaN, as is the median where more than half are such.

    Returns:
        Columns `what`, `level`, `median`, `q1`, `q3` (relative sizes), `never` (how many prompts
        do not have it at the largest size) and `prompts`. By `what`:

        - "nucleus": the nucleus is shared up to p = `level`, for every p of `NUCLEI`;
        - "top1": the top token is the full model's; `level` is NaN;
        - "head_share" and "tail_share": the error stays under `level` times the full model's mass
          in that part;
        - "head_error" and "tail_error": the error stays under `level`.
    """
    return pd.DataFrame(
        [
            {
                "what": what,
                "level": level,
                **{name: _reached_by(sizes, share) for name, share in _QUARTILES.items()},
                "never": int(np.isnan(sizes).sum()),
                "prompts": len(sizes),
            }
            for what, level, sizes in needed_by_prompt(run)
        ]
    ).reindex(columns=["what", "level", "median", "q1", "q3", "never", "prompts"])


def needed_by_prompt(run: Run) -> Iterator[tuple[str, float, Float[np.ndarray, " prompt"]]]:
    """What is asked for, at which level, and the size that each prompt needs (NaN: none)."""
    tables = every_size(run)

    def from_which(
        column: str, holds: Callable[[np.ndarray], np.ndarray]
    ) -> Float[np.ndarray, " prompt"]:
        curves = ((t["size"].to_numpy(), holds(t[column].to_numpy())) for t in tables)
        return np.array([smallest_size_from_which(*curve) for curve in curves])

    for p in NUCLEI:
        curves = ((t["size"].to_numpy(), t["nucleus"].to_numpy()) for t in tables)
        yield "nucleus", p, np.array([size_for_nucleus(*curve, p) for curve in curves])
    yield "top1", math.nan, from_which("top1", lambda same: same.astype(bool))
    masses = run.prompts["head_mass"].to_numpy(dtype=np.float64)
    shares = [restored_from(t, float(mass)) for t, mass in zip(tables, masses, strict=True)]
    for part, sizes in zip(("head", "tail"), np.array(shares, dtype=np.float64).T, strict=True):
        yield f"{part}_share", THRESHOLD, sizes
    for part in ("head_error", "tail_error"):
        for error in ERRORS:
            yield part, error, from_which(part, lambda errors, most=error: errors < most)


def _reached_by(sizes: Float[np.ndarray, " prompt"], share: float) -> float:
    """The smallest of the values that a share of the prompts does not exceed; NaN sorts last."""
    return float(np.sort(sizes)[math.ceil(share * len(sizes)) - 1])
