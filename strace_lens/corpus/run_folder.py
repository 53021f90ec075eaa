"""The folder of a run: its manifest, its lock for one writer at a time, and reading its results.

The folder holds `manifest.json` (how the run was made) and a `parts/part-*.parquet` per batch. The
manifest is written when a sweep starts and compared when it starts again. The lock of a folder ends
with the process that holds it, however that ends.
"""

# pandas' types are wider than what it returns here.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import datetime
import hashlib
import json
import math
import os
import platform
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from jaxtyping import Float, Int

from strace_lens.corpus.parts import (
    CONTROLS,
    GEOMETRY,
    OF_PROMPT,
    OF_SIZE,
    PATH,
    STATE,
    PartError,
    is_corrupted,
    part_paths,
    read_part,
)
from strace_lens.corpus.prompts import CorpusPrompt
from strace_lens.measures.sizes import auc_paper
from strace_lens.traces.estimators import ESTIMATORS
from strace_lens.utils import manifest as manifests
from strace_lens.utils.disk import JsonError, parse_object, write_whole
from strace_lens.utils.html_repr import facts, short
from strace_lens.utils.manifest import NAME, ManifestKind, OtherResultsError

KIND = ManifestKind(
    format="strace-lens-run/3",
    noun="run",
    values=(
        # What results depend on.
        *("model", "dtype", "weights", "prompts", "options", "tokens", "versions"),
        # What follows from these, for those who read a run without its model and prompts.
        *("sizes", "head", "labels", "given", "batches", "shape"),
    ),
    in_words={
        "weights": "the model has the same name and other weights (their SHA-256 was {:.12} and is "
        "{:.12})",
        "prompts": "its prompts are others",
        "tokens": "its prompts become other tokens; the tokenizer has changed",
        **dict.fromkeys(("options", "versions", "shape"), "{key} was {0!r} and is {1!r}"),
    },
    way_out="name another folder",
)

LOCK = ".sweep.lock"
HOLDER = ".sweep.json"
"""Who holds the lock; a file of its own, because opening the lock empties it."""


class LockedRunError(ValueError):
    """A folder that another sweep is writing into, with the process that does."""


@dataclass(frozen=True, eq=False)
class Run:
    """The results of a sweep, read from its folder.

    Attributes:
        name: name of the folder.
        model: name of the model.
        manifest: how the run was made: `options`, `versions`, `sizes`, `head`, `labels`.
        prompts: one row per measured prompt. Columns: `prompt` (its number among those given),
            `text`, `sha256` (of the text), `tokens`, `edges` (of its graph), `entropy` (nats),
            `head_mass`, `density`, `auc_paper` (the area under TV as in the authors' code, over the
            sizes of the grid), `logit_gap`, `next`, `loss` (nats, of the true next token; NaN if it
            is unknown), `top` (pairs of token and probability), `unigram_tv` and `no_context_tv`
            (of the full model's output; NaN if unknown), and a column `label_*` for each label. A
            run on corrupted texts also has `corrupted`, the text that was traced instead of
            `text`.
        failures: one row per prompt that failed: `prompt`, `text`, `error`.
        sizes: one row per prompt and size of the grid, as in `DensityCurve.table`, with `prompt`,
            `unigram_tv` and `no_context_tv` (of the trace's output).
        refined: the same for the sizes that were added to the grid of a prompt, with `usage`, the
            number of edges of each component.
        usage: number of edges of each component in the trace of each size of the grid.
        reachable: number of edges of each component in each prompt's graph.
        components: `component` (its index in `usage`), `kind`, `layer`, `index` (of the head,
            or of the sublayer in its layer), `name`.
        geometry: `cosine`, `l2`, `cka`, `velocity` and `curvature` (`hidden.Geometry`) at each size
            of the grid; with no layers if the sweep left it out.
        path: `velocity` and `curvature` of the full model.
        final_states: state at the last token after the final norm, in the trace of each size of
            the grid; of width 0 if the sweep left it out.
        controls: results of the controls of the estimator, one row per prompt, size of the grid,
            `role` and `seed` (0 is the sweep's own): `tv`, `top1`, `path_share`, `connected`,
            `compute`, `forward` and `backward` (`estimator_controls.measure_controls`); empty
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
    geometry: Mapping[str, Float[np.ndarray, "prompt size layer"]]
    path: Mapping[str, Float[np.ndarray, "prompt layer"]]
    final_states: Float[np.ndarray, "prompt size d_model"]
    controls: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def grid(self) -> Float[np.ndarray, " size"]:
        """The relative sizes at which every prompt was measured."""
        return np.asarray(self.manifest["sizes"], dtype=np.float64)

    @property
    def missing(self) -> int:
        """Number of prompts that the sweep has not reached yet."""
        done = len(self.prompts) + len(self.failures)
        return max(0, int(self.manifest.get("given", done)) - done)

    def __repr__(self) -> str:
        failed = f", {len(self.failures)} failed" if len(self.failures) else ""
        return f"Run({self.name}: {len(self.prompts)} prompts of {self.model}{failed})"

    def _repr_html_(self) -> str:
        columns = ["prompt", "text", "tokens", "edges", "density", "entropy", "next"]
        return facts(repr(self), self.prompts[columns])


def open_run(folder: Path, said: Mapping[str, Any]) -> dict[str, Any]:
    """Write the manifest of a new run, or check that a folder's manifest is of the same run.

    Args:
        folder: made if it is not there.
        said: a value for each of `KIND.values`.

    Raises:
        OtherResultsError: the folder holds a run made with other values; the message names the
            first difference.
        ValueError: the folder's manifest cannot be read, or it has parts and no manifest.
    """
    manifest = manifests.manifest_of(KIND, said)
    if not manifests.check_manifest(folder, KIND, manifest):
        if any(folder.glob("parts/*.parquet")):
            raise ValueError(f"{folder} has parts but no {NAME}; name another folder")
        (folder / "parts").mkdir(parents=True, exist_ok=True)
        manifests.write_manifest(folder, manifest)
    return read_manifest(folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read, is of another format or is not as it was written.
    """
    if not (folder / NAME).is_file():
        raise FileNotFoundError(f"{folder} holds no run: there is no {NAME}; make one with sweep")
    return manifests.read_manifest(folder, KIND)


def prompt_key(prompt: CorpusPrompt) -> str:
    """Hash of everything that was given of a prompt."""
    said = prompt.text, prompt.next, sorted(prompt.labels.items())
    return hashlib.sha256(repr(said).encode()).hexdigest()[:16]


def as_begun(folder: Path, prompts: Sequence[CorpusPrompt]) -> Sequence[CorpusPrompt]:
    """The prompts in the order of the run that a folder holds; as they are if it holds none.

    Raises:
        OtherResultsError: prompts of the run are missing or new ones are given; the message says
            how many, and shows one.
    """
    if not (folder / NAME).exists():
        return prompts
    keys = read_manifest(folder)["prompts"]
    given: dict[str, list[CorpusPrompt]] = defaultdict(list)
    for prompt in reversed(prompts):
        given[prompt_key(prompt)].append(prompt)
    found = [given[key].pop() if given[key] else None for key in keys]
    ordered = [prompt for prompt in found if prompt is not None]
    new = [prompt for left in given.values() for prompt in left]
    if new or len(ordered) < len(keys):
        said = f"of its {len(keys)} prompts {len(keys) - len(ordered)} are not given"
        if new:
            said += f", and {len(new)} that are given are not in it, such as "
            said += repr(short(" ".join(new[-1].text.split()), 40))
        raise OtherResultsError(f"{folder} holds another run: {said}; name another folder")
    return ordered


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder.

    Raises:
        LockedRunError: another sweep holds it; the message says which process, where, since when.
        OSError: the file system of the folder has no locks.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise LockedRunError(
            f"another sweep is writing into {folder}{_holder(folder)}; wait for it or stop it"
        ) from error
    except NotImplementedError as error:
        raise OSError(f"the file system of {folder} has no locks; name a folder on another") from (
            error
        )
    try:
        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        said = {"pid": os.getpid(), "host": platform.node(), "since": since}
        write_whole(folder / HOLDER, json.dumps(said).encode())
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    try:
        said = parse_object((folder / HOLDER).read_bytes(), folder / HOLDER)
        return f" (process {said['pid']} on {said['host']}, since {said['since']})"
    except (OSError, JsonError, KeyError):  # it has not come to saying so
        return ""


def run_folders(folder: str | Path) -> list[Path]:
    """The folder itself if it holds a run; otherwise those of its folders that do.

    A sweep of several estimators, or with several kinds of edges kept, writes a folder for each
    combination. They come in the order of `ESTIMATORS` and then by name. A folder without any run
    is returned as it is, for `read_run` to say so.
    """
    folder = Path(folder)
    if (folder / NAME).is_file():
        return [folder]
    order = {name: place for place, name in enumerate(ESTIMATORS)}

    def place_of(run: Path) -> tuple[int, str]:
        return order.get(run.name.partition("-keep-")[0], len(order)), run.name

    return sorted((path.parent for path in folder.glob(f"*/{NAME}")), key=place_of) or [folder]


def read_run(folder: str | Path) -> Run:
    """Read the results of a sweep from its folder, including those of an unfinished sweep.

    Raises:
        FileNotFoundError: there is no run in the folder.
        ValueError: the manifest was changed after it was written.
        PartError: a part is damaged or of another run (running the sweep again repairs a damaged
            one), or no prompt has been measured.

    Example:
        >>> sl.read_run("runs/first").prompts["density"].mean()
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
    shape, types = (len(firsts), len(manifest["sizes"])), {"top1": bool, "edges": "int64"}
    labels = [column for column in whole if str(column).startswith("label_")]
    corrupted = ["corrupted"] * is_corrupted(manifest)
    prompts = firsts[[*OF_PROMPT, *corrupted, *labels]].rename(columns=_own_name)
    prompts.insert(list(prompts).index("density") + 1, "auc_paper", _areas(grid, len(firsts)))
    return Run(
        name=folder.resolve().name,
        model=manifest["model"],
        manifest=manifest,
        prompts=prompts.reset_index(drop=True),
        failures=rows.loc[failed, ["prompt", "text", "error"]]
        .sort_values("prompt")
        .reset_index(drop=True),
        sizes=grid[["prompt", *OF_SIZE]].astype(types).reset_index(drop=True),
        refined=whole.loc[added, ["prompt", *OF_SIZE, "usage"]]
        .astype(types)
        .reset_index(drop=True),
        usage=np.stack(grid["usage"].tolist()).reshape(*shape, -1),
        reachable=np.stack(firsts["reachable"].tolist()),
        components=components_frame(**manifest["shape"]),
        geometry={name: _stacked(grid[name], *shape) for name in GEOMETRY},
        path={name: _stacked(firsts[f"full_{name}"], len(firsts)) for name in PATH},
        final_states=_stacked(grid[STATE], *shape),
        controls=_controls(grid),
    )


def _own_name(column: str) -> str:
    """What a column of a part is called in the tables of prompts."""
    return "edges" if column == "graph_edges" else column.removeprefix("full_")


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


def _stacked(lists: pd.Series, *shape: int) -> Float[np.ndarray, "*rows width"]:
    """A list for each row as an array of this shape; of width 0 where none were kept."""
    kept = [[] if values is None else values for values in lists]
    return np.array(kept, dtype=np.float32).reshape(*shape, max(map(len, kept)))


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
