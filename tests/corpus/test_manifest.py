"""A run's manifest edited, in its values and in its bytes: refused by name, or read as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from strace_lens.corpus.manifest import ABOUT, FACTS, open_run, read_manifest
from tests.corpus.test_parts import mutant

MUTANTS = 400


def values(names: tuple[str, ...]) -> dict[str, Any]:
    """A value for each name, as a sweep has them."""
    return {name: {"seed": 0, "sizes": [0.1, 1.0], "about": name} for name in names}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    open_run(tmp_path, values(FACTS), values(ABOUT))
    return tmp_path


@pytest.mark.parametrize("name", [*FACTS, *ABOUT, "id"])
def test_an_edited_value_is_refused(name: str, folder: Path) -> None:
    path = folder / "manifest.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, name: "edited"}))
    with pytest.raises(ValueError, match=r"manifest\.json was edited or damaged \(its id is not"):
        read_manifest(folder)
    path.write_text(json.dumps({key: said[key] for key in said if key != name}))
    with pytest.raises(ValueError, match=rf"manifest\.json does not say '{name}'"):
        read_manifest(folder)
    path.write_text(json.dumps({**said, "more": 1}))
    with pytest.raises(ValueError, match=r"manifest\.json was edited or damaged \(it says 'more'"):
        read_manifest(folder)


def test_every_mutant_is_refused_by_name_or_reads_the_same(folder: Path) -> None:
    path, whole = folder / "manifest.json", read_manifest(folder)
    data = path.read_bytes()
    refused = 0
    for number in range(MUTANTS):
        path.write_bytes(mutant(data, number))
        try:
            found = read_manifest(folder)
        except ValueError as error:
            assert "manifest.json" in str(error)  # noqa: PT017
            refused += 1
        else:
            assert found == whole
    assert refused > MUTANTS / 2
