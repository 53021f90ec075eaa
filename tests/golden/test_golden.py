"""The quick parts of the golden tables; `python tests/golden/golden.py` compares them all."""

from __future__ import annotations

import pytest

from tests.golden import golden


@pytest.mark.extended
@pytest.mark.parametrize("name", ["tiny-ranks", "compare-tiny"])
def test_what_was_kept_still_comes_out(name):
    assert golden.check(name) == []


def test_a_difference_is_found_and_named():
    kept = {"a": [1.0, 2.0], "b": "x", "c": True}
    now = {"a": [1.0, 2.1], "b": "y", "d": True}
    assert list(golden.differences(kept, now, "t")) == [
        "t.a[1]: 2.0 was kept, 2.1 is new",
        "t.b: 'x' was kept, 'y' is new",
        "t.c: only in what is kept",
        "t.d: only in what is new",
    ]
