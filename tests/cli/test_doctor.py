"""What the doctor finds on this machine, compared with what is installed here."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from strace_lens.cli import app, doctor
from strace_lens.model.load import ModelNotFoundError, load_model
from strace_lens.utils.versions import versions
from tests import gguf_files


def test_versions_and_optional_packages_are_those_of_this_environment() -> None:
    found = doctor.examine()
    assert found["versions"].items() >= versions().items()
    assert found["versions"]["torch"] == version("torch")
    assert found["optional"]["ray"] == version("ray")
    assert "threads" in found["devices"]["cpu"]


def test_what_is_missing_comes_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise ModelNotFoundError("not installed; bring it with: pip install it")

    monkeypatch.setattr("strace_lens.model.load.locate", missing)
    monkeypatch.setattr(doctor, "OPTIONAL", {"no-such-package": "pip install 'strace-lens[ray]'"})
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    assert "not installed; bring it with: pip install it" in result.stdout
    assert "not installed (pip install 'strace-lens[ray]')" in result.stdout


def test_the_hub_is_said_to_be_off_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "only cached models load" in doctor.examine()["models"]["Hugging Face hub"]
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert doctor.examine()["models"]["Hugging Face hub"] == "not blocked"


def test_the_cache_is_told_and_whether_the_default_model_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told() -> str:
        return doctor.examine()["models"]["cache"]

    folder = tmp_path / "models"
    default = gguf_files.write_llama(tmp_path / "default.gguf")
    monkeypatch.setattr(
        "strace_lens.model.load.locate", lambda *_: ("default", str(tmp_path), default.name)
    )
    monkeypatch.setenv("STRACE_LENS_CACHE", str(folder))
    assert told() == f"{folder} (smollm2 is not in it)"
    load_model(default, device="cpu")
    assert told() == f"{folder} (smollm2 is in it)"
    shutil.rmtree(folder)
    assert told() == f"{folder} (smollm2 is not in it)"
    monkeypatch.setenv("STRACE_LENS_CACHE", "off")
    assert told() == "off (STRACE_LENS_CACHE is 'off')"
    monkeypatch.setenv("STRACE_LENS_CACHE", "~no-such-user")
    assert told().startswith("none: ")


def test_the_command_prints_lines_or_one_object() -> None:
    found = doctor.examine()
    printed = CliRunner().invoke(app, ["doctor"]).stdout
    for title, lines in found.items():
        assert f"{title}\n" in printed
        assert all(f"  {name:<18}{detail}\n" in printed for name, detail in lines.items())
    assert json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout) == found
