"""One sweep at a time writes into a folder: its lock ends with its process, however that ends."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from strace_lens.utils.disk import JsonError, parse_object, write_whole

LOCK = ".sweep.lock"
HOLDER = ".sweep.json"
"""Who holds the lock; a file of its own, because opening the lock empties it."""


class LockedRunError(ValueError):
    """A folder that another sweep is writing into, with the process that does."""


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
