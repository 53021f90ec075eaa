"""Checks of pandas frames that come from outside: what is wrong is named by its row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64, Shaped


def require_columns(frame: pd.DataFrame, names: Sequence[str]) -> None:
    """Refuse a frame that lacks a column.

    Raises:
        ValueError: the message names the columns that are missing, and those that are there.
    """
    missing = [name for name in names if name not in frame.columns]
    if missing:
        there = ", ".join(map(str, frame.columns)) or "none"
        raise ValueError(f"columns are missing: {', '.join(missing)}; the frame has {there}")


def numbers_of(
    frame: pd.DataFrame, name: str, *, missing: float | None = None
) -> Float64[np.ndarray, " row"]:
    """A column as float64.

    Args:
        frame: with that column.
        name: of the column.
        missing: stands for None, NaN and NA; by default they are refused.

    Raises:
        ValueError: a value is no finite number; the message names its row.
    """
    column = pd.Series(frame[name])
    parsed = pd.Series(pd.to_numeric(column, errors="coerce"))
    numbers = parsed.to_numpy(dtype="float64", na_value=np.nan, copy=True)
    if missing is not None:
        numbers[column.isna().to_numpy()] = missing
    refuse_rows(frame, name, ~np.isfinite(numbers), "is no number")
    return numbers


def whole_numbers(
    frame: pd.DataFrame, name: str, *, missing: int | None = None
) -> Int64[np.ndarray, " row"]:
    """A column as int64.

    Args:
        frame: with that column.
        name: of the column.
        missing: stands for None, NaN and NA; by default they are refused.

    Raises:
        ValueError: a value is no whole number; the message names its row.
    """
    numbers = numbers_of(frame, name, missing=None if missing is None else float(missing))
    refuse_rows(frame, name, numbers % 1 != 0, "is no whole number")
    return numbers.astype(np.int64)


def codes_of(
    frame: pd.DataFrame, name: str, known: Sequence[str], why: str
) -> Int64[np.ndarray, " row"]:
    """Places of a column's texts among the known ones.

    Raises:
        ValueError: a text is none of them; the message names its row, and says why.
    """
    places = {text: place for place, text in enumerate(known)}
    codes = np.array([places.get(str(text), -1) for text in frame[name]], dtype=np.int64)
    refuse_rows(frame, name, codes < 0, why)
    return codes


def refuse_rows(frame: pd.DataFrame, name: str, wrong: Bool[np.ndarray, " row"], why: str) -> None:
    """Refuse a frame with the first row that is wrong.

    Raises:
        ValueError: the message names the row, its value in the column, and why.
    """
    if wrong.any():
        first = int(wrong.argmax())
        label, value = frame.index.tolist()[first], pd.Series(frame[name]).tolist()[first]
        raise ValueError(f"row {label!r}: {name} {value!r} {why}")


def refuse_twice(frame: pd.DataFrame, values: Shaped[np.ndarray, " row"], what: str) -> None:
    """Refuse a frame in which two rows have the same value.

    Raises:
        ValueError: the message names both rows.
    """
    again = pd.Series(values).duplicated().to_numpy()
    if again.any():
        same = (values == values[again.argmax()]).nonzero()[0]
        first, second = (frame.index.tolist()[row] for row in same[:2])
        raise ValueError(f"rows {first!r} and {second!r} {what}")
