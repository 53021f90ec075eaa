"""Rows that no value is lost from: a name that comes twice, a column too many or too few."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from strace_lens.corpus.batches import batches_of, items_of
from strace_lens.corpus.measure import measure_batch
from strace_lens.corpus.parts import write_part
from strace_lens.corpus.rows import Row, merged
from strace_lens.corpus.setting import setting_of
from strace_lens.model.checks import architecture_of
from tests.corpus.made import model, options, prompts


def test_a_name_that_comes_twice_is_refused() -> None:
    assert merged({"a": 1}, {}, {"b": "x"}) == {"a": 1, "b": "x"}
    with pytest.raises(ValueError, match="a row has two values for 'head_mass'; rename one"):
        merged({"head_mass": 0.7}, {"tv": 0.1}, {"head_mass": 0.2})


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    architecture = architecture_of(model())
    items = items_of(model(), architecture, prompts(1), options())
    (batch,) = batches_of(architecture, items, options())
    tokens = [item.prompt for item in items if item.prompt is not None]
    return measure_batch(model(), setting_of(model(), architecture, tokens, options(), ""), batch)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tvv": 0.5}, "a part has no column 'tvv'"),
        ({"head_mass": None}, "a measured row has no 'head_mass'"),
    ],
)
def test_a_row_of_other_columns_than_a_part_has_is_refused(
    changed: dict[str, Any], said: str, rows: list[Row], tmp_path: Path
) -> None:
    wrong = {**rows[1], **changed}
    wrong = {name: value for name, value in wrong.items() if changed.get(name, "") is not None}
    path = tmp_path / "part-00000.parquet"
    with pytest.raises(ValueError, match=said):
        write_part(path, [rows[0], wrong], ["kind"], "run", [0])
    assert not path.exists()
    write_part(path, rows, ["kind"], "run", [0])
    assert path.exists()
