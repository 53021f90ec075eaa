"""`strace-lens phases` on a tiny model's sweeps: tables, CSV files, a page; and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from strace_lens.cli import app
from strace_lens.corpus.analyses.all import ANALYSES
from strace_lens.corpus.run_folder import read_run
from strace_lens.corpus.sweep import sweep
from tests import tiny
from tests.corpus.made import model, options, prompts


def phases(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["phases", *map(str, arguments)])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("strace_lens.corpus.batches.MOST_PROMPTS", 3)
        sweep(model(), prompts(8), folder, options())
    return folder


@pytest.mark.extended
def test_a_run_becomes_tables_and_a_page(run: Path, tmp_path: Path) -> None:
    result = phases(run, "--out", tmp_path / "one")
    assert result.exit_code == 0, result.output
    assert "Phase boundaries of the mean curve" in result.stdout
    assert result.stdout.startswith("The paper's claims")
    assert f"wrote phases.html and {len(ANALYSES) + 1} CSV tables" in result.stdout
    for name in (*ANALYSES, "claims"):
        assert (tmp_path / "one" / f"{name}.csv").is_file()
    curves = pd.read_csv(tmp_path / "one" / "mean_curves.csv")
    lines = {"trace", "inverse", "random", "random_inverse", "head", "tail"}
    assert set(curves["curve"]) == lines
    page = (tmp_path / "one" / "phases.html").read_text()
    assert "Phases over many prompts: first" in page
    assert 'id="figure-mean-curves"' in page
    assert 'id="figure-geometry"' in page
    assert "With 8 prompts they are rough" in page
    assert "No prompt was grown" in page
    again = phases(run, "--out", tmp_path / "two", "--json")
    said = json.loads(again.stdout)
    assert said["corpus_boundaries"]
    table = pd.read_csv(tmp_path / "one" / "claims.csv", keep_default_na=False)
    assert [row["verdict"] for row in said["claims"]] == table["verdict"].tolist()
    assert table["keep"].eq("none").all()
    assert (tmp_path / "two" / "claims.csv").read_bytes() == (
        tmp_path / "one" / "claims.csv"
    ).read_bytes()
    assert (tmp_path / "two" / "phases.html").read_text() == page


@pytest.mark.extended
def test_several_models_side_by_side(run: Path, tmp_path: Path) -> None:
    sweep(tiny.bridge("gpt2"), prompts(8), tmp_path / "second", options(hidden=False))
    result = phases(run, tmp_path / "second", "--out", tmp_path / "both")
    assert result.exit_code == 0, result.output
    between = pd.read_csv(tmp_path / "both" / "between_runs.csv")
    assert set(between["a"]) == {"first", "second"}
    assert between["prompts"].eq(8).all()
    page = (tmp_path / "both" / "phases.html").read_text()
    assert 'id="figure-between-runs"' in page


@pytest.mark.extended
def test_one_prompt_has_no_interval_and_the_page_says_so(tmp_path: Path) -> None:
    sweep(model(), prompts(1), tmp_path / "run", options())
    result = phases(tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "run has a single prompt: there are no intervals" in result.stdout
    assert "A single prompt gives no interval" in (tmp_path / "run" / "phases.html").read_text()
    assert (tmp_path / "run" / "mean_curves.csv").is_file()


@pytest.mark.extended
def test_a_sweep_that_was_stopped_is_analysed_as_far_as_it_came(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "stopped"
    shutil.copytree(run, copy)
    sorted((copy / "parts").glob("*.parquet"))[-1].unlink()
    left = len(read_run(copy).prompts)
    assert left < 8
    result = phases(copy, "--out", tmp_path / "out")
    assert f"stopped is unfinished: {8 - left} prompts are not done" in result.stdout
    assert f"{8 - left} prompts are not done" in (tmp_path / "out" / "phases.html").read_text()


@pytest.mark.extended
def test_grown_prompts_show_their_growth(tmp_path: Path) -> None:
    sweep(model(), prompts(2), tmp_path / "run", options(generate=2))
    assert phases(tmp_path / "run").exit_code == 0
    assert 'id="figure-growth"' in (tmp_path / "run" / "phases.html").read_text()
    labels = pd.read_csv(tmp_path / "run" / "density_by_label.csv")["label"]
    assert set(labels) == {"kind"}  # neither the text grown from nor the step


def test_a_folder_that_is_no_run_is_one_line(tmp_path: Path) -> None:
    result = phases(tmp_path)
    assert result.exit_code == 2
    assert "holds no run: there is no manifest.json" in result.stderr
    assert result.stderr.count("\n") == 1
