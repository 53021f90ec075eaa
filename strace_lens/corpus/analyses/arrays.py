"""A run's frames as arrays over prompts and sizes, and arrays as frames again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int64, Shaped

from strace_lens.corpus.run_folder import Run
from strace_lens.utils.choices import KINDS


def refuse_same_names(runs: Sequence[Run]) -> None:
    """Refuse two runs of one name, which no table could tell apart."""
    for name, count in Counter(run.name for run in runs).items():
        if count > 1:
            raise ValueError(f"two runs are named {name}; rename one's folder")


def at_sizes(run: Run, column: str) -> Float[np.ndarray, "prompt size"]:
    """A column of `Run.sizes`, a row a prompt."""
    return run.sizes[column].to_numpy(dtype=np.float64).reshape(len(run.prompts), -1)


def every_size(run: Run) -> list[pd.DataFrame]:
    """All sizes at which each prompt was measured, rising: those of the grid and those added to it.

    One frame a prompt, in the order of `Run.prompts`, with the columns of `Run.refined` and
    `refined`, whether a size was added.
    """
    components = run.usage.shape[-1]
    rows = run.sizes.assign(refined=False, usage=list(run.usage.reshape(-1, components)))
    if len(run.refined):
        rows = pd.concat([rows, run.refined.assign(refined=True)], ignore_index=True)
    of_prompt = dict(list(rows.sort_values("size", kind="stable").groupby("prompt")))
    return [of_prompt[prompt].reset_index(drop=True) for prompt in run.prompts["prompt"]]


def kept_kinds(run: Run) -> tuple[str, ...]:
    """The kinds of edges that the sweep never ablated; none in runs that do not say."""
    return tuple(run.manifest["options"].get("keep", ()))


def ablatable_kinds(run: Run) -> list[str]:
    """The kinds of edges that the sweep ablated outside the trace, in the order of `KINDS`."""
    return [kind for kind in KINDS if kind not in kept_kinds(run)]


def layer_of(run: Run) -> Int64[np.ndarray, " component"]:
    """The layer of each component."""
    return run.components["layer"].to_numpy(dtype=np.int64)


def edges_by(
    run: Run, group: Int64[np.ndarray, " component"], groups: int
) -> tuple[Int64[np.ndarray, "prompt size group"], Int64[np.ndarray, "prompt group"]]:
    """Edges of the traces and of the graphs, added up over numbered groups of components."""
    return grouped(run.usage, group, groups), grouped(run.reachable, group, groups)


def grouped(
    edges: Shaped[np.ndarray, "*rest component"],
    group: Int64[np.ndarray, " component"],
    groups: int,
) -> Shaped[np.ndarray, "*rest group"]:
    """Edges of components added up over numbered groups; one of number -1 is left out."""
    one_of_each = group[:, None] == np.arange(groups)
    return edges @ one_of_each.astype(np.result_type(edges, np.int64))


def added(
    counts: Int64[np.ndarray, "prompt size *rest"],
) -> Int64[np.ndarray, "prompt size *rest"]:
    """What each size adds to the one before it; the first adds all it has."""
    return np.diff(counts, axis=1, prepend=0)


def shares(counts: Int64[np.ndarray, "*rest part"]) -> Float[np.ndarray, "*rest part"]:
    """The parts' shares of their sum; NaN where there is nothing to share."""
    return divide(counts, counts.sum(-1, keepdims=True))


def divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """A quotient that is NaN where it would divide by zero."""
    out = np.full(np.broadcast_shapes(above.shape, below.shape), np.nan)
    return np.divide(above, below, out=out, where=below != 0)


def frame_of(
    sizes: Float[np.ndarray, " size"],
    parts: Mapping[str, Sequence[Any]],
    columns: Mapping[str, Float[np.ndarray, "size part"] | Int64[np.ndarray, "size part"]],
) -> pd.DataFrame:
    """Arrays as a frame with a row for each size and part, sizes outermost.

    `parts` are columns with a value a part, `columns` those with a value a size and part.
    """
    count = len(next(iter(parts.values())))
    return pd.DataFrame(
        {
            "size": np.repeat(sizes, count),
            **{name: np.tile(np.asarray(v), len(sizes)) for name, v in parts.items()},
            **{name: values.reshape(-1) for name, values in columns.items()},
        }
    )


def named(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Frames of several runs one below the other, the name of the run as first column `run`."""
    return pd.concat(dict(frames), names=["run"]).reset_index("run").reset_index(drop=True)
