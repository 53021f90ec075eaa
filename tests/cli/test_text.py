"""`strace-lens text` on a tiny model: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from strace_lens.cli import app
from strace_lens.density.along_text import text_density
from tests import tiny

TEXT = "the capital of France is Paris , the king of Japan"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "tiny-llama"
    tiny.hf_model("llama").save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return str(path)


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["text", *map(str, arguments)])


@pytest.mark.extended
def test_page_and_table_are_those_of_the_verb(model: str, tmp_path: Path) -> None:
    result = run(TEXT, "--model", model, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    truth = text_density(tiny.bridge("llama"), TEXT)
    written = pd.read_csv(tmp_path / "text.csv")
    for column in ("density", "entropy", "probability"):
        assert written[column].tolist() == pytest.approx(truth[column].tolist(), nan_ok=True)
    told = [json.loads(cell) for cell in written["alternatives"]]
    for cell, row in zip(told, truth["alternatives"], strict=True):
        assert [token for token, _, _ in cell] == [one.token for one in row]
    assert f"tiny-llama: 9 of 11 tokens measured, mean density {truth['density'].mean():.3f}" in (
        result.stdout
    )
    least = truth.loc[truth["density"].idxmin(), "token"]
    assert f'lowest: "{least}" {truth["density"].min():.3f}' in result.stdout
    page = (tmp_path / "text.html").read_text()
    assert page.count('class="token"') == 9
    assert "tiny-llama" in page


@pytest.mark.extended
def test_edges_can_be_kept(model: str, tmp_path: Path) -> None:
    result = run(TEXT, "--model", model, "--keep", "attention", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    truth = text_density(tiny.bridge("llama"), TEXT, keep=("attention",))
    written = pd.read_csv(tmp_path / "text.csv")["density"]
    assert written.tolist() == pytest.approx(truth["density"].tolist(), nan_ok=True)
    assert "greedy, edges of attention left in place" in (tmp_path / "text.html").read_text()


@pytest.mark.extended
def test_json_is_one_object_and_a_file_can_hold_the_text(model: str, tmp_path: Path) -> None:
    (tmp_path / "given.txt").write_text(TEXT)
    out = tmp_path / "out"
    result = run("--text-file", tmp_path / "given.txt", "--model", model, "--out", out, "--json")
    said = json.loads(result.stdout)
    assert (said["tokens"], said["measured"]) == (11, 9)
    assert Path(said["page"]).is_file()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "give either a text or --text-file, one of the two"),
        (["the of", "--small", 0.5], "small must be one of the sizes; got 0.5"),
        (["the of"], "the text has 2 tokens, and the first to be measured is number 3"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    given: list[Any], said: str, model: str, tmp_path: Path
) -> None:
    result = run(*given, "--model", model, "--out", tmp_path)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
