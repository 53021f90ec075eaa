"""What the doctor finds on this machine, held against what is installed here."""

from __future__ import annotations

import json
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from strace_lens.cli import app
from strace_lens.report import doctor

ROOT = Path(__file__).resolve().parents[2]


def found() -> dict[str, doctor.Finding]:
    return {f.name: f for f in doctor.examine()}


def test_every_declared_package_is_looked_for_and_told_by_its_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in project["dependencies"]:
        finding = found()[Requirement(text).name]
        assert finding.found
        assert finding.needed
        assert finding.detail == version(finding.name)
        assert finding.remedy == ""


def test_the_extras_say_what_is_missing_of_them() -> None:
    for extra, names in (("ray", ["ray"]), ("tracr", ["tracr-pypi"])):
        finding = found()[extra]
        assert finding.found
        assert all(name in finding.detail for name in names)
        assert not finding.needed


@pytest.mark.parametrize(
    ("requirement", "detail"),
    [
        ("numpy>=1000", f"{version('numpy')} is not >=1000"),
        ("no-such-package-anywhere>=1", "not installed"),
    ],
)
def test_what_is_missing_or_out_of_range_comes_with_a_remedy(requirement, detail) -> None:
    finding = doctor._package(Requirement(requirement), doctor.PACKAGE, needed=True)
    assert (finding.found, finding.detail) == (False, detail)
    assert finding.remedy == f"pip install '{requirement}'"
    assert doctor.summary_line([finding]) == f"not ready: {finding.name} {detail}"


def test_the_hub_is_said_to_be_off_where_it_is(monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not found()["Hugging Face hub"].found
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert found()["Hugging Face hub"].found


def test_the_command_prints_a_table_or_one_object() -> None:
    table = CliRunner().invoke(app, ["doctor"])
    assert table.exit_code == 0, table.output
    assert "transformer-lens" in table.stdout
    assert table.stdout.splitlines()[-1].startswith("ready")
    object_ = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert {f["kind"] for f in object_["findings"]} == {"package", "device", "model", "optional"}
    assert [f["name"] for f in object_["findings"]] == [f.name for f in doctor.examine()]


def test_an_extra_is_named_in_its_brackets(monkeypatch) -> None:
    remedy = "pip install 'strace-lens[ray]'"
    missing = [doctor.Finding(doctor.OPTIONAL, "ray", False, "not installed", remedy)]
    monkeypatch.setattr("strace_lens.cli.doctor.examine", lambda: missing)
    assert remedy in CliRunner().invoke(app, ["doctor"]).stdout


def test_a_missing_needed_package_ends_in_status_1(monkeypatch) -> None:
    broken = [doctor.Finding(doctor.PACKAGE, "torch", False, "not installed", needed=True)]
    monkeypatch.setattr("strace_lens.cli.doctor.examine", lambda: broken)
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert "not ready: torch not installed" in done.stdout
