"""The folder of a run: its manifest edited and refused by name; one writer at a time."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from strace_lens.corpus.run_folder import (
    KIND,
    LockedRunError,
    only_writer,
    open_run,
    read_manifest,
)
from strace_lens.corpus.sweep import sweep
from strace_lens.utils.manifest import OtherResultsError
from tests.corpus.made import model, options, prompts
from tests.corpus.test_parts import mutant

MUTANTS = 400


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    open_run(tmp_path, {n: {"seed": 0, "sizes": [0.1, 1.0], "about": n} for n in KIND.values})
    return tmp_path


@pytest.mark.parametrize("name", [*KIND.values, "id"])
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


def test_another_run_is_refused_by_the_first_difference(folder: Path) -> None:
    said = {name: read_manifest(folder)[name] for name in KIND.values}
    assert open_run(folder, said) == read_manifest(folder)
    for changed, difference in (
        ({"options": {**said["options"], "seed": 1}}, "seed was 0 and is 1"),
        ({"head": 0.5}, "head was {'seed': 0, .*} and is 0.5"),
        ({"prompts": ["a"]}, "its prompts are others"),
    ):
        with pytest.raises(OtherResultsError, match=f"another run: {difference}; name another"):
            open_run(folder, {**said, **changed})


@pytest.mark.extended
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


def hold(folder: Path, told: Connection) -> None:
    with only_writer(folder):
        told.send(os.getpid())
        told.recv()  # until it is killed


def test_a_second_writer_is_told_of_the_first_and_a_kill_frees_the_folder(tmp_path: Path) -> None:
    sweep(model(), prompts(2), tmp_path, options())
    parent, child = multiprocessing.get_context("fork").Pipe()
    other = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path, child))
    other.start()
    pid = parent.recv()
    fresh = tmp_path / "parts" / f".strace-lens-00000000-{pid}-00000000.tmp"
    fresh.write_bytes(b"the first writer's")
    said = rf"process {pid} on {platform.node()}, since 20.*wait for it or stop it"
    with pytest.raises(LockedRunError, match=said):
        sweep(model(), prompts(2), tmp_path, options())
    assert fresh.exists()
    os.kill(pid, signal.SIGKILL)
    other.join()
    assert len(sweep(model(), prompts(2), tmp_path, options()).prompts) == 2


def test_the_folder_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), only_writer(tmp_path):
        raise KeyError("some error of a sweep")
    with only_writer(tmp_path), pytest.raises(LockedRunError), only_writer(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] in ([".sweep.lock"], [])
