"""`strace-lens compare --format mib`: a submission to MIB's circuit track from a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from strace_lens.circuits.scores import Scores
from strace_lens.circuits.select_edges import LEVELS, node_scores
from strace_lens.comparison.comparison import Comparison
from strace_lens.files.submission import entry_name, missing_for_leaderboard, save_submission

_ABLATIONS = {  # MIB's names
    "resample": "patching",
    "mean": "mean-positional",
    "mean-over-positions": "mean",
    "zero": "zero",
    "optimal": "optimal",
}


def method_folder(out: Path, method: str, ablation: str, level: str) -> Path:
    """The folder of a method's submission, named as MIB's own scripts name it."""
    return out / f"{method}_{_ABLATIONS[ablation]}_{level}"


def check_free(out: Path, methods: Sequence[str], ablation: str, task: str, model: str) -> None:
    """Refuse a submission that has an entry of this task and model already.

    Raises:
        FileExistsError: it has.
    """
    for method in methods:
        for level in LEVELS:
            entry = method_folder(out, method, ablation, level) / entry_name(task, model)
            if entry.exists():
                raise FileExistsError(
                    f"{entry} is there already; name another folder with --out, or pass --overwrite"
                )


def write_submission(
    found: Comparison, methods: Sequence[str], out: Path, *, task: str, model: str, d_model: int
) -> list[Path]:
    """Write the scores of some methods of a comparison; an entry that is there is replaced."""
    entries = []
    for result in found.results:
        if result.method in methods:
            level = _level(result.scores)
            folder = method_folder(out, result.method, found.ablation, level)
            entries.append(
                save_submission(
                    result.scores,
                    folder,
                    task=task,
                    model=model,
                    d_model=d_model,
                    level=level,
                    overwrite=True,
                )
            )
    return entries


def gaps(entries: Sequence[Path]) -> list[str]:
    """What MIB's leaderboard would not take of the submissions that these entries are part of."""
    submissions = dict.fromkeys(entry.parent for entry in entries)
    lines = dict.fromkeys(
        line
        for folder in submissions
        for line in missing_for_leaderboard(sorted(p.name for p in folder.iterdir() if p.is_dir()))
    )
    return list(lines)


def _level(scores: Scores) -> str:
    """ "node" where all out-edges of each node share a score, else "edge"."""
    try:
        node_scores(scores)
    except ValueError:
        return "edge"
    return "node"
