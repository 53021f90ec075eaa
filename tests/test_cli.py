"""The command line on a tiny model in a local folder: what it prints, writes and refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import strace_lens as sl
from strace_lens.cli import app
from tests import tiny

PROMPT = " ".join(tiny.WORDS[:9])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Llama as transformers saves it."""
    path = tmp_path_factory.mktemp("model") / "tiny-llama"
    tiny.hf_model("llama").save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return str(path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["trace", *arguments])


@pytest.fixture(scope="module")
def json_run(folder, tmp_path_factory) -> tuple[dict, Path]:
    out = tmp_path_factory.mktemp("out") / "made" / "on the way"
    result = run(
        PROMPT,
        "--model",
        folder,
        "--sizes",
        "1,0.1,0.01,0.4",
        "--seed",
        "5",
        "--json",
        "--out",
        str(out),
    )
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 1
    return json.loads(result.stdout), out


def test_json_is_one_object_with_the_promised_keys(json_run):
    found, _ = json_run
    assert {
        *("model", "prompt", "tokens", "edges", "importance", "ablation", "seed", "versions"),
        *("phases", "sizes"),
    } <= set(found)
    assert found["model"] == "tiny-llama"
    assert found["prompt"] == PROMPT
    assert found["tokens"] == list(tiny.WORDS[:9])
    assert (found["importance"], found["ablation"], found["seed"]) == ("l1", "zero", 5)
    assert found["versions"]["torch"]
    assert [s["size"] for s in found["sizes"]] == [0.01, 0.1, 0.4, 1.0]
    for size in found["sizes"]:
        assert {
            *("size", "edges", "tv", "kl", "js", "head_error", "tail_error", "top1", "nucleus"),
            *("random_tv", "inverse_tv", "share", "mean_layer", "top"),
        } == set(size)
        assert size["edges"] == math.floor(size["size"] * found["edges"])
        assert isinstance(size["top1"], bool)
        assert set(size["share"]) == {"residual", "attention", "mlp"}
        assert len(size["top"]) == 5
        assert size["top"][0]["probability"] >= size["top"][1]["probability"]
    assert found["sizes"][-1]["tv"] < 1e-5
    for phase in found["phases"]:
        assert set(phase) == {"name", "from", "to"}


def test_the_result_file_holds_what_json_says(json_run):
    found, out = json_run
    curve = sl.load_curve(out / "trace.safetensors")
    assert curve.table["tv"].tolist() == [s["tv"] for s in found["sizes"]]
    assert curve.trace.prompt.text == PROMPT
    assert "plotly" in (out / "trace.html").read_text("utf-8")


def test_the_table_says_sizes_and_phases(folder, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text(PROMPT + "\n", "utf-8")
    result = run("--prompt-file", str(file), "--model", folder, "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    for words in ("TV", "random", "inverse", "1e-05", "construction", "density", "trace.html"):
        assert words in result.stdout
    assert sl.load_curve(tmp_path / "trace.safetensors").trace.prompt.text == PROMPT


def test_a_dry_run_prints_a_plan_and_writes_nothing(folder, tmp_path):
    out = tmp_path / "out"
    result = run(PROMPT, "--model", folder, "--dry-run", "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "80 rows in 1 forward passes" in result.stdout
    assert not out.exists()


def test_bos_is_added_only_when_asked(folder, tmp_path):
    tokens = {}
    for flag in ("", "--bos", "--no-bos"):
        result = run(
            PROMPT,
            "--model",
            folder,
            "--json",
            "--sizes",
            "1",
            "--out",
            str(tmp_path),
            *flag.split(),
        )
        tokens[flag] = json.loads(result.stdout)["tokens"]
    assert tokens[""] == tokens["--no-bos"] == list(tiny.WORDS[:9])
    assert tokens["--bos"][1:] == tokens[""]


@pytest.mark.parametrize("ablation", ["mean", "resample"])
def test_other_ablations_run(folder, tmp_path, ablation):
    other = " ".join(reversed(tiny.WORDS[:9]))
    result = run(
        PROMPT,
        "--model",
        folder,
        "--ablation",
        ablation,
        "--corrupted",
        other,
        "--json",
        "--out",
        str(tmp_path),
        "--sizes",
        "0.01,1",
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["ablation"] == ablation
    assert found["sizes"][-1]["tv"] < 1e-5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([""], "prompt is empty"),
        (["   "], "prompt is empty"),
        ([tiny.WORDS[0]], "at least two"),
        ([" ".join(tiny.WORDS[:4] * 40)], "reads at most"),
        ([PROMPT, "--sizes", "0,0.5"], r"sizes must lie in (0, 1]; got 0.0"),
        ([PROMPT, "--sizes", "0.5,1.5"], r"sizes must lie in (0, 1]; got 1.5"),
        ([PROMPT, "--sizes", "nan"], r"sizes must lie in (0, 1]; got nan"),
        ([PROMPT, "--sizes", "a,b"], "numbers parted by commas"),
        ([PROMPT, "--importance", "l3"], "unknown importance 'l3'"),
        ([PROMPT, "--ablation", "half"], "unknown ablation 'half'"),
        ([PROMPT, "--ablation", "resample"], "needs a second prompt"),
        (
            [PROMPT, "--ablation", "resample", "--corrupted", " ".join(tiny.WORDS[:3])],
            "equal lengths",
        ),
        ([PROMPT, "--dtype", "int4"], "unknown dtype 'int4'"),
        ([PROMPT, "--device", "abacus"], "cannot use device 'abacus'"),
        ([PROMPT, "--memory", "0"], "memory_budget must be positive"),
        ([], "give either a prompt or --prompt-file"),
        (["--prompt-file", "/nowhere/at/all.txt"], "/nowhere/at/all.txt"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_status_2(folder, tmp_path, arguments, words):
    result = run(*arguments, "--model", folder, "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert words in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model", ["no/such-model", "/nowhere/model", "missing.gguf"])
def test_an_unknown_model_is_one_line_and_status_2(model, tmp_path):
    result = run(PROMPT, "--model", model, "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert model.rsplit("/", 1)[-1] in result.stderr.splitlines()[-1]


def test_out_that_is_a_file_is_refused(folder, tmp_path):
    file = tmp_path / "file"
    file.touch()
    result = run(PROMPT, "--model", folder, "--out", str(file))
    assert result.exit_code == 2
