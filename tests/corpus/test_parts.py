"""Parts that were damaged, byte by byte or in a column: refused by name, and mended."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from strace_lens.corpus.batches import batches_of, items_of
from strace_lens.corpus.measure import measure_batch
from strace_lens.corpus.parts import (
    PartError,
    Row,
    part_paths,
    read_part,
    sealed,
    unsealed,
    write_part,
)
from strace_lens.corpus.run_folder import read_manifest, read_run
from strace_lens.corpus.setting import setting_of
from strace_lens.corpus.sweep import sweep
from strace_lens.model.checks import architecture_of
from tests.corpus.made import model, options, prompts

MUTANTS = 400
MANIFEST: dict[str, Any] = {"id": "run", "labels": ["kind"], "options": {"corrupt": "none"}}


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


@pytest.mark.extended
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


@pytest.mark.parametrize(
    ("change", "odd"),
    [
        *(
            (lambda t, name=name: t.drop_columns(name), f"\\['{name}'\\]")
            for name in ("tv", "usage")
        ),
        (lambda t: t.drop_columns("label_kind"), r"\['label_kind'\]"),
        (lambda t: t.append_column("tv2", t["tv"]), r"\['tv2'\]"),
        (lambda t: t.set_column(1, "prompt", t["prompt"].cast("int32")), r"\['prompt'\]"),
    ],
)
def test_a_part_of_other_columns_is_refused(
    change: Callable[[pa.Table], pa.Table], odd: str, part: Path
) -> None:
    changed(part, change)
    said = rf"part-00000\.parquet is damaged \(its columns are not those of a part: {odd}\)"
    with pytest.raises(PartError, match=said):
        read_run(part.parents[1])


@pytest.mark.extended
@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_damaged_column_is_measured_again(place: float, part: Path) -> None:
    whole = part.read_bytes()
    at = int(place * len(whole))
    part.write_bytes(whole[:at] + bytes(40) + whole[at + 40 :])
    sweep(model(), prompts(2), part.parents[1], options(refine=2))
    assert part.read_bytes() == whole


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    architecture = architecture_of(model())
    items = items_of(model(), architecture, prompts(1), options())
    (batch,) = batches_of(architecture, items, options().on(torch.device("cpu")))
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
        write_part(path, [rows[0], wrong], MANIFEST, [0])
    assert not path.exists()
    write_part(path, rows, MANIFEST, [0])
    assert path.exists()
