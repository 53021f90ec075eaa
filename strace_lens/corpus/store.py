"""The folder of a run: its manifest, its prompts known again, and one writer at a time.

The manifest is written when a sweep starts and compared when it starts again. The lock of a folder
ends with the process that holds it, however that ends.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from strace_lens.corpus.batches import Item
from strace_lens.corpus.prompts import CorpusPrompt
from strace_lens.utils import manifest as manifests
from strace_lens.utils.disk import JsonError, parse_object, write_whole
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


def open_run(folder: Path, said: Mapping[str, Any]) -> dict[str, Any]:
    """Write the manifest of a new run, or check that a folder's manifest is of the same run.

    Args:
        folder: made if it is not there.
        said: a value for each of `KIND.values`.

    Returns:
        The manifest, as it is read back.

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
        ValueError: it cannot be read, is of another format, or is not as it was written.
    """
    if not (folder / NAME).is_file():
        raise FileNotFoundError(f"{folder} holds no run: there is no {NAME}; make one with sweep")
    return manifests.read_manifest(folder, KIND)


def prompt_key(prompt: CorpusPrompt) -> str:
    """Hash of everything that was given of a prompt."""
    said = prompt.text, prompt.next, sorted(prompt.labels.items())
    return hashlib.sha256(repr(said).encode()).hexdigest()[:16]


def tokens_hash(items: Sequence[Item]) -> str:
    """Hash of the tokens of all prompts of a run, in their order."""
    ids = [item.prompt.ids if item.prompt else () for item in items]
    return hashlib.sha256(repr(ids).encode()).hexdigest()[:16]


def as_begun(folder: Path, prompts: Sequence[CorpusPrompt]) -> Sequence[CorpusPrompt]:
    """The prompts in the order of the run that a folder holds; as they are if it holds none.

    Args:
        folder: of a run, or of none yet.
        prompts: given now, in any order.

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
            said += f", and {len(new)} that are given are not in it, such as {_shown(new[-1].text)}"
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


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 40 else f"{line[:37]}...")


def _holder(folder: Path) -> str:
    try:
        said = parse_object((folder / HOLDER).read_bytes(), folder / HOLDER)
        return f" (process {said['pid']} on {said['host']}, since {said['since']})"
    except (OSError, JsonError, KeyError):  # it has not come to saying so
        return ""
