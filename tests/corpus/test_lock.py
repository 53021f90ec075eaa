"""One writer at a time: the second is told who holds the folder, and a kill lets go of it."""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from strace_lens.corpus.lock import LockedRunError, only_writer
from strace_lens.corpus.sweep import sweep
from tests.corpus.made import model, options, prompts


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
