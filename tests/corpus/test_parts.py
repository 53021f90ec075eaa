"""Parts that were damaged or edited, byte by byte and column by column: refused by name, mended."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from strace_lens.corpus.batches import batches_of, items_of
from strace_lens.corpus.measure import measure_batch
from strace_lens.corpus.parts import (
    PartError,
    Row,
    merged,
    part_paths,
    read_part,
    schema,
    sealed,
    unsealed,
    write_part,
    wrong_values,
)
from strace_lens.corpus.run_folder import read_run
from strace_lens.corpus.setting import setting_of
from strace_lens.corpus.store import read_manifest
from strace_lens.corpus.sweep import sweep
from strace_lens.model.checks import architecture_of
from tests.corpus.made import model, options, prompts

MUTANTS = 400


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    sweep(model(), prompts(2), folder, options(refine=2))
    return folder


@pytest.fixture
def part(run: Path, tmp_path: Path) -> Path:
    """The only part of a run of which a test may do what it likes."""
    shutil.copytree(run, tmp_path / "run")
    (path,) = part_paths(tmp_path / "run")
    return path


def mutant(data: bytes, number: int) -> bytes:
    """The same bytes with one changed, some cut out, some doubled, or the end cut off."""
    draw = np.random.default_rng(number)
    place, length = int(draw.integers(len(data))), int(draw.integers(1, 200))
    return (
        data[:place] + bytes([data[place] ^ int(draw.integers(1, 256))]) + data[place + 1 :],
        data[:place] + data[place + length :],
        data[: place + length] + data[place:],
        data[:place],
    )[number % 4]


def test_no_byte_of_a_part_can_change_unseen(part: Path) -> None:
    data, manifest = part.read_bytes(), read_manifest(part.parents[1])
    read_part(part, manifest)
    for number in range(MUTANTS):
        part.write_bytes(mutant(data, number))
        with pytest.raises(PartError, match=r"part-00000\.parquet is damaged"):
            read_part(part, manifest)


def test_a_part_that_another_program_wrote_is_refused(part: Path) -> None:
    pd.read_parquet(part).drop(columns="tv").to_parquet(part)
    with pytest.raises(PartError, match=r"part-00000\.parquet is damaged \(it carries no checksum"):
        read_run(part.parents[1])


def changed(part: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Write a part anew with a checksum that holds, as a faulty program of ours would."""
    table = unsealed(part.read_bytes())
    part.write_bytes(sealed(change(table).replace_schema_metadata(table.schema.metadata)))


@pytest.mark.parametrize("column", ["tv", "usage", "label_kind", "trace_head_mass"])
def test_a_part_without_a_column_is_refused(column: str, part: Path) -> None:
    changed(part, lambda table: table.drop_columns(column))
    with pytest.raises(PartError, match=rf"part-00000\.parquet .*it has no column '{column}'"):
        read_run(part.parents[1])


def test_a_part_with_another_type_or_one_column_more_is_refused(part: Path) -> None:
    whole = part.read_bytes()
    changed(part, lambda t: t.set_column(t.column_names.index("tv"), "tv", t["tv"].cast("float32")))
    with pytest.raises(PartError, match="its column 'tv' holds float, not double"):
        read_run(part.parents[1])
    part.write_bytes(whole)
    changed(part, lambda t: t.append_column("tv2", t["tv"]))
    with pytest.raises(PartError, match="it has a column 'tv2' that no part has"):
        read_run(part.parents[1])
    part.write_bytes(whole)
    changed(part, lambda t: t.select(t.column_names[::-1]))
    with pytest.raises(PartError, match="its columns stand in another order"):
        read_run(part.parents[1])


@pytest.mark.parametrize(
    ("column", "row", "value", "said"),
    [
        ("tv", 3, 1.5, "'tv' of prompt 0 is 1.5"),
        ("tv", 3, None, "'tv' of prompt 0 is nan"),
        ("head_error", 8, -0.1, "'head_error' of prompt 1 is -0.1"),
        ("top1", 2, None, "'top1' is missing"),
        ("head_mass", 1, 0.0, "prompt 0 has several values of 'head_mass'"),
        ("text", None, "something else", "prompt 0 has a 'sha256' that is not its text's"),
        ("size", 1, 0.02, "prompt 0 has other sizes than the run"),
        ("refined", 1, None, "'refined' is missing"),
        ("refined", 0, True, "prompt 0 has other sizes than the run"),
        ("edges", 2, 1, "'usage' does not add up to 'edges'"),
        ("usage", 2, [1], "'usage' does not have a count for each of"),
        ("final_state", 0, None, "'final_state' does not have a vector of one width"),
        ("final_state", 0, [1.0], "'final_state' does not have a vector of one width"),
        ("final_state", 0, [float("nan")] * 32, "'final_state' holds a value that is not finite"),
        ("prompt", None, 7, "it has a prompt outside 0 to 1"),
        ("prompt", None, 0, "prompt 0 has other sizes"),
    ],
)
def test_values_that_no_sweep_writes_are_refused(
    column: str, row: int | None, value: object, said: str, part: Path
) -> None:
    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        for place in range(len(values)) if row is None else [row]:
            values[place] = value
        kind = schema(["kind"]).field(column).type
        return table.set_column(table.column_names.index(column), column, pa.array(values, kind))

    changed(part, change)
    with pytest.raises(PartError, match=rf"part-00000\.parquet is damaged \({said}"):
        read_run(part.parents[1])


def test_no_prompt_has_more_sizes_added_than_the_run_may_add(part: Path) -> None:
    manifest = read_manifest(part.parents[1])
    frame = read_part(part, manifest)
    assert wrong_values(frame, manifest) is None
    fewer = {**manifest, "options": {**manifest["options"], "refine": 1}}
    assert wrong_values(frame, fewer) == "prompt 0 has 2 sizes added, of 1 at the most"


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_damaged_column_is_measured_again(place: float, part: Path) -> None:
    whole = part.read_bytes()
    at = int(place * len(whole))
    part.write_bytes(whole[:at] + bytes(40) + whole[at + 40 :])
    sweep(model(), prompts(2), part.parents[1], options(refine=2))
    assert part.read_bytes() == whole


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
