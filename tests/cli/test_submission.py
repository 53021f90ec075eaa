"""`strace-lens compare --format mib` on a tiny linear model: what it writes beside its results."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import strace_lens as sl
import strace_lens.comparison.compare  # found among the loaded modules below
from strace_lens.cli import app
from strace_lens.files.submission import load_submission

LINEAR = ("--task", "linear", "--methods", "eap,attribution-patching", "--pairs", "3")


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules["strace_lens.comparison.compare"], "_DRAWS", 2)


def compare(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["compare", *LINEAR, *arguments])


def test_each_method_asked_for_gets_a_folder_that_reads_back(tmp_path: Path) -> None:
    result = compare("--format", "mib", "--out", "made", "--json")
    assert result.exit_code == 0, result.output
    entries = [Path(entry) for entry in json.loads(result.stdout)["submission"]]
    names = ["made/eap_patching_edge/linear_linear", "made/attribution-patching_patching_node"]
    assert [e.as_posix() for e in entries] == [names[0], f"{names[1]}/linear_linear"]
    assert "note: linear_linear is no task and model of the MIB leaderboard" in result.stderr
    for entry, method in zip(entries, ("eap", "attribution-patching"), strict=True):
        scores = sl.load(f"out/compare/linear/scores/{method}.safetensors", sl.Scores)
        read = load_submission(tmp_path / entry, scores.graph)
        assert isinstance(read, sl.Scores)
        assert torch.allclose(read.values, scores.values.double() * scores.graph.exists)
    again = compare("--format", "mib", "--out", "made")
    assert again.exit_code == 2
    assert "linear_linear is there already; name another folder" in again.stderr


def test_an_unknown_format_is_refused_in_a_line() -> None:
    result = compare("--format", "pdf")
    assert result.exit_code == 2
    assert "unknown format 'pdf'; choose from page, mib" in result.stderr.splitlines()[-1]
