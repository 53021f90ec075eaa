"""Columns are read as numbers, and wrong rows are named."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from strace_lens.utils import checks

FRAME = pd.DataFrame({"a": [1, 2, None], "b": ["1", "2.5", "x"]}, index=["r1", "r2", "r3"])


def test_numbers_are_read_and_missing_ones_stand_for_what_is_asked() -> None:
    assert checks.whole_numbers(FRAME, "a", missing=-1).tolist() == [1, 2, -1]
    assert checks.numbers_of(FRAME.head(2), "b").tolist() == [1.0, 2.5]


@pytest.mark.parametrize(
    ("read", "reason"),
    [
        (lambda: checks.numbers_of(FRAME, "a"), "row 'r3': a nan is no number"),
        (lambda: checks.numbers_of(FRAME, "b"), "row 'r3': b 'x' is no number"),
        (
            lambda: checks.whole_numbers(FRAME.head(2), "b"),
            r"row 'r2': b '2\.5' is no whole number",
        ),
        (
            lambda: checks.require_columns(FRAME, ["a", "c"]),
            "columns are missing: c; the frame has a, b",
        ),
        (
            lambda: checks.refuse_twice(FRAME, np.array([4, 7, 4]), "are the same"),
            "rows 'r1' and 'r3' are the same",
        ),
    ],
)
def test_what_is_wrong_is_named(read, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        read()
