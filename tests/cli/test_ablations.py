"""`strace-lens ablations`: what it prints and writes is what the verb finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from typer.testing import CliRunner

from strace_lens.cli import app
from strace_lens.comparison.ablations import across_ablations
from strace_lens.ground_truth.models import ground_truth

COMMAND = [
    *("ablations", "--task", "linear", "--methods", "eap,random", "--pairs", "4"),
    *("--ablations", "resample,zero"),
]


def run(*more: str) -> Any:
    result = CliRunner().invoke(app, [*COMMAND, *more])
    assert result.exit_code == 0, result.output
    return result


def test_the_table_is_printed_and_written(tmp_path: Path) -> None:
    file = tmp_path / "new" / "ablations.csv"
    said = run("--out", str(file)).stdout
    known = ground_truth("linear", seed=0, pairs=8)
    truth = across_ablations(
        known.model, known.task, ["eap", "random"], ablations=("resample", "zero")
    )
    pd.testing.assert_frame_equal(pd.read_csv(file), truth, rtol=1e-4)
    cmd = truth.set_index(["method", "found", "evaluated"])["cmd"]
    rows = {tuple(line.split()[:2]): line.split()[2:] for line in said.splitlines()}
    assert rows["eap", "zero"] == [f"{cmd['eap', 'zero', at]:.4g}" for at in ("resample", "zero")]
    assert "the methods in the order of their CMD under resample and under zero" in said
    assert f"wrote {file}" in said


def test_json_holds_every_row() -> None:
    found = json.loads(run("--json").stdout)
    assert (found["task"], len(found["rows"])) == ("linear", 12)
    assert {row["method"] for row in found["rows"]} == {"eap", "random", "all methods"}
