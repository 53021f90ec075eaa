"""Text from files, read alike wherever a user names a file: UTF-8, with or without a BOM."""

from __future__ import annotations

from pathlib import Path

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # how a file begins that has the byte order mark of UTF-16


class TextFileError(ValueError):
    """A file that is not UTF-8 text, with its path, the byte in question and what to do."""


def read_text(path: str | Path) -> str:
    """The text of a file as it stands, every line end included; a BOM is no part of it.

    Raises:
        OSError: the file cannot be read.
        TextFileError: its bytes are not UTF-8, or it is a binary file.
    """
    return decoded(Path(path).read_bytes(), path)


def decoded(data: bytes, path: str | Path) -> str:
    """The text that the bytes of a file stand for, as `read_text` gives it.

    Raises:
        TextFileError: as `read_text`.
    """
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
    """The text of a file without the line end that editors leave after the last line.

    One line end is taken off, of either kind; all others stay as they are.

    Raises:
        OSError, TextFileError: as `read_text`.
    """
    text = read_text(path)
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def lines_of(text: str) -> list[str]:
    r"""The lines of a text without their line ends; only `\n` or `\r\n` ends a line.

    Blank lines are kept, so that the place in the list is the number of the line; the end of the
    last line begins no other.
    """
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines
