"""The user's cache folder: what is kept there may be lost at any time and is made again."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from strace_lens.utils.disk import parse_object, read_text, write_whole

VARIABLE = "STRACE_LENS_CACHE"
"""The environment variable that names another folder for the cache, or says that there is none."""

_OFF = {"", "0", "off"}
_SECONDS = "seconds.json"
_MOST = 100  # things whose seconds are kept


def cache_folder() -> Path | None:
    """The folder of the cache, whether it is there or not; None where none is wanted.

    Raises:
        RuntimeError: it is given by a home directory that cannot be found.
    """
    named = os.environ.get(VARIABLE)
    if named is None:
        from platformdirs import user_cache_dir  # `strace-lens --help` needs none of it

        return Path(user_cache_dir("strace-lens"))
    if named.strip().lower() in _OFF:
        return None
    return Path(named).expanduser().absolute()


def last_seconds(what: str) -> float | None:
    """How long something took the last time, in seconds; None where that is not known.

    Args:
        what: a name of it.
    """
    return _kept_seconds().get(what)


def remember_seconds(what: str, seconds: float) -> None:
    """Note how long something took, if anything can be written into the cache.

    Args:
        what: a name of it.
        seconds: how long.
    """
    kept = {name: value for name, value in _kept_seconds().items() if name != what}
    kept = dict([*kept.items(), (what, round(seconds, 2))][-_MOST:])
    with suppress(OSError, RuntimeError):
        if (folder := cache_folder()) is not None:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / _SECONDS, json.dumps(kept, indent=1).encode())


def _kept_seconds() -> dict[str, float]:
    """Seconds by name, the latest last; none where the file is not there or not as it was made."""
    with suppress(OSError, RuntimeError, ValueError):
        folder = cache_folder()
        found = {} if folder is None else parse_object(read_text(folder / _SECONDS), _SECONDS)
        return {k: float(v) for k, v in found.items() if isinstance(v, int | float) and v >= 0}
    return {}
