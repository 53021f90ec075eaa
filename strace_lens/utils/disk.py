"""Files on disk: UTF-8 text and strict JSON in, files that are never half written out."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
import re
import reprlib
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # the two byte order marks of UTF-16
_PROBE = 2**20
_TEMPORARY = re.compile(r"\.strace-lens-(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}\.tmp")
_OLD = 24 * 60 * 60.0  # seconds; no write takes a day


# ------------------------------------------------------------------ text


class TextFileError(ValueError):
    """A file is not UTF-8 text. The message names its path, the offending byte and the way out."""


def read_text(path: str | Path) -> str:
    """Read a UTF-8 text file, with every line end as it is and without a byte order mark."""
    return decoded(Path(path).read_bytes(), path)


def decoded(data: bytes, path: str | Path) -> str:
    """Decode the bytes of a file as `read_text` does."""
    if data.startswith(_UTF_16):
        raise TextFileError(
            f"{path}, line 1: not UTF-8 (it begins with the byte order mark of UTF-16); convert "
            "it, as with iconv -f UTF-16 -t UTF-8"
        )
    zero = data.find(b"\0")
    if zero >= 0:
        raise TextFileError(f"{path} is a binary file (byte {zero} is 0); UTF-8 text is needed")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TextFileError(
            f"{path}, line {line}: not UTF-8 (byte {error.start} is 0x{data[error.start]:02X}); "
            "convert it, as with iconv -f LATIN1 -t UTF-8"
        ) from error


def read_prompt(path: str | Path) -> str:
    r"""Read a text file without the one line end (`\n` or `\r\n`) that editors add at the end."""
    text = read_text(path)
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def lines_of(text: str) -> list[str]:
    r"""Split a text at `\n` and `\r\n` only, and drop the line ends.

    Blank lines are kept, so that the index of a line is its number. A line end at the end of the
    text does not start another line.
    """
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


# ------------------------------------------------------------------ JSON


class JsonError(ValueError):
    """A text is not strict JSON. The message gives the place and the reason."""


def parse_json(content: str | bytes, where: str | Path, *, nan: bool = False) -> Any:
    """Parse JSON strictly: what Python's own reader lets pass without a word is refused.

    Args:
        content: The text, or its bytes in UTF-8 with or without a byte order mark.
        where: The file, or the file and the line, for the message of an error.
        nan: Accept `NaN`, which some programs write.

    Raises:
        JsonError: If the content is not UTF-8 or not JSON, holds infinity or NaN, a key twice in
            one object or half of a surrogate pair, or is nested too deeply.
    """

    def constant(name: str) -> float:
        if nan and name == "NaN":
            return math.nan
        raise ValueError(f"{name} is no JSON number")

    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        value = json.loads(
            text.removeprefix("\ufeff"),
            parse_constant=constant,
            parse_float=_float,
            parse_int=_int,
            object_pairs_hook=_object,
        )
        if "\\u" in text:  # only an escape can name half of a pair
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise JsonError(f"{where}: not UTF-8 (byte {error.start}: {error.reason})") from error
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise JsonError(f"{where}: not JSON (half of a surrogate pair, {half!r})") from error
    except RecursionError as error:
        raise JsonError(f"{where}: not JSON (nested too deeply)") from error
    except ValueError as error:
        raise JsonError(f"{where}: not JSON ({error})") from error
    return value


def parse_object(content: str | bytes, where: str | Path, *, nan: bool = False) -> dict[str, Any]:
    """Parse JSON strictly, as `parse_json` does, and require an object."""
    value = parse_json(content, where, nan=nan)
    if not isinstance(value, dict):
        raise JsonError(f"{where}: not a JSON object but a {type(value).__name__}")
    return value


def _float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits:.20} is larger than any 64-bit number")
    return number


def _int(digits: str) -> int:
    number = int(digits)
    if not -(2**63) <= number < 2**64:
        raise ValueError(f"{digits:.20} is larger than any 64-bit number")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {reprlib.repr(twice)} is there twice")
    return found


# ------------------------------------------------------------------ writing


def write_whole(path: str | Path, content: bytes) -> None:
    """Write a file so that it is never found half written, not even after a power failure.

    The content goes to a temporary file in the same folder, which is flushed to the disk and then
    renamed. What earlier processes left behind when they were killed is removed. The file gets the
    permissions that the user's umask gives to new files.

    Raises:
        OSError: If the file cannot be written; the message names it. An earlier file of that name
            stays as it was.
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
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Make a folder that is never found half filled, not even after a power failure.

    The body fills a temporary folder beside it, whose files are then flushed to the disk and which
    is renamed. A folder or file that has the name already is replaced. If the body ends in an
    error, nothing is left behind. Every file gets the permissions that the user's umask gives.

    Args:
        path: of the folder; the folder around it must be there.

    Raises:
        OSError: the folder cannot be made, or another process has put one there meanwhile.
    """
    path = Path(path)
    remove_strays(path.parent)
    temporary, aside = (path.parent / _temporary_name() for _ in range(2))
    temporary.mkdir()
    try:
        yield temporary
        _flush_files(temporary)
        if path.exists():
            os.rename(path, aside)
        os.rename(temporary, path)
        _flush_folder(path.parent)
    except BaseException:
        _remove(temporary)
        raise
    finally:
        _remove(aside)


def _flush_files(folder: Path) -> None:
    """Flush all files of a flat folder to the disk, with the permissions of new ones."""
    probe = folder / _temporary_name()
    _write(probe, b"")
    usual = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for file in sorted(folder.iterdir()):
        os.chmod(file, usual)
        with open(file, "rb+") as opened:
            os.fsync(opened.fileno())
    _flush_folder(folder)


def _remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it is there and can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


@contextmanager
def results_folder(
    folder: str | Path, files: Iterable[str] = (), folders: Iterable[str] = ()
) -> Iterator[None]:
    """Make the folder for results and test that it can be written, before any work is done.

    The test writes and removes a megabyte, which fails without the permission to write, on a
    read-only medium and on a full disk. If the work ends in an error before it has written a file,
    the folders that were made are removed again.

    Args:
        folder: Made with its parents if it does not exist.
        files: Names of the files that will be written; none of them may be a folder now.
        folders: Names of folders within, which are made and tested as well.

    Raises:
        OSError: If nothing can be written there; the message names the folder or the obstacle.
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
    """Remove the temporary files and folders that killed processes left in a folder.

    Those of a running process are kept, and those of another machine until they are a day old.
    """
    try:
        names = [name for name in os.listdir(folder) if _TEMPORARY.fullmatch(name)]
    except OSError:  # a folder may be writable without being readable
        return
    for name in names:
        with suppress(OSError):  # another process was faster, or it is another user's
            if _is_stray(Path(folder, name)):
                _remove(Path(folder, name))


def _is_stray(path: Path) -> bool:
    found = _TEMPORARY.fullmatch(path.name)
    assert found is not None
    if time.time() - path.stat().st_mtime > _OLD:
        return True
    return found["host"] == _host() and not _is_running(int(found["pid"]))


def _is_running(pid: int) -> bool:
    if os.name != "posix":  # elsewhere signal 0 may end the process
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _temporary_name() -> str:
    """Return a name that tells whose file it is, and is short whatever the target is called."""
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
    except PermissionError:  # a folder may be writable without being readable
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
            raise
    finally:
        os.close(descriptor)


def _about(error: OSError, what: str) -> OSError:
    """Return the same error with a message about the file that the caller named."""
    text = f"{what}: {error.strerror or error}"
    return OSError(text) if error.errno is None else OSError(error.errno, text)
