"""`strace-lens circuit-test` on a tiny model: its table is that of the verb."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

import strace_lens as sl
from strace_lens.circuits.scores import Scores
from strace_lens.cli import app
from strace_lens.files.interchange import save_importances
from tests.cli.test_compare import folder, pairs

__all__ = ["folder", "pairs"]  # fixtures

FAST = ["--tests", "equivalence,non-independence"]


@pytest.fixture(scope="module")
def model(folder: str) -> Any:
    return sl.load_model(folder)


@pytest.fixture(scope="module")
def scores(model: Any) -> Scores:
    graph = sl.component_graph(model)
    values = torch.randn(graph.exists.shape, generator=torch.Generator().manual_seed(0))
    return Scores(graph, values * graph.exists, "drawn")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["circuit-test", *map(str, arguments)])


def test_every_kind_of_file_gives_the_tests_of_the_verb(folder, pairs, model, scores, tmp_path):
    circuit, size = scores.top(0.3), len(scores.top(0.3))
    sl.save(circuit, tmp_path / "circuit.safetensors")
    sl.save(scores, tmp_path / "scores.safetensors")
    save_importances(circuit, tmp_path / "circuit.json")
    save_importances(scores, tmp_path / "scores.json")
    wanted = sl.circuit_tests(
        model,
        sl.read_task(model, pairs).sample(None, 1),
        circuit,
        tests=["equivalence", "non-independence"],
        seed=1,
    )
    files = [("circuit", []), ("scores", ["--edges", "0.3"]), ("scores", ["--edges", str(size)])]
    for name, options in files:
        for suffix in ("safetensors", "json"):
            file = tmp_path / f"{name}.{suffix}"
            result = run(file, "--task", pairs, "--model", folder, *FAST, *options, "--json")
            assert result.exit_code == 0, result.output
            found = json.loads(result.stdout)
            assert (found["edges"], found["pairs"], found["task"]) == (size, 5, "cities")
            assert [t["test"] for t in found["tests"]] == list(wanted["test"])
            for test, (_, row) in zip(found["tests"], wanted.iterrows(), strict=True):
                assert test["p_value"] == pytest.approx(row["p_value"], abs=1e-6)
                assert test["verdict"] == row["verdict"]


def test_the_table_names_the_circuit_and_each_test(folder, pairs, scores, tmp_path):
    file = tmp_path / "circuit.safetensors"
    sl.save(scores.top(10), file)
    result = run(file, "--task", pairs, "--model", folder, *FAST)
    assert result.exit_code == 0, result.output
    assert "10 of" in result.stdout
    assert "on 5 pairs of cities" in result.stdout
    for word in ("equivalence", "non-independence", "p value", "verdict"):
        assert word in result.stdout


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("scores", [], "give the size of the circuit, such as --edges 500 or --edges 0.02"),
        ("scores", ["--edges", "many"], "takes a number of edges or a fraction of them"),
        ("scores", ["--edges", "1.5"], "1.5"),
        ("circuit", ["--edges", "3"], "is a circuit of 10 edges: leave out --edges"),
        ("circuit", ["--tests", "beauty"], "unknown test 'beauty'; choose from sufficiency"),
        ("circuit", ["--draws", "5"], "give at least 19"),
        ("none", [], "there is no file"),
    ],
)
def test_what_cannot_be_tested_is_refused_in_a_line(
    folder, pairs, scores, tmp_path, name, options, said
):
    sl.save(scores, tmp_path / "scores.safetensors")
    sl.save(scores.top(10), tmp_path / "circuit.safetensors")
    file = tmp_path / f"{name}.safetensors"
    result = run(file, "--task", pairs, "--model", folder, *options)
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.stderr.split())
    assert len(result.stderr.splitlines()) == 1
