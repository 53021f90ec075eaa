"""A sweep's folder read back: one frame for prompts, one for sizes, arrays of what was used.

The folder holds `manifest.json` (how the run was made) and `parts/part-*.parquet`, one a batch.
"""

# pandas' types are wider than what it returns here.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from strace_lens.corpus.parts import (
    CONTROLS,
    GEOMETRY,
    PATH,
    STATE,
    PartError,
    is_corrupted,
    part_paths,
    read_part,
)
from strace_lens.corpus.store import read_manifest
from strace_lens.measures.sizes import auc_paper
from strace_lens.traces.estimators import ESTIMATORS
from strace_lens.utils.html_repr import facts
from strace_lens.utils.manifest import NAME as MANIFEST

PROMPT_COLUMNS = (
    *("prompt", "text", "sha256", "tokens", "graph_edges", "entropy", "head_mass", "density"),
    *("logit_gap", "next", "loss", "full_top", "full_unigram_tv", "full_no_context_tv"),
)
"""Columns of a part that say the same in every row of a prompt, besides its labels."""

SIZE_COLUMNS = (
    *("prompt", "size", "edges", "tv", "kl", "js", "head_error", "tail_error", "top1", "nucleus"),
    *(
        "random_tv",
        "inverse_tv",
        "random_inverse_tv",
        "ablatable_size",
        "residual",
        "attention",
        "mlp",
        "mean_layer",
    ),
    *("trace_head_mass", "unigram_tv", "no_context_tv", "top"),
)


@dataclass(frozen=True, eq=False)
class Run:
    """What a sweep has left in its folder.

    Attributes:
        name: of the folder.
        model: that was swept.
        manifest: how the run was made: `options`, `versions`, `sizes`, `head`, `labels`.
        prompts: one row a prompt that was measured. Columns: `prompt` (its number in what was
            given), `text`, `sha256` (of the text), `tokens`, `edges` (of its graph), `entropy`
            (nats), `head_mass`, `density`, `auc_paper` (the area under TV as in the authors' code,
            over the sizes of the grid), `logit_gap`, `next`, `loss` (nats, of the true next token;
            NaN where it is unknown), `top` (pairs of token and probability), `unigram_tv` and
            `no_context_tv` (of the full model's output; NaN where unknown), and a column `label_*`
            for each label. A run on corrupted texts also has `corrupted`, what was traced in place
            of `text`.
        failures: one row a prompt that was not: `prompt`, `text`, `error`.
        sizes: one row a prompt and size of the grid, as `DensityCurve.table`, with `prompt`,
            `unigram_tv` and `no_context_tv` (of the trace's output).
        refined: the same for the sizes that were added to the grid of a prompt, with `usage`: edges
            of each component.
        usage: edges of each component in the trace of each size of the grid.
        reachable: edges of each component in each prompt's graph.
        components: `component` (its place in `usage`), `kind`, `layer`, `index` (head, or join of
            the residual stream), `name`.
        geometry: one row a prompt, size and layer: `cosine`, `l2`, `cka`, `velocity`, `curvature`
            (`geometry.py`); no row where the sweep left it out.
        path: one row a prompt and layer: `velocity` and `curvature` of the full model.
        final_states: state at the last token behind the final norm, in the trace of each size of
            the grid; of width 0 where the sweep left it out.
        controls: what the controls of the estimator gave, one row a prompt, size of the grid,
            `role` and `seed` (0 is the sweep's own): `tv`, `top1`, `path_share`, `connected`,
            `compute`, `forward` and `backward` (`estimator_controls.measure_controls`); no row
            unless the sweep ran them.
    """

    name: str
    model: str
    manifest: Mapping[str, Any]
    prompts: pd.DataFrame
    failures: pd.DataFrame
    sizes: pd.DataFrame
    refined: pd.DataFrame
    usage: Int[np.ndarray, "prompt size component"]
    reachable: Int[np.ndarray, "prompt component"]
    components: pd.DataFrame
    geometry: pd.DataFrame
    path: pd.DataFrame
    final_states: Float[np.ndarray, "prompt size d_model"]
    controls: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def grid(self) -> Float[np.ndarray, " size"]:
        """The relative sizes at which every prompt was measured."""
        return np.asarray(self.manifest["sizes"], dtype=np.float64)

    @property
    def missing(self) -> int:
        """Prompts that the sweep has not come to."""
        done = len(self.prompts) + len(self.failures)
        return max(0, int(self.manifest.get("given", done)) - done)

    def __repr__(self) -> str:
        failed = f", {len(self.failures)} failed" if len(self.failures) else ""
        return f"Run({self.name}: {len(self.prompts)} prompts of {self.model}{failed})"

    def _repr_html_(self) -> str:
        columns = ["prompt", "text", "tokens", "edges", "density", "entropy", "next"]
        return facts(repr(self), self.prompts[columns])


def run_folders(folder: str | Path) -> list[Path]:
    """The folder itself if it holds a run; otherwise those of its folders that do.

    A sweep of several estimators, or with several kinds of edges kept, writes a folder for each
    combination. They come in the order of `ESTIMATORS` and then by name. A folder without any run
    is returned as it is, for `read_run` to say so.
    """
    folder, estimators = Path(folder), list(ESTIMATORS)
    if (folder / MANIFEST).is_file():
        return [folder]

    def place(run: Path) -> tuple[int, str]:
        estimator = run.name.partition("-keep-")[0]
        known = estimator in estimators
        return estimators.index(estimator) if known else len(estimators), run.name

    return sorted((path.parent for path in folder.glob(f"*/{MANIFEST}")), key=place) or [folder]


def read_run(folder: str | Path) -> Run:
    """Read what a sweep has left; a sweep that was stopped is read as far as it came.

    Raises:
        FileNotFoundError: there is no run in the folder.
        ValueError: the manifest is not as it was written.
        PartError: a part is damaged or of another run (running the sweep again mends a damaged
            one), or no prompt has been measured.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    frames = [read_part(path, manifest) for path in part_paths(folder)]
    rows = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({"error": []})
    failed = rows["error"].notna()
    if failed.all():
        why = f": the first says {rows['error'].iloc[0]}" if len(rows) else ""
        raise PartError(f"{folder} holds no prompt that was measured{why}")
    whole = rows[~failed].sort_values(["prompt", "size"], kind="stable", ignore_index=True)
    firsts = whole.drop_duplicates("prompt")
    added = whole["refined"].astype(bool)
    grid = whole[~added]
    types = {"top1": bool, "edges": "int64"}
    labels = [column for column in whole if str(column).startswith("label_")]
    names = {name: name.removeprefix("full_") for name in PROMPT_COLUMNS}
    traced = ["corrupted"] * is_corrupted(manifest)
    prompts = firsts[[*PROMPT_COLUMNS, *traced, *labels]].rename(
        columns={**names, "graph_edges": "edges"}
    )
    prompts.insert(list(prompts).index("density") + 1, "auc_paper", _areas(grid, len(firsts)))
    return Run(
        name=folder.resolve().name,
        model=manifest["model"],
        manifest=manifest,
        prompts=prompts.reset_index(drop=True),
        failures=rows.loc[failed, ["prompt", "text", "error"]]
        .sort_values("prompt")
        .reset_index(drop=True),
        sizes=grid[list(SIZE_COLUMNS)].astype(types).reset_index(drop=True),
        refined=whole.loc[added, [*SIZE_COLUMNS, "usage"]].astype(types).reset_index(drop=True),
        usage=np.stack(grid["usage"].tolist()).reshape(len(firsts), len(manifest["sizes"]), -1),
        reachable=np.stack(firsts["reachable"].tolist()),
        components=components_frame(**manifest["shape"]),
        geometry=_long(grid, ["prompt", "size"], {name: name for name in GEOMETRY}),
        path=_long(firsts, ["prompt"], {f"full_{name}": name for name in PATH}),
        final_states=_states(grid[STATE], len(firsts), len(manifest["sizes"])),
        controls=_controls(grid),
    )


def components_frame(layers: int, heads: int, sublayers: int, mlp: bool) -> pd.DataFrame:
    """The components whose edges are counted, layer by layer: heads, sublayers, MLP."""
    rows = []
    for layer in range(layers):
        rows += [("attention", layer, h, f"a{layer}.h{h}") for h in range(heads)]
        rows += [("residual", layer, j, f"r{layer}.{j}") for j in range(sublayers)]
        rows += [("mlp", layer, 0, f"m{layer}")] * mlp
    frame = pd.DataFrame(rows, columns=["kind", "layer", "index", "name"])
    frame.insert(0, "component", range(len(frame)))
    return frame


def _states(
    column: pd.Series, prompts: int, sizes: int
) -> Float[np.ndarray, "prompt size d_model"]:
    kept = [values for values in column if values is not None]
    if not kept:
        return np.zeros((prompts, sizes, 0), dtype=np.float32)
    return np.stack(kept).reshape(prompts, sizes, -1)


def _controls(grid: pd.DataFrame) -> pd.DataFrame:
    """Lists of controls as a row each; no row where the sweep ran none."""
    kept = grid[["prompt", "size", CONTROLS]].dropna().explode(CONTROLS, ignore_index=True)
    if kept.empty:
        return pd.DataFrame()
    values = pd.DataFrame(kept[CONTROLS].tolist()).astype({"connected": "boolean"})
    return pd.concat([kept[["prompt", "size"]], values], axis=1)


def _areas(grid: pd.DataFrame, prompts: int) -> list[float]:
    """`auc_paper` of each prompt, from rows sorted by prompt and size; NaN for a single size."""
    achieved = (grid["edges"] / grid["graph_edges"]).to_numpy(np.float64).reshape(prompts, -1)
    tv = grid["tv"].to_numpy(np.float64).reshape(prompts, -1)
    if tv.shape[1] < 2:
        return [math.nan] * prompts
    return [auc_paper(*curve) for curve in zip(achieved, tv, strict=True)]


def _long(rows: pd.DataFrame, keys: list[str], columns: Mapping[str, str]) -> pd.DataFrame:
    """Lists with a value a layer as rows with a layer each; none where nothing was kept."""
    first = next(iter(columns))
    kept = rows[rows[first].map(lambda values: values is not None and len(values) > 0)]
    layers = [np.arange(len(values)) for values in kept[first]]
    frame = kept[keys].loc[kept.index.repeat([len(x) for x in layers])].reset_index(drop=True)
    frame["layer"] = np.concatenate(layers) if layers else np.zeros(0, dtype=np.int64)
    for source, name in columns.items():
        frame[name] = np.concatenate(kept[source].tolist()) if layers else np.zeros(0)
    return frame
