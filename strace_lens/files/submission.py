"""Submissions to the circuit track of the MIB benchmark: folders of importance files.

A submission is a folder with one folder for each task and model, `ioi_gpt2` or `arc-easy_llama3`,
that holds either one importance file or nine circuits. Which it is, is told by the number of files,
so nothing else may lie in there. Source: the README and the evaluation of
github.com/hannamw/MIB-circuit-track; the files are those of `interchange`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.graph import ComponentGraph
from strace_lens.circuits.scores import Scores
from strace_lens.files.interchange import (
    copies_of,
    load_importance_circuit,
    load_importances,
    save_importances,
)
from strace_lens.files.result_files import ResultFileError
from strace_lens.utils.disk import whole_folder

PERCENTAGES = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
"""Of all edges, at most so many are in each of the nine circuits."""

MODELS: Mapping[str, str] = {
    "gpt2": r"gpt2(-small)?",
    "qwen2.5": r"qwen2\.5(-0\.5b)?",
    "gemma2": r"gemma-?2(-2b)?",
    "llama3": r"(meta-)?llama-?3(\.1-8b)?",
    "interpbench": r"interpbench",
}
"""MIB's models: the name that a folder has, and which names of a model stand for it."""

TASKS = (
    *("ioi", "mcqa", "arithmetic-addition", "arithmetic-subtraction", "arc-easy", "arc-challenge"),
)
"""MIB's tasks, as folders name them."""

IMPORTANCES = "importances.json"


def entry_name(task: str, model: str) -> str:
    """The folder of a task and a model: MIB's names where it has them, else their own.

    Args:
        task: its name, in which an underscore becomes a hyphen.
        model: a name of the model, with an owner before a slash or without.

    Raises:
        ValueError: a name without a letter or digit.
    """
    last = re.split(r"[/\\]", model.rstrip("/\\"))[-1].lower()
    known = (name for name, pattern in MODELS.items() if re.fullmatch(pattern, last))
    parts = task.lower(), next(known, last)
    cleaned = [re.sub(r"[^a-z0-9.]+", "-", part).strip("-.") for part in parts]
    if not all(cleaned):
        raise ValueError(f"a folder needs the names of a task and a model; got {(task, model)!r}")
    return "_".join(cleaned)


def save_submission(
    scores: Scores,
    folder: str | Path,
    *,
    task: str,
    model: str,
    d_model: int,
    level: str = "edge",
    circuits: bool = False,
    absolute: bool = True,
    overwrite: bool = False,
) -> Path:
    """Write what MIB's circuit track takes for one task and model, whole or not at all.

    It is read back before it gets its name, so a folder that is there can be read.

    Args:
        scores: of the model's edges on the task.
        folder: of the submission; made if it is not there. Other tasks and models in it are left.
        task, model: their names, see `entry_name`.
        d_model: width of the model, without which MIB reads no file.
        level: "edge", or "node" for scores of a method that scores nodes.
        circuits: write nine circuits of `PERCENTAGES` instead of the scores, as where edges are not
            to be ranked by score alone. Where queries are grouped, MIB counts the edges into the
            key and value of every query head, and so do the percentages.
        absolute: rank the edges of circuits by magnitude, as for CMD, not by sign, as for CPR.
        overwrite: replace an entry of the same task and model.

    Returns:
        The folder of the task and model.

    Raises:
        ValueError: scores by token position, scores of edges at the level of nodes, or circuits of
            nodes.
        FileExistsError: the entry is there and is not to be overwritten.
        OSError: it cannot be written, or does not read back as it was written.

    Example:
        >>> scores = sl.discover(model, task, "eap-ig")
        >>> save_submission(scores, "submission", task="ioi", model="gpt2", d_model=768)
    """
    if circuits and level == "node":
        raise ValueError("the nine circuits are sets of edges; write scores of nodes")
    entry = Path(folder) / entry_name(task, model)
    if entry.exists() and not overwrite:
        raise FileExistsError(f"{entry} is there already; name another folder or overwrite it")
    Path(folder).mkdir(parents=True, exist_ok=True)
    with whole_folder(entry) as place:
        if circuits:
            for percentage, circuit in nine_circuits(scores, absolute=absolute).items():
                path = place / f"circuit_{percentage:g}.json"
                save_importances(circuit, path, d_model=d_model)
                read = load_importance_circuit(path, scores.graph)
                _expect(torch.equal(read.kept, circuit.kept.cpu()), entry, path)
        else:
            path = place / IMPORTANCES
            save_importances(scores, path, d_model=d_model, level=level)
            values = scores.values.detach().cpu().double() * scores.graph.exists
            read = load_importances(path, scores.graph).values
            _expect(torch.allclose(read, values, rtol=1e-12, atol=0), entry, path)
    return entry


def load_submission(
    entry: str | Path, graph: ComponentGraph, *, method: str = ""
) -> Scores | dict[float, Circuit]:
    """Read the folder of a task and model: its scores, or its circuits by their share of edges.

    Args:
        entry: the folder of the task and model.
        graph: of the model.
        method: name for tables; that of the folder around the entry if not given.

    Returns:
        The scores of an only file, or circuits by the percentage of edges that each keeps, as MIB
        counts them, the smallest first.

    Raises:
        FileNotFoundError: there is no such folder.
        ResultFileError: it holds neither one importance file nor nine, or one that is damaged or of
            another model.
    """
    entry = Path(entry)
    if not entry.is_dir():
        raise FileNotFoundError(f"there is no folder {entry}")
    files = sorted(entry.iterdir())
    other = [path.name for path in files if path.suffix != ".json"]
    if other or len(files) not in (1, len(PERCENTAGES)):
        found = f"{other[0]} in it" if other else f"{len(files)} files"
        raise ResultFileError(
            f"{entry} has {found}; a submission has one .json file of scores for a task and model, "
            "or nine of circuits, and nothing else"
        )
    if len(files) == 1:
        return load_importances(files[0], graph, method=method or entry.resolve().parent.name)
    copies = copies_of(graph)
    read = [load_importance_circuit(path, graph) for path in files]
    shares = [100 * int(copies[c.kept].sum()) / int(copies.sum()) for c in read]
    return dict(sorted(zip(shares, read, strict=True), key=lambda pair: pair[0]))


def nine_circuits(scores: Scores, *, absolute: bool = True) -> dict[float, Circuit]:
    """The largest circuit of best edges within each of `PERCENTAGES`, edges counted as by MIB.

    Raises:
        ValueError: scores by token position.
    """
    if scores.values.ndim == 3:
        raise ValueError("a submission has no token positions; sum the scores over positions")
    order, copies = scores.order(absolute=absolute).cpu(), copies_of(scores.graph)
    counts = copies.flatten()[order].cumsum(0)
    found = {}
    for percentage in PERCENTAGES:
        most = int(percentage / 100 * int(copies.sum()))
        size = int((counts <= most).sum())
        keep = torch.zeros(copies.numel(), dtype=torch.bool)
        keep[order[:size]] = True
        found[percentage] = Circuit(scores.graph, keep.view(copies.shape))
    return found


def missing_for_leaderboard(entries: Iterable[str]) -> list[str]:
    """What MIB's leaderboard would not take of folders of these names, a sentence each."""
    names = list(entries)
    parts = [name.split("_") for name in names]
    lines = [
        f"{name} is no task and model of the MIB leaderboard, whose tasks are {', '.join(TASKS)} "
        f"and whose models are {', '.join(MODELS)}"
        for name, (task, model) in zip(names, parts, strict=True)
        if task not in TASKS or model not in MODELS
    ]
    tasks, models = ({part[i] for part in parts} for i in (0, 1))
    if len(tasks) < 2 or len(models) < 2:
        lines.append(
            "the MIB leaderboard asks for two tasks and two models or more; there are "
            f"{len(tasks)} and {len(models)}"
        )
    return lines


def _expect(same: bool, entry: Path, path: Path) -> None:
    if not same:
        raise OSError(f"{entry}/{path.name} did not read back as it was written; write it again")
