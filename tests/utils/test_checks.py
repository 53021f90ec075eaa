"""Values of the right kind come back, others are refused by name; wrong rows are named."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from strace_lens.utils import checks


@pytest.mark.parametrize(
    ("check", "right"),
    [
        (checks.text, ["", "a"]),
        (checks.flag, [True, False]),
        (checks.whole, [0, -1, 2**70]),
        (checks.number, [0, -1.5, 1e300]),
        (checks.items, [[], [1]]),
        (checks.mapping, [{}, {"a": 1}]),
    ],
)
def test_only_values_of_the_right_kind_pass(check, right):
    for value in right:
        assert check(value, "it") == value
    others = ("a", True, 0, 0.5, [1], {"a": 1}, None, math.nan, math.inf)
    kinds = {type(value) for value in right}
    for value in others:
        if type(value) not in kinds or (isinstance(value, float) and not math.isfinite(value)):
            with pytest.raises(ValueError, match=r"^it is .*, not (a|an|true) "):
                check(value, "it")


def test_numbers_lie_in_their_range_its_ends_included():
    for check in (checks.whole, checks.number):
        assert [check(n, "it", 1, 3) for n in (1, 3)] == [1, 3]
        for wrong in (0, 4):
            with pytest.raises(ValueError, match=rf"^it is {wrong}, not a .*number in 1 to 3$"):
                check(wrong, "it", 1, 3)
    with pytest.raises(ValueError, match=r"^it is -1, not a number of at least 0$"):
        checks.number(-1, "it", low=0)
    assert type(checks.number(1, "it")) is float


def test_an_object_has_just_the_fields_that_are_known():
    assert checks.fields({"a": 1, "b": 2}, "ab", "it") == {"a": 1, "b": 2}
    with pytest.raises(ValueError, match="it has no 'b'"):
        checks.fields({"a": 1}, "ab", "it")
    with pytest.raises(ValueError, match="it has a 'c', which is not known"):
        checks.fields({"a": 1, "b": 2, "c": 3}, "ab", "it")


def test_a_list_has_the_length_that_was_asked_for():
    assert checks.items((1, 2), "it", 2) == [1, 2]
    with pytest.raises(ValueError, match="it is a list of 2, not a list of 3"):
        checks.items([1, 2], "it", 3)


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(ValueError, match=r"it is 'aaa.*, not true or false") as raised:
        checks.flag("a" * 10_000, "it")
    assert len(str(raised.value)) < 100


def test_a_column_is_refused_at_its_first_value_out_of_range():
    checks.column(np.array([0.0, 1.0]), "it", 0, 1)
    checks.column(np.array([0.0, math.inf]), "it", 0)
    checks.column(np.array([0.0, math.nan]), "it", 0, 1, nan=True)
    checks.column(np.array([True, False]), "it", 0, 1)
    for values, said in (([0.5, -0.1, 2.0], "-0.1"), ([0.5, 2.0], "2.0"), ([0.5, math.nan], "nan")):
        with pytest.raises(ValueError, match=rf"^it, row 1 is {said}, not a number in 0 to 1$"):
            checks.column(np.array(values), "it", 0, 1)
    with pytest.raises(ValueError, match="row 0 is -inf"):
        checks.column(np.array([-math.inf]), "it", 0, nan=True)


# ------------------------------------------------------------------ frames

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
