"""What a folder of results was made from: written with the first result, compared ever after.

Results that are made one after another, over hours, must not mix: a folder's manifest says all
that they depend on, and its id is a hash of that, which every result carries.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strace_lens.utils.disk import parse_object, write_whole

NAME = "manifest.json"


class OtherResultsError(ValueError):
    """A folder that holds results of something else, with the difference."""


@dataclass(frozen=True)
class ManifestKind:
    """What the manifests of one kind of folder say.

    Attributes:
        format: its name and version.
        noun: what such a folder holds.
        values: names of all that a manifest says, in the order in which differences are told.
        in_words: how a difference is worded, by name: a format of both values and, of the entries
            of a mapping, `key`.
        way_out: what to do about a folder of something else, as errors end.
    """

    format: str
    noun: str
    values: tuple[str, ...]
    in_words: Mapping[str, str]
    way_out: str


def manifest_of(kind: ManifestKind, said: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with these values, its id included."""
    return {"format": kind.format, "id": _identity(kind, said), **said}


def check_manifest(folder: Path, kind: ManifestKind, manifest: Mapping[str, Any]) -> bool:
    """Whether a folder has this manifest already; False where it has none.

    Raises:
        OtherResultsError: it has another; the message names the first difference.
        ValueError: its manifest cannot be read, is of another format or was edited.
    """
    if not (folder / NAME).is_file():
        return False
    before = read_manifest(folder, kind)
    if before["id"] != manifest["id"]:
        raise OtherResultsError(
            f"{folder} holds another {kind.noun}: {_difference(kind, before, manifest)}; "
            f"{kind.way_out}"
        )
    return True


def is_of_kind(folder: Path, kind: ManifestKind) -> bool:
    """Whether a folder has a manifest of this kind, of whatever version and whether edited or not.

    Raises:
        ValueError: the manifest is not JSON.
    """
    path = folder / NAME
    if not path.is_file():
        return False
    return _family(parse_object(path.read_bytes(), path).get("format")) == _family(kind.format)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of a folder."""
    write_whole(folder / NAME, (json.dumps(manifest, indent=1) + "\n").encode())


def read_manifest(folder: Path, kind: ManifestKind) -> dict[str, Any]:
    """The manifest of a folder that has one.

    Raises:
        ValueError: it cannot be read, is of another format, or is not as it was written.
    """
    path = folder / NAME
    manifest = parse_object(path.read_bytes(), path)
    found = manifest.get("format")
    if found != kind.format:
        own = _family(found) == _family(kind.format)
        raise ValueError(
            f"{path} is of format {found!r} and this version reads {kind.format}; "
            f"{kind.way_out if own else 'name another folder'}"
        )
    missing = [name for name in ("id", *kind.values) if name not in manifest]
    if missing:
        raise ValueError(f"{path} does not say {missing[0]!r}; {kind.way_out}")
    more = sorted(manifest.keys() - {"format", "id", *kind.values})
    if more or manifest["id"] != _identity(kind, manifest):
        why = f"it says {more[0]!r}" if more else "its id is not that of what it says"
        raise ValueError(
            f"{path} was edited or damaged ({why}); put the original back, or {kind.way_out}"
        )
    return manifest


def _family(name: object) -> str:
    """The name of a format without its version."""
    return str(name).rpartition("/")[0]


def _identity(kind: ManifestKind, said: Mapping[str, Any]) -> str:
    values = {name: said[name] for name in kind.values}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _difference(kind: ManifestKind, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first thing that differs, the entries of a mapping one by one."""
    for name in kind.values:
        there, here = before[name], json.loads(json.dumps(now[name]))
        if there == here:
            continue
        key, label = name, name
        if isinstance(here, dict) and isinstance(there, dict):
            key = next(k for k in sorted({*here, *there}) if here.get(k) != there.get(k))
            there, here, label = there.get(key), here.get(key), f"{name}: {key}"
        words = kind.in_words.get(name, "{label} was {0!r} and is {1!r}")
        return words.format(there, here, key=key, label=label)
    raise AssertionError("two manifests differ in nothing but their ids")
