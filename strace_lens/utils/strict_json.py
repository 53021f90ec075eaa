"""JSON read strictly: what Python's own reader lets through and a file of ours never holds.

Python reads `NaN` and `Infinity`, turns 1e400 into infinity, keeps the last of two equal keys and
ends a deep nesting with a RecursionError. Each of these is refused here in one line that names the
file or the line that it stands in.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

DEPTH = 100
"""Objects and lists that may lie within one another; no file of this package needs ten."""

_WHOLE = range(-(2**63), 2**64)
_SURROGATE = re.compile("[\ud800-\udfff]")


class JsonError(ValueError):
    """A text that is not JSON, or that says what JSON cannot, with the place and the reason."""


def parse_json(content: str | bytes, where: str | Path, *, nan: bool = False) -> Any:
    """The value that a JSON text holds.

    Args:
        content: the text, or its bytes in UTF-8, with or without a byte order mark.
        where: the file, or the file and the line, for the message of an error.
        nan: read `NaN` as a number, for the files of programs that write it.

    Raises:
        JsonError: the content is not UTF-8 or not JSON, holds NaN or infinity, a number that 64
            bits cannot hold, a key twice in one object or half of a surrogate pair, or is nested
            more than `DEPTH` levels deep.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        value = json.loads(
            text.removeprefix("\ufeff"),
            parse_constant=_nan if nan else _constant,
            parse_float=_float,
            parse_int=_int,
            object_pairs_hook=_object,
        )
        _check(value)
    except UnicodeDecodeError as error:
        raise JsonError(f"{where}: not UTF-8 (byte {error.start}: {error.reason})") from error
    except RecursionError as error:
        raise JsonError(f"{where}: not JSON ({_TOO_DEEP})") from error
    except ValueError as error:
        raise JsonError(f"{where}: not JSON ({error})") from error
    return value


def parse_object(content: str | bytes, where: str | Path) -> dict[str, Any]:
    """The object that a JSON text holds.

    Raises:
        JsonError: as `parse_json`, or the text holds another kind of value.
    """
    value = parse_json(content, where)
    if not isinstance(value, dict):
        raise JsonError(f"{where}: not a JSON object but a {type(value).__name__}")
    return value


_TOO_DEEP = f"nested more than {DEPTH} levels deep"


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _nan(name: str) -> float:
    return math.nan if name == "NaN" else _constant(name)


def _float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{_shown(digits)} is larger than any 64-bit number")
    return number


def _int(digits: str) -> int:
    # Python itself refuses to read thousands of digits, in words about its own settings.
    if len(digits) > 20 or int(digits) not in _WHOLE:
        raise ValueError(f"{_shown(digits)} is larger than any 64-bit number")
    return int(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {_shown(twice)!r} is there twice")
    return found


def _check(value: Any) -> None:
    """Refuse deep nesting and halves of surrogate pairs, without recursion."""
    level: list[Any] = [value]
    depth = 0
    while level:
        if depth > DEPTH:
            raise ValueError(_TOO_DEEP)
        below: list[Any] = []
        for part in level:
            if isinstance(part, str):
                half = None if part.isascii() else _SURROGATE.search(part)
                if half:
                    raise ValueError(f"half of a surrogate pair, {half[0]!r}")
            elif isinstance(part, dict | list):
                below.append(None)  # an empty object or list is a level too
                below += [*part.keys(), *part.values()] if isinstance(part, dict) else part
        level, depth = below, depth + 1


def _shown(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:20]}..."
