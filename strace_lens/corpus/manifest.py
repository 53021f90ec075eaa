"""How a run was made: written once when a sweep starts, compared when it starts again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strace_lens.storage import write_whole

FORMAT = "strace-lens-run/2"
NAME = "manifest.json"


class OtherRunError(ValueError):
    """A folder that holds another run, with the difference."""


def run_id(facts: Mapping[str, Any]) -> str:
    """Hash of all that results depend on; every part carries it."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def open_run(folder: Path, facts: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """Write the manifest of a new run, or check that a folder's is of the same run.

    Args:
        folder: made if it is not there.
        facts: what results depend on: model, prompts, options, versions.
        about: what follows from the facts or says nothing of results.

    Raises:
        OtherRunError: the folder holds a run made with other facts; names the first difference.
        ValueError: the folder's manifest cannot be read, or it has parts and no manifest.
    """
    manifest = {"format": FORMAT, "id": run_id(facts), **facts, **about}
    if (folder / NAME).exists():
        before = read_manifest(folder)
        if before["id"] != manifest["id"]:
            raise OtherRunError(f"{folder} holds another run: {_difference(before, facts)}")
        return before
    if any(folder.glob("parts/*")):
        raise ValueError(f"{folder} has parts but no {NAME}; name another folder")
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    write_whole(folder / NAME, (json.dumps(manifest, indent=1) + "\n").encode())
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read or is of another format.
    """
    path = Path(folder) / NAME
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no run: there is no {NAME}; make one with sweep")
    try:
        manifest = json.loads(path.read_bytes())
        found = manifest.get("format")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if found != FORMAT:
        raise ValueError(f"{path} is of format {found!r}; this version reads {FORMAT}")
    return manifest


def _difference(before: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """The first fact that differs, options one by one."""
    for name, value in facts.items():
        there = json.loads(json.dumps(before.get(name)))
        here = json.loads(json.dumps(value))
        if isinstance(here, dict) and isinstance(there, dict):
            for key in sorted({*here, *there}):
                if here.get(key) != there.get(key):
                    return f"{key} was {there.get(key)!r} and is {here.get(key)!r}"
        elif here != there:
            return f"{name} was {there!r} and is {here!r}"
    return "its manifest was written by hand"
