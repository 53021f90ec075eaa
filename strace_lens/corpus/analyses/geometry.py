"""Hidden states of the traces against the full model's, by size and layer, over a corpus.

Source: s-Trace (arXiv 2605.27033), section "phases"; the measures are those of `corpus/hidden.py`.
"""

# pandas' types are wider than what it returns here.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float

from strace_lens.corpus.analyses.arrays import divide, frame_of
from strace_lens.corpus.analyses.means import means
from strace_lens.corpus.run_folder import GEOMETRY, PATH, Run

MEASURES = (*GEOMETRY, "velocity_ratio")


def geometry_by_layer(run: Run, *, seed: int = 0) -> pd.DataFrame:
    """Means over prompts of the geometry at each size and layer.

    Args:
        run: of `read_run`.
        seed: of the bootstrap.

    Returns:
        Columns `size`, `layer`; `cosine`, `l2`, `cka`, `velocity`, `curvature` (radians) and
        `velocity_ratio`, the mean of the trace's velocity over the full model's, each with `_low`,
        `_high` (NaN for fewer than two prompts) and `_prompts`, those that have a value: CKA has
        none in the last layer, curvature none in the first and where a step is zero, as in traces
        with few edges; `full_velocity` and `full_curvature`, means of the full model; `prompts`.
        No row where the sweep left geometry out.
    """
    ends = [f"{m}{end}" for m in MEASURES for end in ("", "_low", "_high", "_prompts")]
    full = [f"full_{name}" for name in PATH]
    if run.geometry.empty:
        return pd.DataFrame(columns=["size", "layer", *ends, *full, "prompts"])
    values = {name: _values(run, name) for name in GEOMETRY}
    paths = {name: _path(run, name) for name in PATH}
    values["velocity_ratio"] = divide(values["velocity"], paths["velocity"][:, None])
    columns: dict[str, np.ndarray] = {}
    for name in MEASURES:
        found = means(values[name], seed)
        columns |= {**found.columns(name), f"{name}_prompts": found.prompts}
    sizes = len(run.grid)
    for name in PATH:
        columns[f"full_{name}"] = np.tile(means(paths[name], seed).mean, (sizes, 1))
    columns["prompts"] = np.full(columns["cosine"].shape, len(values["cosine"]))
    return frame_of(run.grid, {"layer": range(values["cosine"].shape[2])}, columns)


def _values(run: Run, column: str) -> Float[np.ndarray, "prompt size layer"]:
    wide = run.geometry.pivot(index="prompt", columns=["size", "layer"], values=column)
    wide = wide.sort_index(axis=1)
    return wide.to_numpy(dtype=np.float64).reshape(len(wide), len(run.grid), -1)


def _path(run: Run, column: str) -> Float[np.ndarray, "prompt layer"]:
    """Of the full model, for the prompts and layers of `_values`."""
    wide = run.path.pivot(index="prompt", columns="layer", values=column)
    prompts, layers = (np.sort(run.geometry[name].unique()) for name in ("prompt", "layer"))
    return wide.reindex(index=prompts, columns=layers).to_numpy(dtype=np.float64)
