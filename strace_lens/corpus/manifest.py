"""How a run was made: written once when a sweep starts, compared when it starts again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strace_lens.corpus.rows import merged
from strace_lens.utils.disk import parse_object, write_whole

FORMAT = "strace-lens-run/2"
NAME = "manifest.json"
FACTS = ("model", "dtype", "weights", "prompts", "options", "tokens", "versions")
"""What results depend on; where several differ, the first is named."""

ABOUT = ("sizes", "head", "labels", "given", "batches", "shape")
"""What follows from the facts, for those who read a run without its model and prompts."""


class OtherRunError(ValueError):
    """A folder that holds another run, with the difference."""


def run_id(said: Mapping[str, Any]) -> str:
    """Hash of all that a manifest says of its run; every part carries it."""
    values = {name: said[name] for name in (*FACTS, *ABOUT)}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def open_run(folder: Path, facts: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """Write the manifest of a new run, or check that a folder's is of the same run.

    Args:
        folder: made if it is not there.
        facts: a value for each of `FACTS`.
        about: a value for each of `ABOUT`.

    Raises:
        OtherRunError: the folder holds a run made with other facts; names the first difference.
        ValueError: the folder's manifest cannot be read, or it has parts and no manifest.
    """
    said = merged(facts, about)
    manifest = merged({"format": FORMAT, "id": run_id(said)}, said)
    if (folder / NAME).exists():
        before = read_manifest(folder)
        if before["id"] != manifest["id"]:
            raise OtherRunError(
                f"{folder} holds another run: {_difference(before, manifest)}; name another folder"
            )
        return before
    if any(folder.glob("parts/*.parquet")):
        raise ValueError(f"{folder} has parts but no {NAME}; name another folder")
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    write_whole(folder / NAME, (json.dumps(manifest, indent=1) + "\n").encode())
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read, is of another format, or is not as it was written.
    """
    path = Path(folder) / NAME
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no run: there is no {NAME}; make one with sweep")
    manifest = parse_object(path.read_bytes(), path)
    found = manifest.get("format")
    if found != FORMAT:
        raise ValueError(
            f"{path} is of format {found!r} and this version reads {FORMAT}; sweep into another "
            "folder"
        )
    missing = [name for name in ("id", *FACTS, *ABOUT) if name not in manifest]
    if missing:
        raise ValueError(f"{path} does not say {missing[0]!r}; sweep into another folder")
    more = sorted(manifest.keys() - {"format", "id", *FACTS, *ABOUT})
    if more or manifest["id"] != run_id(manifest):
        why = f"it says {more[0]!r}" if more else "its id is not that of what it says"
        raise ValueError(
            f"{path} was edited or damaged ({why}); put the original back or sweep into another "
            "folder"
        )
    return manifest


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first thing that differs, options one by one, in words."""
    for name in (*FACTS, *ABOUT):
        there = before[name]
        here = json.loads(json.dumps(now[name]))
        if isinstance(here, dict) and isinstance(there, dict):
            for key in sorted({*here, *there}):
                if here.get(key) != there.get(key):
                    return f"{key} was {there.get(key)!r} and is {here.get(key)!r}"
        elif here != there:
            return _IN_WORDS.get(name, f"{name} was {there!r} and is {here!r}").format(there, here)
    raise AssertionError("two manifests differ in nothing but their ids")


_IN_WORDS = {
    "weights": "the model has the same name and other weights (their SHA-256 was {:.12} and is "
    "{:.12})",
    "prompts": "its prompts are others",
    "tokens": "its prompts become other tokens; the tokenizer has changed",
}
