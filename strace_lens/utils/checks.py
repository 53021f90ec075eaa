"""Checks of values and of pandas frames that come from files or from the user.

The functions for single values return the value that they were given, or raise a ValueError which
says what the value is of (`what`) and what it should have been. Readers of files put the name of
the file before that. The functions for frames name the first row that is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64, Shaped

_LONGEST = 60  # characters of a value that are shown in a message

# ------------------------------------------------------------------ values


def fields(value: object, names: Collection[str], what: str) -> dict[str, Any]:
    """Require an object with exactly these fields."""
    found = mapping(value, what)
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{what} has no {missing[0]!r}")
    more = [name for name in found if name not in names]
    if more:
        raise ValueError(f"{what} has a {_shown(more[0])}, which is not known")
    return found


def mapping(value: object, what: str) -> dict[str, Any]:
    """Require an object, with whatever fields."""
    if not isinstance(value, Mapping):
        raise _wrong(value, what, "an object")
    return dict(value)


def items(value: object, what: str, count: int | None = None) -> list[Any]:
    """Require a list, of length `count` if that is given."""
    if not isinstance(value, list | tuple) or count not in (None, len(value)):
        raise _wrong(value, what, "a list" if count is None else f"a list of {count}")
    return list(value)


def text(value: object, what: str) -> str:
    """Require a string."""
    if not isinstance(value, str):
        raise _wrong(value, what, "a text")
    return value


def flag(value: object, what: str) -> bool:
    """Require True or False; "false" and 0 are refused."""
    if not isinstance(value, bool):
        raise _wrong(value, what, "true or false")
    return value


def whole(
    value: object, what: str, low: int | float = -math.inf, high: int | float = math.inf
) -> int:
    """Require an integer from `low` to `high`, both included."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _wrong(value, what, f"a whole number{_range(low, high)}")
    return value


def number(
    value: object, what: str, low: int | float = -math.inf, high: int | float = math.inf
) -> float:
    """Require a finite number from `low` to `high`, both included, and return it as a float."""
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
    """Require numbers from `low` to `high`, both included; NaN is accepted only if `nan` is set.

    Infinity is accepted where the range has no end. The message names the first row that is wrong.
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


# ------------------------------------------------------------------ frames


def require_columns(frame: pd.DataFrame, names: Sequence[str]) -> None:
    """Require columns of these names.

    Raises:
        ValueError: If some are missing; the message names them, and the columns that are there.
    """
    missing = [name for name in names if name not in frame.columns]
    if missing:
        there = ", ".join(map(str, frame.columns)) or "none"
        raise ValueError(f"columns are missing: {', '.join(missing)}; the frame has {there}")


def numbers_of(
    frame: pd.DataFrame, name: str, *, missing: float | None = None
) -> Float64[np.ndarray, " row"]:
    """Return a column as float64.

    Args:
        frame: With that column.
        name: Of the column.
        missing: Stands for None, NaN and NA, which are refused by default.

    Raises:
        ValueError: If a value is not a finite number.
    """
    values = pd.Series(frame[name])
    parsed = pd.Series(pd.to_numeric(values, errors="coerce"))
    numbers = parsed.to_numpy(dtype="float64", na_value=np.nan, copy=True)
    if missing is not None:
        numbers[values.isna().to_numpy()] = missing
    refuse_rows(frame, name, ~np.isfinite(numbers), "is no number")
    return numbers


def whole_numbers(
    frame: pd.DataFrame, name: str, *, missing: int | None = None
) -> Int64[np.ndarray, " row"]:
    """Return a column as int64.

    Args:
        frame: With that column.
        name: Of the column.
        missing: Stands for None, NaN and NA, which are refused by default.

    Raises:
        ValueError: If a value is not a whole number.
    """
    numbers = numbers_of(frame, name, missing=None if missing is None else float(missing))
    refuse_rows(frame, name, numbers % 1 != 0, "is no whole number")
    return numbers.astype(np.int64)


def codes_of(
    frame: pd.DataFrame, name: str, known: Sequence[str], why: str
) -> Int64[np.ndarray, " row"]:
    """Return the index of each text of a column among the known texts.

    Raises:
        ValueError: If a text is none of them; the message ends with `why`.
    """
    places = {known_text: place for place, known_text in enumerate(known)}
    codes = np.array([places.get(str(found), -1) for found in frame[name]], dtype=np.int64)
    refuse_rows(frame, name, codes < 0, why)
    return codes


def refuse_rows(frame: pd.DataFrame, name: str, wrong: Bool[np.ndarray, " row"], why: str) -> None:
    """Refuse a frame if a row of it is wrong.

    Raises:
        ValueError: Names the first wrong row, its value in the column `name`, and why it is wrong.
    """
    if wrong.any():
        first = int(wrong.argmax())
        label, value = frame.index.tolist()[first], pd.Series(frame[name]).tolist()[first]
        raise ValueError(f"row {label!r}: {name} {value!r} {why}")


def refuse_twice(frame: pd.DataFrame, values: Shaped[np.ndarray, " row"], what: str) -> None:
    """Refuse a frame if two of its rows have the same value.

    Raises:
        ValueError: Names both rows.
    """
    again = pd.Series(values).duplicated().to_numpy()
    if again.any():
        same = (values == values[again.argmax()]).nonzero()[0]
        first, second = (frame.index.tolist()[row] for row in same[:2])
        raise ValueError(f"rows {first!r} and {second!r} {what}")
