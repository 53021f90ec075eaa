"""The wheel and the sdist: what is in them, and that the wheel runs from where it is installed."""

from __future__ import annotations

import os
import pkgutil
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import strace_lens as sl
from strace_lens.cli import app

ROOT = Path(__file__).resolve().parent.parent
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def python(*arguments: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_no_public_name_hides_a_folder_of_the_package() -> None:
    folders = {module.name for module in pkgutil.iter_modules(sl.__path__)}
    assert {"traces", "circuits"} <= folders
    assert folders.isdisjoint(sl.__all__)
    assert len(set(sl.__all__)) == len(sl.__all__)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the sdist of this tree, and the wheel built from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    python("-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT), cwd=folder)
    return folder


@pytest.mark.extended
def test_the_wheel_holds_every_module_and_all_data(built) -> None:
    (path,) = built.glob("*.whl")
    assert path.name == f"strace_lens-{VERSION}-py3-none-any.whl"
    names = {n for n in zipfile.ZipFile(path).namelist() if n.startswith("strace_lens/")}
    tracked = {
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / "strace_lens").rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert names == tracked
    assert "strace_lens/py.typed" in names
    licences = [n for n in zipfile.ZipFile(path).namelist() if n.endswith("licenses/LICENSE")]
    assert len(licences) == 1


def test_the_sdist_holds_what_a_packager_needs(built) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {n.partition("/")[2] for n in archive.getnames()}
    assert {
        *("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"),
        *("constraints.txt", "tests/tiny.py", "strace_lens/report/assets/main.js"),
    } <= names


@pytest.mark.extended
def test_the_wheel_runs_from_where_it_is_installed(built, tmp_path) -> None:
    (wheel,) = built.glob("*.whl")
    place = tmp_path / "installed"
    python("-m", "pip", "install", "-q", "--no-deps", "--target", str(place), str(wheel), cwd=built)
    code = """
import json, strace_lens as sl
from importlib.resources import files
from strace_lens.report.page import asset
print(json.dumps([sl.__file__, len(asset("page.html")), len(sl.read_corpus("builtin"))]))
"""
    told = python("-c", code, cwd=tmp_path, PYTHONPATH=str(place))
    assert str(place) in told
    assert told.strip().endswith(", 104]")


def test_the_version_is_said_in_one_place_and_repeated_nowhere_wrongly() -> None:
    assert sl.__version__ == VERSION
    assert CliRunner().invoke(app, ["--version"]).stdout == f"strace-lens {VERSION}\n"
    assert f"\nversion: {VERSION}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^## (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)[0] == VERSION


@pytest.mark.parametrize("command", ["", *sorted(c.name or "" for c in app.registered_commands)])
def test_every_command_and_option_says_what_it_is(command) -> None:
    if command == "":
        assert CliRunner().invoke(app, ["--help"]).exit_code == 0
        return
    from typer.main import get_command

    group: Any = get_command(app)
    _, found, _ = group.resolve_command(typer.Context(group), [command])
    assert "Example: " in found.help or command == "doctor"
    for parameter in found.params:
        assert len(getattr(parameter, "help", "") or "") > 10, parameter.name


@pytest.mark.extended
def test_a_shell_is_offered_names() -> None:
    from strace_lens.cli.options import completing

    complete = completing(["eap", "eap-ig", "acdc"])
    assert complete("eap") == ["eap", "eap-ig"]
    assert complete("acdc,e") == ["acdc,eap", "acdc,eap-ig"]
    assert complete("z") == []
    offered = python(
        *("-c", "from strace_lens.cli import app; app(prog_name='strace-lens')"),
        cwd=ROOT,
        _STRACE_LENS_COMPLETE="complete_bash",
        COMP_WORDS="strace-lens trace --estimator fi",
        COMP_CWORD="3",
    )
    assert offered.split() == ["fisher"]
