"""Checks of pandas frames that come from files or from the user; the first wrong row is named."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64, Shaped


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
    """Return a column as float64; `missing` stands for None, NaN and NA, else refused."""
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
    """Return a column as int64; `missing` stands for None, NaN and NA, else refused."""
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
