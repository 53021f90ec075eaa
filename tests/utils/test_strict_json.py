"""JSON read strictly: everything that JSON can say comes back, everything else is refused."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strace_lens.utils.strict_json import DEPTH, JsonError, parse_json, parse_object

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(value=VALUES, ascii_only=st.booleans(), mark=st.booleans())
def test_what_json_can_say_comes_back(value, ascii_only, mark):
    text = "\ufeff" * mark + json.dumps(value, ensure_ascii=ascii_only)
    back = parse_json(text, "here")
    assert back == value
    assert json.dumps(back) == json.dumps(value)  # -0.0 and 0.0, 1 and 1.0 are equal, not the same
    assert parse_json(text.encode(), "here") == value


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", r"not JSON \(Expecting"),
        ("", r"not JSON \(Expecting"),
        ("1 2", r"not JSON \(Extra data"),
        ("[NaN]", r"not JSON \(NaN is no JSON number\)"),
        ("[-Infinity]", "-Infinity is no JSON number"),
        ("1e400", "1e400 is larger than any 64-bit number"),
        ("-1e400", "-1e400 is larger than any 64-bit number"),
        (str(2**64), "18446744073709551616 is larger than any 64-bit number"),
        (str(-(2**63) - 1), "-9223372036854775809 is larger than any 64-bit number"),
        ("1" * 10_000, r"1{20}\.\.\. is larger than any 64-bit number"),
        ('{"a": 1, "a": 2}', "the key 'a' is there twice"),
        (r'"\ud800"', r"half of a surrogate pair, '\\ud800'"),
        (r'{"\udfff": 1}', r"half of a surrogate pair, '\\udfff'"),
        ("[" * (DEPTH + 1) + "]" * (DEPTH + 1), "nested more than 100 levels deep"),
        ('{"a":' * (DEPTH + 1) + "1" + "}" * (DEPTH + 1), "nested more than 100 levels deep"),
        ("[" * 200_000 + "]" * 200_000, "nested more than 100 levels deep"),
        ("[" * 200_000, r"not JSON"),
        (b'"\xff"', r"not UTF-8 \(byte 1"),
    ],
)
def test_everything_else_is_refused_in_one_line_that_says_where(content, reason):
    with pytest.raises(JsonError, match=rf"^file\.json, line 3: .*{reason}") as raised:
        parse_json(content, "file.json, line 3")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 200


def test_a_nesting_that_is_just_shallow_enough_is_read():
    text = "[" * DEPTH + "]" * DEPTH
    assert json.dumps(parse_json(text, "here")) == text


@pytest.mark.parametrize("content", ["[1]", "null", '"text"', "3"])
def test_an_object_is_asked_for_and_another_value_is_refused(content):
    assert parse_object('{"a": [1]}', "here") == {"a": [1]}
    with pytest.raises(JsonError, match="here: not a JSON object but a "):
        parse_object(content, "here")


def test_nan_is_read_where_it_is_asked_for() -> None:
    assert math.isnan(parse_json("[NaN]", "x", nan=True)[0])
    with pytest.raises(JsonError, match="-Infinity is no JSON number"):
        parse_json("[-Infinity]", "x", nan=True)
