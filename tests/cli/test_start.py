"""The package and its command start without what takes long to import."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

import strace_lens as sl
from strace_lens.circuits.metrics import METRICS
from strace_lens.circuits.significance import TESTS
from strace_lens.circuits.tasks.generate import TASKS
from strace_lens.cli import COMMANDS, app
from strace_lens.cli.common import Bar
from strace_lens.ground_truth.models import GROUND_TRUTHS
from strace_lens.measures.sizes import ESTIMATOR_SIZES
from strace_lens.model.load import DTYPES
from strace_lens.traces.importance import IMPORTANCES
from strace_lens.utils import choices
from strace_lens.utils.user_cache import last_seconds

HEAVY = (
    *("torch", "transformers", "transformer_lens", "numba", "numpy", "pandas", "plotly", "scipy"),
    *("networkx", "pyarrow", "datasets"),
)


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


USUAL = {
    "trace": ["a b"],
    "text": ["a b"],
    "compare": ["--task", "ioi"],
    "ablations": ["--task", "ioi"],
    "circuit-test": ["FILE", "--task", "ioi"],
    "sweep": ["FILE", "--dry-run"],
}
"""By command: arguments with which it would begin to work; FILE is one that is there."""

WRONG = {
    "trace": ["--sizes=2", "--memory=0", "--refine=-1", "--against=a", "--prompt-file=FILE"],
    "text": ["--sizes=2", "--memory=0", "--text-file=FILE"],
    "compare": ["--pairs=0", "--memory=0", "--option=x", "--option=nope.x=1", "--prepend-bos"],
    "ablations": ["--pairs=0", "--memory=0", "--prepend-bos", "--ablations=zero"],
    "circuit-test": ["--pairs=0", "--memory=0", "--prepend-bos"],
    "sweep": ["--sizes=2", "--memory=0", "--workers=0", "--words=x"],
}
"""By command: wrong values of options that have no choices."""


def wrong_of_choices(command: str) -> list[str]:
    """A wrong value of each option of a command that completes its choices."""
    group: Any = get_command(app)
    _, found, _ = group.resolve_command(typer.Context(group), [command])
    names = [p.opts[0] for p in found.params if p._custom_shell_complete is not None]
    return [f"{name}=nope" for name in names if name != "--model"]


def said_in_one_interpreter(commands: list[list[str]]) -> list[tuple[int, str, list[str]]]:
    """Status, standard error and heavy modules imported so far after each command in turn."""
    lines = [
        "import json, sys",
        "from typer.testing import CliRunner",
        "from strace_lens.cli import app",
        f"for command in {commands}:",
        "    done = CliRunner().invoke(app, command)",
        f"    heavy = [m for m in {HEAVY} if m in sys.modules]",
        "    print(json.dumps([done.exit_code, done.stderr, heavy]))",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_help_is_printed_without_anything_heavy() -> None:
    found = said_in_one_interpreter([[name, "--help"] for name in COMMANDS])
    assert dict(zip(COMMANDS, found, strict=True)) == {name: (0, "", []) for name in COMMANDS}


def test_wrong_arguments_are_refused_without_anything_heavy(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a b"}')
    commands = [[name, "--nope"] for name in COMMANDS]
    for name, usual in USUAL.items():
        commands += [[name, *usual, wrong] for wrong in (*wrong_of_choices(name), *WRONG[name])]
    commands = [[part.replace("FILE", str(file)) for part in command] for command in commands]
    commands.append(["report", str(tmp_path)])
    assert len(commands) > 50
    for command, (status, said, heavy) in zip(
        commands, said_in_one_interpreter(commands), strict=True
    ):
        assert (status, heavy) == (2, []), (command, said)
        assert said, command


def test_the_names_of_every_registry_are_those_of_the_choices() -> None:
    registries = {
        choices.DTYPES: DTYPES,
        choices.ESTIMATORS: sl.ESTIMATORS,
        choices.IMPORTANCES: IMPORTANCES,
        choices.TASKS: TASKS,
        choices.GROUND_TRUTHS: GROUND_TRUTHS,
        choices.METRICS: METRICS,
        choices.METHODS: sl.METHODS,
        choices.TESTS: TESTS,
    }
    for names, registry in registries.items():
        assert names == tuple(registry)
    assert len(ESTIMATOR_SIZES) == choices.ESTIMATOR_SIZE_COUNT


def test_methods_that_the_user_registered_are_known_to_the_commands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ask = ["compare", "--task", "linear", "--dry-run", "--json", "--methods"]
    assert CliRunner().invoke(app, [*ask, "mine"]).exit_code == 2
    monkeypatch.setitem(sl.METHODS, "mine", sl.METHODS["eap"])
    for names in ("mine", "all"):
        told = json.loads(CliRunner().invoke(app, [*ask, names]).stdout)
        assert "mine" in [plan["method"] for plan in told["methods"]]


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
    """What `strace-lens doctor` writes to standard error, in a terminal or a pipe."""
    code = "from strace_lens.cli import app; app(['doctor'])"
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
    assert "importing PyTorch and TransformerLens (" in said
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
    assert "loaded a-model in 0.0 s; its outputs match those of transformers" in err
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
