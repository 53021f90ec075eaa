"""Every command tries the place of its results before it loads a model or does any work."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from strace_lens.cli import app

COMMANDS = {
    "trace": (["trace", "the capital of France"], "model.load.load_model"),
    "compare": (["compare", "--task", "ioi"], "cli.tasks.task_on_model"),
    "sweep": (["sweep", "PROMPTS"], "model.load.load_model"),
    "phases": (["phases", "RUN"], "corpus.run_folder.read_run"),
    "report": (["report", "CURVE"], "files.results.load"),
}
"""By name: its arguments without --out, and what it must not have come to."""


class WorkBegan(Exception):
    """The command came to its work though its results had no place."""


@pytest.fixture(params=COMMANDS)
def command(request, tmp_path: Path, monkeypatch) -> list[str]:
    """The arguments of a command that would work, and would raise WorkBegan when it began to."""
    arguments, work = COMMANDS[request.param]

    def begin(*_: object, **__: object) -> None:
        raise WorkBegan

    module, verb = f"strace_lens.{work}".rsplit(".", 1)
    monkeypatch.setattr(importlib.import_module(module), verb, begin)
    lines = [json.dumps({"prompt": prompt}) for prompt in ("a b c", "d e f")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    (tmp_path / "run").mkdir()
    paths = {"PROMPTS": "prompts.jsonl", "RUN": "run", "CURVE": "curve.safetensors"}
    return [str(tmp_path / paths[a]) if a in paths else a for a in arguments]


def begun(command: list[str], out: Path) -> tuple[bool, str]:
    """Whether the work began, and the one line that says why it did not."""
    place = out / "explorer.html" if command[0] == "report" else out
    result = CliRunner().invoke(app, [*command, "--out", str(place)])
    if isinstance(result.exception, WorkBegan):
        return True, ""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return False, line


def test_the_work_begins_where_the_results_have_a_place(command, tmp_path):
    assert begun(command, tmp_path / "made" / "on the way") == (True, "")
    assert not (tmp_path / "made").exists()  # nothing came of it


def test_a_file_in_the_way_ends_it_at_once(command, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        began, line = begun(command, out)
        assert not began
        assert f"cannot write to the folder {out}: {tmp_path / 'file'} is a file" in line


def test_a_folder_that_cannot_be_written_ends_it_at_once(command, tmp_path):
    folder = tmp_path / "read-only"
    if os.geteuid() == 0:  # root may write everywhere but into the kernel's own folders
        folder = Path("/proc/self/fdinfo")
    else:
        folder.mkdir(mode=0o555)
    began, line = begun(command, folder)
    assert not began
    assert f"cannot write to the folder {folder}: " in line


def test_what_is_in_the_way_of_a_file_or_folder_within_ends_it_at_once(command, tmp_path):
    for page in ("trace", "compare", "phases", "explorer"):
        (tmp_path / "out" / f"{page}.html").mkdir(parents=True)
    (tmp_path / "out" / "parts").touch()
    began, line = begun(command, tmp_path / "out")
    assert not began
    said = "parts is a file" if command[0] == "sweep" else ".html: there is a folder named so"
    assert line.endswith(said)
