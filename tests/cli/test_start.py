"""The package and its command start without what takes long to import."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import strace_lens as sl
from strace_lens.cli import COMMANDS
from strace_lens.cli.common import Bar
from strace_lens.utils.user_cache import last_seconds

HEAVY = ("torch", "transformers", "transformer_lens", "numba", "numpy", "pandas", "plotly", "scipy")


def imported(*arguments: str) -> list[str]:
    """Which of the heavy modules a new interpreter has imported at its end."""
    lines = [
        "import atexit, sys",
        f"atexit.register(lambda: print([m for m in {HEAVY} if m in sys.modules]))",
        *arguments,
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    return eval(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "arguments",
    [
        ["import strace_lens"],
        ["import strace_lens as sl", "dir(sl)", "sl.__version__"],
        ["from strace_lens.cli import app", "app(['--help'])"],
        ["from strace_lens.cli import app", "app(['--version'])"],
    ],
)
def test_nothing_heavy_is_imported(arguments: list[str]) -> None:
    assert imported(*arguments) == []


def test_the_commands_of_a_shell_are_completed_without_anything_heavy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    complete = [
        "import os",
        "os.environ |= {'_STRACE_LENS_COMPLETE': 'complete_bash', 'COMP_WORDS': 'strace-lens tr',"
        " 'COMP_CWORD': '1'}",
        "from strace_lens.cli import app",
        "app(prog_name='strace-lens')",
    ]
    assert imported(*complete) == []


def test_every_public_name_is_found_where_the_stub_says() -> None:
    assert len(sl.__all__) > 40
    for name in sl.__all__:
        assert getattr(sl, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        sl.no_such_name  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_each_says_itself(name: str) -> None:
    place = name.replace("-", "_")
    command = getattr(importlib.import_module(f"strace_lens.cli.{place}"), f"{place}_command")
    first = command.__doc__.strip().split("\n\n")[0]
    assert COMMANDS[name] == " ".join(first.split())


def said_while_importing(terminal: bool, cache: Path) -> str:
    """What `strace-lens doctor --help` writes to standard error, in a terminal or a pipe."""
    code = "from strace_lens.cli import app; app(['doctor', '--help'])"
    reader, writer = os.openpty() if terminal else os.pipe()
    environment = {**os.environ, "STRACE_LENS_CACHE": str(cache), "TERM": "xterm"}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=writer, env=environment
    ) as process:
        os.close(writer)
        text = b""
        try:
            while read := os.read(reader, 4096):
                text += read
        except OSError:  # the other end of a terminal is gone
            pass
        os.close(reader)
    assert process.returncode == 0
    return text.decode()


@pytest.mark.extended
def test_a_terminal_is_told_of_the_imports_and_a_pipe_is_not(tmp_path: Path) -> None:
    assert said_while_importing(terminal=False, cache=tmp_path) == ""
    said = said_while_importing(terminal=True, cache=tmp_path)
    assert said.startswith("importing PyTorch and TransformerLens (")
    assert " s last time)" in said  # the first run took its time
    assert said.endswith("\x1b[1A\x1b[2K")  # and nothing of it stays


def test_a_model_that_is_loaded_is_announced_in_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STRACE_LENS_CACHE", str(tmp_path))
    with Bar() as bar, bar.loading("a-model", "float32", None):
        assert bar.tasks[-1].description == "loading a-model (for the first time here)"
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")  # taken for a terminal
    with Bar() as bar, bar.loading("a-model", "float32", None):
        assert bar.tasks[-1].description == "loading a-model (0.0 s last time)"
    out, err = capsys.readouterr()
    assert out == ""
    assert "loaded a-model in 0.0 s; it computes what transformers does" in err
    with Bar() as bar, bar.loading("a-model", "bfloat16", None):
        assert "for the first time" in bar.tasks[-1].description


def test_a_model_that_does_not_load_is_not_announced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STRACE_LENS_CACHE", str(tmp_path))
    monkeypatch.setenv("FORCE_COLOR", "1")
    with pytest.raises(ValueError, match="no such model"), Bar() as bar, bar.loading("a-model"):
        raise ValueError("no such model")
    assert "loaded" not in capsys.readouterr().err
    assert last_seconds("load a-model") is None
