"""The file format of every result: safetensors with JSON in its header and a checksum over both.

The header's metadata has one key, because a process writes several in a random order and the same
result should be the same bytes. What it says is a JSON object with sorted keys: the format, the
kind of result, its facts, and a SHA-256 over these three and over every array. Files hold no code:
reading one runs nothing. What a file with the right checksum says is taken as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from strace_lens.utils.disk import JsonError, parse_object, write_whole

FORMAT = "strace-lens/3"

_EARLIER = "strace-lens/1"
_KEY, _METADATA = "strace-lens", "__metadata__"


class ResultFileError(ValueError):
    """A file that is not a whole result of strace_lens, with its path and the reason."""


def write_result(
    path: str | Path, kind: str, arrays: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> None:
    """Write arrays and facts to one file of a kind, whole or not at all.

    Raises:
        ValueError: the facts hold what JSON cannot.
        OSError: the file cannot be written.
    """
    plain = json.loads(facts_text(kind, facts))
    entries, data = _parted(save({n: a.contiguous() for n, a in arrays.items()}))
    said: dict[str, Any] = {"facts": plain, "format": FORMAT, "kind": kind}
    said["sha256"] = _sha256(said, entries, data)
    header = json.dumps({_METADATA: {_KEY: _sorted_json(said)}, **entries}).encode()
    header += b" " * (-len(header) % 8)  # arrays begin at a multiple of eight bytes
    write_whole(path, b"".join((len(header).to_bytes(8, "little"), header, data)))


def read_result(
    path: str | Path, kinds: Collection[str]
) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """Kind, arrays and facts of a file written by `write_result` as one of some kinds.

    Raises:
        FileNotFoundError: there is no such file.
        ResultFileError: it is truncated, foreign, changed after it was written, or of another kind
            or format.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    content = Path(path).read_bytes()
    try:
        arrays = load(content)  # checks that the header agrees with the length of the file
        entries, data = _parted(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ResultFileError(f"{path} is truncated or foreign: {error}") from error
    metadata = entries.pop(_METADATA, {})
    wanted = f"{' or '.join(kinds)} of {FORMAT}"
    if metadata.get("format") == _EARLIER:
        raise ResultFileError(
            f"{path} is of the format {_EARLIER}, of an earlier version, and has no checksum; this "
            f"version reads {FORMAT}, so make the result again"
        )
    if _KEY not in metadata:
        raise ResultFileError(f"{path} is no {wanted}; it has no format and no kind")
    try:
        said = parse_object(metadata[_KEY], path)
    except JsonError as error:
        raise ResultFileError(f"{error}; its header is damaged") from error
    found = said.pop("sha256", None)
    if said.get("format") != FORMAT or said.get("kind") not in kinds:
        of = f"{said.get('format', 'no format')}, {said.get('kind', 'no kind')}"
        raise ResultFileError(f"{path} is no {wanted}; it says {of}")
    if found != _sha256(said, entries, data):
        raise ResultFileError(
            f"{path} is damaged: its content is not what its checksum was made of"
        )
    return said["kind"], arrays, said["facts"]


def facts_text(kind: str, facts: Mapping[str, Any]) -> str:
    """What is known of a result of a kind, as JSON that a strict reader takes.

    Raises:
        ValueError: the facts hold what JSON cannot.
    """
    try:
        said = _sorted_json(facts)
        parse_object(said, f"the {kind}")
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"the {kind} says what no JSON can hold of how it was made: {error}"
        ) from error
    return said


def _sorted_json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _parted(content: bytes) -> tuple[dict[str, Any], memoryview]:
    """The header of a safetensors file and its arrays' bytes."""
    length = int.from_bytes(content[:8], "little")
    return parse_object(content[8 : 8 + length], "its header"), memoryview(content)[8 + length :]


def _sha256(said: Mapping[str, Any], entries: Mapping[str, Any], data: memoryview) -> str:
    """Checksum over what a header says and, by name, over each array's type, shape and bytes."""
    digest = hashlib.sha256(_sorted_json(said).encode())
    for name in sorted(entries):
        begin, end = entries[name]["data_offsets"]
        array = {"name": name, "dtype": entries[name]["dtype"], "shape": entries[name]["shape"]}
        digest.update(_sorted_json(array).encode())
        digest.update(data[begin:end])
    return digest.hexdigest()
