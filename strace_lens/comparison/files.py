"""The results of a comparison in a folder, a method at a time, so that none is found twice.

Of each method the scores, the circuit, what was measured of them and what they cost are files of
their own. The measures are written last: they hold the id of the comparison and the hashes of the
other files and of themselves, so what a kill left half done or an edit changed is done again. Costs
are apart because nothing else changes from one run to the next.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.curve import Faithfulness
from strace_lens.circuits.discover.methods import METHODS
from strace_lens.circuits.experiment import Experiment
from strace_lens.circuits.scores import Scores
from strace_lens.circuits.task import Task
from strace_lens.comparison.comparison import MethodResult
from strace_lens.comparison.places import (
    CIRCUITS,
    FOLDERS,
    MEASURES,
    PAGE,
    PROJECTION,
    SCORES,
    TABLE,
    TIMES,
    TIMINGS,
)
from strace_lens.files.results import load, save
from strace_lens.files.schema import read_as
from strace_lens.model.weights import weights_hash
from strace_lens.utils.disk import parse_object, write_whole
from strace_lens.utils.manifest import (
    NAME,
    ManifestKind,
    check_manifest,
    is_of_kind,
    manifest_of,
    write_manifest,
)

KIND = ManifestKind(
    format="strace-lens-comparison/2",
    noun="comparison",
    values=(
        *("task", "pairs", "evaluated", "model", "dtype", "weights", "metric", "ablation"),
        *("ranking", "seed", "sample", "completeness", "minimality", "truth", "options"),
        "versions",
    ),
    in_words={
        "pairs": "the pairs that methods see are others",
        "evaluated": "the pairs that circuits are evaluated on are others",
        "weights": "the model has the same name and other weights (their SHA-256 was {:.12} and is "
        "{:.12})",
        "truth": "the true circuit is another",
    },
    way_out="name another folder with --out, or pass --overwrite (overwrite=True)",
)


class ComparisonFolder(NamedTuple):
    """Where the results of a comparison are kept."""

    folder: Path  # made when the first result is written
    manifest: Mapping[str, Any]  # what the results depend on, and its id
    overwrite: bool  # discard another comparison's results when the first result is written


def open_comparison(
    folder: str | Path,
    experiment: Experiment,
    seen: Task,
    truth: Circuit | None,
    settings: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> ComparisonFolder:
    """Check that a folder holds this comparison, or nothing yet, or may be overwritten.

    Args:
        folder: of the results.
        experiment: of the evaluation pairs.
        seen: pairs that methods see.
        truth: the true circuit, where it is known.
        settings: `ranking`, `seed`, `sample`, `completeness`, `minimality`, `options` and
            `versions` of the comparison.
        overwrite: another comparison may be there; `save_method` discards it, so that a comparison
            that fails before its first result costs nothing.

    Raises:
        OtherResultsError: it holds another comparison and is not to be overwritten; the message
            names the difference.
        ValueError: its manifest cannot be read or is no comparison's, or it has results and no
            manifest and is not to be overwritten.
    """
    cfg: Any = experiment.model.cfg
    said = {
        "task": seen.name,
        "pairs": _task_hash(seen),
        "evaluated": _task_hash(experiment.task),
        "model": experiment.graph.model,
        "dtype": str(cfg.dtype),
        "weights": weights_hash(experiment.model),
        "metric": experiment.metric,
        "ablation": experiment.ablation,
        "truth": None if truth is None else _hash(truth.edge_names()),
        **settings,
    }
    place = ComparisonFolder(Path(folder), manifest_of(KIND, said), overwrite)
    _has_manifest(place)
    return place


def _has_manifest(place: ComparisonFolder) -> bool:
    """Whether a folder is known to hold this comparison; False if it is to be claimed for it.

    Raises:
        ValueError: it holds something else that is not to be overwritten.
    """
    folder = place.folder
    try:
        if check_manifest(folder, KIND, place.manifest):
            return True
    except ValueError:
        if place.overwrite and is_of_kind(folder, KIND):
            return False
        raise
    found = next(_results(folder), None)
    if found is not None and not place.overwrite:
        raise ValueError(
            f"{folder} has results ({found.relative_to(folder)}) but does not say what they were "
            f"made from; {KIND.way_out}"
        )
    return False


def _discard(folder: Path) -> None:
    """Remove all that a comparison writes, and nothing else.

    The manifest goes last: a folder that a kill leaves half discarded is still the other
    comparison's.
    """
    for path in (*(folder / name for name in (PAGE, TABLE, TIMES, PROJECTION)), *_results(folder)):
        path.unlink(missing_ok=True)
    (folder / NAME).unlink(missing_ok=True)


def _results(folder: Path) -> Iterator[Path]:
    """The files of all methods that are there."""
    paths = (path for method in METHODS for path in _paths(folder, method))
    return (path for path in paths if path.is_file())


def save_method(place: ComparisonFolder, result: MethodResult) -> None:
    """Write all files of a method, and before those of the first one the manifest.

    What another comparison left is discarded first, where that was asked for.
    """
    for name in FOLDERS:
        (place.folder / name).mkdir(parents=True, exist_ok=True)
    if not _has_manifest(place):
        if place.overwrite:
            _discard(place.folder)
        write_manifest(place.folder, place.manifest)
    scores, circuit, measures, timings = _paths(place.folder, result.method)
    measures.unlink(missing_ok=True)
    save(result.scores, scores)
    save(result.circuit, circuit)
    costs = {"peak_mb": result.peak_mb, "memory": result.memory}
    _write_sealed(timings, {"seconds": result.scores.seconds, **costs})
    own = {name: getattr(result, name) for name in _MEASURES}
    files = {path.parent.name: _file_hash(path) for path in (scores, circuit)}
    curve = dataclasses.asdict(result.faithfulness)
    _write_sealed(
        measures, {"id": place.manifest["id"], "files": files, "faithfulness": curve, **own}
    )


def load_method(place: ComparisonFolder, method: str) -> MethodResult | None:
    """The result of a method; None where it is not whole."""
    scores, circuit, measures, timings = _paths(place.folder, method)
    try:
        said, cost = _read_sealed(measures), _read_sealed(timings)
        files = {path.parent.name: _file_hash(path) for path in (scores, circuit)}
        if said["id"] != place.manifest["id"] or said["files"] != files:
            return None
        own = {name: read_as(said[name], hint, name) for name, hint in _MEASURES.items()}
        return MethodResult(
            method=method,
            scores=dataclasses.replace(load(scores, Scores), seconds=float(cost["seconds"])),
            faithfulness=read_as(said["faithfulness"], Faithfulness, "faithfulness"),
            circuit=load(circuit, Circuit),
            peak_mb=float(cost["peak_mb"]),
            memory=str(cost["memory"]),
            **own,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


_MEASURES: dict[str, Any] = {
    **dict.fromkeys(("completeness", "minimality", "auroc", "precision"), float | None),
    **dict.fromkeys(("completeness_interval", "minimality_interval"), tuple[float, float] | None),
    "missed": tuple[str, ...],
}
"""What is kept of a method beside its curve, and what each may be."""


def _paths(folder: Path, method: str) -> tuple[Path, Path, Path, Path]:
    """Of scores, circuit, measures and timings."""
    return (
        folder / SCORES / f"{method}.safetensors",
        folder / CIRCUITS / f"{method}.safetensors",
        folder / MEASURES / f"{method}.json",
        folder / TIMINGS / f"{method}.json",
    )


def _write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Write the values of a method as JSON, with a hash that shows whether they were changed."""
    values = {"method": path.stem, **values}
    sealed = {"sha256": _hash(values), **values}
    write_whole(path, (json.dumps(sealed, indent=1, allow_nan=False) + "\n").encode())


def _read_sealed(path: Path) -> dict[str, Any]:
    """The values of a file of `_write_sealed`.

    Raises:
        ValueError: it is not as it was written, or is another method's.
    """
    values = parse_object(path.read_bytes(), path)
    if values.pop("sha256", None) != _hash(values) or values["method"] != path.stem:
        raise ValueError(f"{path} was edited or damaged")
    return values


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _task_hash(task: Task) -> str:
    parts = (task.clean, task.corrupted, task.lengths, task.answers, task.incorrect)
    spans = [] if task.spans is None else [task.spans.tolist()]
    return _hash([*(part.tolist() for part in parts), task.every_position, *spans])


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
