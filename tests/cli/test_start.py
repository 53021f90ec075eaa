"""The package and its command start without what takes long to import."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import strace_lens as sl
from strace_lens.cli import COMMANDS

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
