"""What a density is made of: the height of the plateau, and the size at which the curve falls.

A density (area under TV over log s) is large if the curve falls late, and if it starts high. How
high it starts says little of computation: it is by how much the model's output differs from what an
almost empty trace puts out, and two broad distributions differ less than two narrow ones.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float

from strace_lens.corpus.analyses.arrays import every_size
from strace_lens.corpus.analyses.correlations import CORRELATES, correlation
from strace_lens.corpus.run_folder import Run

PARTS = ("plateau", "half_size")


def density_parts(run: Run) -> pd.DataFrame:
    """Plateau and half size of every prompt.

    Returns:
        One row a prompt: `prompt`; `plateau`, TV at the smallest size; `half_size`, the relative
        size at which TV falls for good below half of that, interpolated in log s (NaN if it never
        does, or is below from the start); and the prompt's `density` and `CORRELATES`.
    """
    curves = [(np.log10(t["size"].to_numpy()), t["tv"].to_numpy()) for t in every_size(run)]
    half = np.asarray([_falls_below(logs, tv, tv[0] / 2) for logs, tv in curves])
    frame = run.prompts[["prompt", "density", *CORRELATES]]
    return frame.assign(plateau=[tv[0] for _, tv in curves], half_size=10.0**half)


def part_correlations(run: Run, *, seed: int = 0, resamples: int = 2000) -> pd.DataFrame:
    """Spearman's rank correlation of each part with each of `CORRELATES`.

    Returns:
        Columns `part`, `what`, `prompts`, `rho`, `low`, `high`, `p`, as `density_correlations`.
    """
    parts, rows = density_parts(run), []
    for part in PARTS:
        for what in CORRELATES:
            values = parts[[part, what]].to_numpy(dtype=np.float64)
            values = values[~np.isnan(values).any(1)]
            about = {"part": part, "what": what, "prompts": len(values)}
            rows.append({**about, **correlation(values, seed, resamples)})
    return pd.DataFrame(rows)


def _falls_below(
    log_sizes: Float[np.ndarray, " size"], curve: Float[np.ndarray, " size"], level: float
) -> float:
    """Where a curve crosses a level for the last time, downwards; NaN if it does not."""
    above = np.flatnonzero(curve >= level)
    if not len(above) or above[-1] == len(curve) - 1 or level == 0:
        return float("nan")
    at = int(above[-1])
    share = (curve[at] - level) / (curve[at] - curve[at + 1])
    return float(log_sizes[at] + share * (log_sizes[at + 1] - log_sizes[at]))
