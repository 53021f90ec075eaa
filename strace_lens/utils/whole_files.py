"""Files written whole or not at all, and the folder for them tried before the work begins.

A file is written under a temporary name beside its target, flushed to the disk and renamed, so
that a reader, a kill or a power failure finds the old content or the new one. The temporary name
says which process writes it. What a killed process left behind is removed by the next write into
the same folder.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PROBE = 2**20
_TEMPORARY = re.compile(r"\.strace-lens-(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}\.tmp")
_OLD = 24 * 60 * 60.0  # no write takes a day


def write_whole(path: str | Path, content: bytes) -> None:
    """Write a file so that it is never found half written, not even after a power failure.

    The file gets the permissions that the user's umask gives to new files.

    Raises:
        OSError: the file cannot be written; the message names it. An earlier file of that name is
            left as it was.
    """
    path = Path(path)
    remove_strays(path.parent)
    temporary = path.parent / _temporary_name()
    try:
        _write(temporary, content)
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _about(error, f"cannot write {path}") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def results_folder(
    folder: str | Path, files: Iterable[str] = (), folders: Iterable[str] = ()
) -> Iterator[None]:
    """Make the folder for results and try to write into it, before any work is done for them.

    A megabyte is written and removed again, which fails in a folder without the permission to
    write, on a medium that is read-only and on a full disk. Where the work ends in an error before
    a file is written, the folders that were made are removed again.

    Args:
        folder: made with its parents if it is not there.
        files: names of the files that will be written; none of them may be a folder now.
        folders: names of folders within, which are made and tried too.

    Raises:
        OSError: nothing can be written there; the message names the folder or the file in the way.
    """
    wanted = [Path(folder), *(Path(folder, name) for name in folders)]
    missing = [p for p in (*wanted, *Path(folder).parents) if not p.exists()]
    try:
        for each in wanted:
            _try_folder(each)
        for name in files:
            if Path(folder, name).is_dir():
                raise IsADirectoryError(
                    errno.EISDIR, f"cannot write {Path(folder, name)}: there is a folder named so"
                )
        yield
    except BaseException:
        for made in sorted(missing, key=lambda p: len(p.parts), reverse=True):
            with suppress(OSError):  # it holds a file, or was never made
                made.rmdir()
        raise


def _try_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        file = next(p for p in (folder, *folder.parents) if p.exists())
        raise NotADirectoryError(
            errno.ENOTDIR, f"cannot write to the folder {folder}: {file} is a file"
        ) from error
    except OSError as error:
        raise _about(error, f"cannot make the folder {folder}") from error
    remove_strays(folder)
    probe = folder / _temporary_name()
    try:
        _write(probe, bytes(_PROBE))
    except OSError as error:
        raise _about(error, f"cannot write to the folder {folder}") from error
    finally:
        probe.unlink(missing_ok=True)


def remove_strays(folder: str | Path) -> None:
    """Remove the temporary files that processes left in a folder when they were killed.

    Those of a process that lives are kept, and so are another machine's until they are a day old.
    """
    try:
        names = [name for name in os.listdir(folder) if _TEMPORARY.fullmatch(name)]
    except OSError:  # a folder may be writable and still not be listed
        return
    for name in names:
        try:
            if _is_stray(Path(folder, name)):
                Path(folder, name).unlink()
        except OSError:  # another process was faster, or it is another user's
            continue


def _is_stray(path: Path) -> bool:
    found = _TEMPORARY.fullmatch(path.name)
    assert found is not None
    if time.time() - path.stat().st_mtime > _OLD:
        return True
    return found["host"] == _host() and not _lives(int(found["pid"]))


def _lives(pid: int) -> bool:
    if os.name != "posix":  # elsewhere a signal of number 0 may end the process
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _temporary_name() -> str:
    """A name that says whose it is, and is short enough whatever the target is called."""
    return f".strace-lens-{_host()}-{os.getpid()}-{os.urandom(4).hex()}.tmp"


def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _write(path: Path, content: bytes) -> None:
    """Write a new file and flush it to the disk."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags, 0o666), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Flush a renaming to the disk, where the system can."""
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder may be writable and still not be read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
            raise
    finally:
        os.close(descriptor)


def _about(error: OSError, what: str) -> OSError:
    """The same error, about the file that was asked for and not about a temporary name."""
    text = f"{what}: {error.strerror or error}"
    return OSError(text) if error.errno is None else OSError(error.errno, text)
