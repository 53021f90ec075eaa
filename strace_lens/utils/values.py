"""What a file says, checked before it is used: the kind of each value, and the range it lies in.

Each function returns the value that it was given, or raises a ValueError which says what the value
is of and what it should have been. A reader puts the name of its file before that.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, cast

import numpy as np
from jaxtyping import Shaped

_LONGEST = 60


def fields(value: object, names: Collection[str], what: str) -> dict[str, Any]:
    """An object that has fields of just these names."""
    found = mapping(value, what)
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{what} has no {missing[0]!r}")
    more = [name for name in found if name not in names]
    if more:
        raise ValueError(f"{what} has a {_shown(more[0])}, which is not known")
    return found


def mapping(value: object, what: str) -> dict[str, Any]:
    """An object, whatever its fields."""
    if not isinstance(value, Mapping):
        raise _wrong(value, what, "an object")
    return dict(value)


def items(value: object, what: str, count: int | None = None) -> list[Any]:
    """A list, of so many items if their number is given."""
    if not isinstance(value, list | tuple) or count not in (None, len(value)):
        raise _wrong(value, what, "a list" if count is None else f"a list of {count}")
    return list(value)


def text(value: object, what: str) -> str:
    """A text."""
    if not isinstance(value, str):
        raise _wrong(value, what, "a text")
    return value


def flag(value: object, what: str) -> bool:
    """True or False; neither "false" nor 0 is one."""
    if not isinstance(value, bool):
        raise _wrong(value, what, "true or false")
    return value


def whole(
    value: object, what: str, low: int | float = -math.inf, high: int | float = math.inf
) -> int:
    """A whole number in a range, its ends included."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _wrong(value, what, f"a whole number{_range(low, high)}")
    return value


def number(
    value: object, what: str, low: int | float = -math.inf, high: int | float = math.inf
) -> float:
    """A finite number in a range, its ends included, as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(value, what, f"a number{_range(low, high)}")
    if not (math.isfinite(value) and low <= value <= high):
        raise _wrong(value, what, f"a number{_range(low, high)}")
    return float(value)


def column(
    values: Shaped[np.ndarray, "..."],
    what: str,
    low: int | float = -math.inf,
    high: int | float = math.inf,
    *,
    nan: bool = False,
) -> None:
    """Refuse numbers outside a range, its ends included; NaN too, unless it is allowed.

    Infinity is allowed where the range has no end. The message names the first row that is wrong.
    """
    missing = np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, dtype=bool)
    inside = (values >= low) & (values <= high)
    wrong = np.flatnonzero(~(inside | (missing if nan else False)))
    if len(wrong):
        row = int(wrong[0])
        raise _wrong(values.flat[row].item(), f"{what}, row {row}", f"a number{_range(low, high)}")


def _range(low: int | float, high: int | float) -> str:
    if math.isinf(high):
        return "" if math.isinf(low) else f" of at least {low:g}"
    return f" in {low:g} to {high:g}"


def _wrong(value: object, what: str, wanted: str) -> ValueError:
    return ValueError(f"{what} is {_shown(value)}, not {wanted}")


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return f"a list of {len(cast(Collection[Any], value))}"
    said = repr(value)
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."
