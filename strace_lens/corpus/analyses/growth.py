"""Density along texts that the model wrote on: a trace for every generated token.

Density as in s-Trace (arXiv 2605.27033), section "measures", of every prompt of a growing text.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from strace_lens.corpus.analyses.means import means
from strace_lens.corpus.run_folder import Run

_GROWTH = (
    *("step", "density", "low", "high", "tokens", "entropy"),
    *("change", "change_low", "change_high", "prompts"),
)


def growth_lines(run: Run) -> pd.DataFrame:
    """Every prompt of a generating sweep, text by text and step by step.

    Returns:
        Columns `of` (number of the prompt that the text grew from), `step` (tokens generated so
        far), `prompt` (its number in the run), `tokens`, `density`, `entropy` (nats) and `next`
        (the token that the model writes then). No row for a run that did not generate.
    """
    columns = ["of", "step", "prompt", "tokens", "density", "entropy", "next"]
    if not {"label_of", "label_step"} <= set(run.prompts):
        return pd.DataFrame(columns=columns)
    numbers = {
        name: pd.to_numeric(run.prompts[f"label_{name}"], errors="coerce")
        for name in ("of", "step")
    }
    frame = run.prompts.assign(**numbers).dropna(subset=["of", "step"])
    frame = frame.astype({"of": "int64", "step": "int64"})
    return frame.sort_values(by=["of", "step"], ignore_index=True).reindex(columns=columns)


def growth(run: Run, *, seed: int = 0) -> pd.DataFrame:
    """Mean density after each number of generated tokens.

    Args:
        run: of `read_run`, whose sweep generated.
        seed: of the bootstrap.

    Returns:
        Columns `step`; `density` with `low` and `high` (NaN for fewer than two texts); `tokens` and
        `entropy`, means; `prompts`, the texts that got so far; `change`, by how much density
        exceeds that of the same texts at step 0, with `change_low` and `change_high`. No row for a
        run that did not generate.
    """
    lines = growth_lines(run)
    if lines.empty:
        return pd.DataFrame(columns=list(_GROWTH))
    wide = lines.pivot(index="of", columns="step", values="density")
    density = wide.to_numpy(dtype=np.float64)
    by_step = lines.groupby("step")
    steps = wide.columns.to_numpy(dtype=np.int64)
    start = density[:, :1] if steps[0] == 0 else np.full((len(density), 1), np.nan)
    found, change = means(density, seed), means(density - start, seed)
    return pd.DataFrame(
        {
            "step": steps,
            "density": found.mean,
            "low": found.low,
            "high": found.high,
            **{
                name: np.asarray(by_step[name].mean(), dtype=np.float64)
                for name in ("tokens", "entropy")
            },
            **change.columns("change"),
            "prompts": found.prompts,
        }
    )
