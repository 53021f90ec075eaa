"""`strace-lens compare` on tiny models: what it prints, writes and refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner, Result

import strace_lens as sl
from strace_lens.circuits.tasks.read import read_task
from strace_lens.cli import app
from strace_lens.cli.compare import default_folder
from strace_lens.comparison.places import FOLDERS
from strace_lens.ground_truth.models import ground_truth
from tests import tiny
from tests.comparison.test_compare import KEYS

NOUNS = "France Italy Japan England king queen Paris Rome".split()


@pytest.fixture(autouse=True, scope="module")
def fewer_draws() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["strace_lens.comparison.compare"], "_DRAWS", 2)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Llama as transformers saves it."""
    path = tmp_path_factory.mktemp("model") / "tiny-llama"
    tiny.hf_model("llama").save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A user's task of six pairs, one of which does not align."""
    lines: list[dict[str, Any]] = [
        {
            "clean": f"the city of {noun} is",
            "corrupted": f"the city of {other} is",
            "answers": " London",
            "wrong_answers": [" Tokyo", " river"],
        }
        for noun, other in zip(NOUNS[:5], NOUNS[3:], strict=True)
    ]
    lines.append({**lines[0], "corrupted": "the city is"})
    path = tmp_path_factory.mktemp("task") / "cities.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    return str(path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["compare", *arguments])


@pytest.fixture(scope="module")
def as_json(folder, pairs, tmp_path_factory) -> tuple[dict[str, Any], Path, str]:
    out = tmp_path_factory.mktemp("out") / "made" / "on the way"
    options = ["--methods", "eap-ig, edge-patching", "--option", "edge-patching.max_rows=1"]
    options += ["--option", "eap-ig.steps=2", "--model", folder, "--out", str(out)]
    result = run("--task", pairs, *options, "--json")
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 1
    return json.loads(result.stdout), out, result.stderr


@pytest.mark.extended
def test_json_is_one_object_with_the_promised_keys(as_json):
    found, _, _ = as_json
    assert list(found) == ["task", "model", "accuracy", "methods"]
    assert (found["task"], found["model"]) == ("cities", "tiny-llama")
    assert 0 <= found["accuracy"] <= 1
    assert [row["method"] for row in found["methods"]] == ["eap-ig", "random"]
    for row in found["methods"]:
        assert list(row) == KEYS
        assert row["auroc"] is None
        assert row["faithfulness"][-1] == [1.0, 1.0]


@pytest.mark.extended
def test_measures_may_be_left_out(folder, pairs, tmp_path):
    options = ["--methods", "random", "--model", folder, "--out", str(tmp_path / "out"), "--json"]
    result = run("--task", pairs, *options, "--no-minimality", "--no-completeness")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["methods"]
    assert (row["minimality"], row["completeness"]) == (None, None)
    assert row["intervals"]["minimality"] is None
    heading = pd.read_csv(tmp_path / "out" / "compare.csv")
    assert heading["minimality"].isna().all()


def test_pairs_are_divided_and_the_files_hold_what_the_verbs_give(folder, pairs, as_json):
    found, out, _ = as_json
    model = sl.load_model(folder, device="cpu")
    task = read_task(model, pairs)
    assert (len(task), task.dropped) == (5, 1)
    task = task.sample(seed=0)
    scores = sl.discover(model, task.take([0, 1, 2]), "eap-ig", steps=2)
    curve = sl.faithfulness(model, task.take([3, 4]), scores)
    row = found["methods"][0]
    assert row["cpr"] == pytest.approx(curve.cpr, abs=1e-5)
    assert row["edges_at_85"] == curve.edges_at_85
    assert row["forwards"] == scores.forwards
    circuit = sl.load(out / "circuits" / "eap-ig.safetensors")
    assert circuit.graph == sl.component_graph(model)
    assert torch.equal(circuit.keep, scores.top(curve.edges_at_85).keep)
    saved = sl.load(out / "scores" / "eap-ig.safetensors")
    assert torch.equal(saved.values, scores.values)
    assert sl.faithfulness(model, task.take([3, 4]), saved) == curve


def test_page_and_tables_are_written(as_json):
    found, out, _ = as_json
    written = {p.name for p in out.iterdir()}
    tables = {"compare.csv", "timings.csv", "projection.csv"}
    assert written == {"compare.html", "manifest.json", *FOLDERS} | tables
    table = pd.read_csv(out / "compare.csv")
    assert table["method"].tolist() == ["eap-ig", "random"]
    assert not {"seconds", "peak_mb"} & set(table)  # they differ from run to run
    timings = pd.read_csv(out / "timings.csv")
    assert list(timings) == ["method", "seconds", "peak_mb"]
    assert timings["seconds"].tolist() == [row["seconds"] for row in found["methods"]]
    assert table["cpr"].tolist() == pytest.approx([row["cpr"] for row in found["methods"]])
    assert set(pd.read_csv(out / "projection.csv")["circuit"]) == {"eap-ig", "random"}
    page = (out / "compare.html").read_text("utf-8")
    assert "plotly" in page
    assert "edge-patching" in page  # skipped, and said so


def test_warnings_and_what_was_skipped_go_to_standard_error(as_json):
    found, _, errors = as_json
    assert "strace-lens: skipped edge-patching: " in errors
    assert "max_rows=1" in errors
    stages = [line for line in errors.splitlines() if line.endswith(" steps done)")]
    assert [line.partition(" (")[0] for line in stages][:3] == [
        "strace-lens: eap-ig: discovering",
        "strace-lens: eap-ig: evaluating",
        "strace-lens: eap-ig: evaluated",
    ]
    assert len(set(stages)) == len(stages)  # one line a stage
    assert ("warning: tiny-llama does cities on" in errors) == (found["accuracy"] < 0.9)


@pytest.mark.extended
def test_a_known_task_brings_its_model_and_its_truth(tmp_path):
    options = ["--methods", "edge-patching,eap,ifr,random", "--pairs", "3"]
    result = run("--task", "linear", *options, "--out", str(tmp_path), "--ablation", "zero")
    assert result.exit_code == 0, result.output
    truth = ground_truth("linear").truth("zero")
    assert f"true circuit: {len(truth)} edges" in result.stdout
    assert "pairs of prompts: 3 seen by the methods" in result.stdout
    for words in ("AUROC", "CPR", "CMD", "edges", "complement", "minimal", "fwd", "bwd", "MB"):
        assert words in result.stdout
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    assert {"edge-patching", "eap", "ifr", "random"} <= set(rows)
    assert "compare.html" in result.stdout.splitlines()[-1]
    table = pd.read_csv(tmp_path / "compare.csv").set_index("method")
    assert table.loc["edge-patching", "auroc"] == pytest.approx(table.loc["eap", "auroc"])
    tables = [line for line in result.stdout.splitlines() if " ─" in line]
    assert tables
    assert max(map(len, tables)) <= 132


@pytest.mark.parametrize(
    ("task", "model", "name"),
    [
        ("ioi", None, "ioi"),
        ("ioi", "smollm2", "ioi"),
        ("tracr-reverse", None, "tracr-reverse"),
        ("ioi", "openai-community/gpt2", "ioi-gpt2"),
        ("mine/my task (2).jsonl", "models/tiny/", "my-task-2-tiny"),
        ("../..", None, "task"),
        ("столицы.jsonl", None, "столицы"),
    ],
)
def test_each_task_and_model_has_a_folder_of_its_own(task, model, name):
    assert default_folder(task, model) == Path("out/compare") / name


def test_each_revision_has_a_folder_of_its_own():
    at = default_folder("ioi", "openai-community/gpt2", "refs/pr/1")
    assert at == Path("out/compare/ioi-gpt2-refs-pr-1")


def test_a_long_name_of_a_task_fits_into_a_file_system(tmp_path):
    (tmp_path / default_folder("語" * 250, None).name).mkdir()


@pytest.mark.extended
def test_the_folder_of_a_task_is_used_again_only_if_told_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ("--task", "linear", "--methods", "ifr", "--pairs", "3")
    assert run(*command).exit_code == 0
    page = tmp_path / "out" / "compare" / "linear" / "compare.html"
    before = page.read_bytes()
    refused = run(*command, "--seed", "1")
    assert refused.exit_code == 2
    (line,) = refused.stderr.splitlines()
    assert "name another folder with --out, or pass --overwrite" in line
    assert page.read_bytes() == before
    assert run(*command, "--seed", "1", "--overwrite").exit_code == 0
    assert page.read_bytes() != before
    assert [path.name for path in (tmp_path / "out" / "compare").iterdir()] == ["linear"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "chess"], "unknown task 'chess'; choose from ioi, "),
        (["--task", "chess", "--prepend-bos"], "unknown task 'chess'; choose from ioi, "),
        (["--task", "no/chess.csv"], "there is no file no/chess.csv"),
        (["--task", "no/chess"], "as a data set of the hub cannot be loaded: "),
        (["--task", "linear", "--prepend-bos"], "--prepend-bos is for tasks of files; linear"),
        (["--task", "linear", "--methods", "eap,best"], "unknown method 'best'; choose from"),
        (["--task", "linear", "--methods", " , "], "no method to compare"),
        (["--task", "linear", "--model", "smollm2"], "brings its own model"),
        (["--task", "linear", "--device", "cpu"], "brings its own model"),
        (["--task", "linear", "--dtype", "float16"], "brings its own model"),
        (["--task", "linear", "--pairs", "0"], "at least one pair; got --pairs 0"),
        (["--task", "linear", "--ablation", "half"], "unknown ablation 'half'"),
        (["--task", "linear", "--metric", "charm"], "unknown metric 'charm'"),
        (["--task", "linear", "--memory", "0"], "memory_budget must be positive"),
        (["--task", "linear", "--option", "steps=3"], "--option takes method.name=value"),
        (["--task", "linear", "--option", "best.steps=3"], "unknown method 'best'"),
        (
            ["--task", "linear", "--methods", "eap", "--option", "eap.stops=3"],
            "eap has no option 'stops'",
        ),
        (
            ["--task", "linear", "--methods", "eap-ig", "--option", "eap-ig.steps=0"],
            "steps must be at least 1",
        ),
        (
            ["--task", "linear", "--methods", "eap-ig", "--option", "eap-ig.steps=NaN"],
            "--option eap-ig.steps: not JSON (NaN is no JSON number)",
        ),
        (
            ["--task", "linear", "--methods", "eap-ig", "--option", f"eap-ig.steps={'[' * 5000}"],
            "--option eap-ig.steps: not JSON (",
        ),
        (
            ["--task", "linear", "--methods", "eap-ig", "--option", "eap-ig.steps=1e400"],
            "1e400 is larger than any 64-bit number",
        ),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_status_2(tmp_path, arguments, words):
    result = run(*arguments, "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert result.stdout == ""
    *stages, line = result.stderr.splitlines()
    assert all(stage.endswith(" steps done)") for stage in stages)
    assert words in line
    assert not (tmp_path / "out").exists()


@pytest.mark.extended
def test_a_file_that_is_no_task_is_one_line_and_status_2(folder, pairs, tmp_path):
    good = Path(pairs).read_text("utf-8")
    cases = {
        "empty.jsonl": ("", " is empty"),
        "keys.jsonl": ('{"clean": "the"}', ", line 1: the key 'corrupted' is missing"),
        "cut.jsonl": ("{", ", line 1: not JSON ("),
        "blank.jsonl": (f"{good}\n\n{good}", ", line 7: the line is blank; remove it"),
        "table.csv": ("clean,corrupted\na,b\n", ", line 2: the key 'answers' is missing"),
        "table.txt": ("clean,corrupted\na,b\n", ", line 1: not JSON Lines but CSV; name it .csv"),
        "latin.jsonl": (f"{good}\n\xe9", ", line 7: not UTF-8 (byte "),
    }
    for name, (text, words) in cases.items():
        bad = tmp_path / name
        bad.write_text(text, "latin-1")
        result = run("--task", str(bad), "--model", folder, "--out", str(tmp_path / "out"))
        assert (result.exit_code, result.stdout) == (2, "")
        (line,) = result.stderr.splitlines()
        assert f"{bad}{words}" in line
        assert not (tmp_path / "out").exists()


def test_a_data_set_of_the_hub_is_read_by_its_name(folder, pairs, monkeypatch, tmp_path):
    rows = [json.loads(line) for line in Path(pairs).read_text("utf-8").splitlines()]
    rows = [{**row, "wrong_answers": row["wrong_answers"][0]} for row in rows]
    asked: list[Any] = []

    def load_dataset(*arguments: Any, **options: Any) -> datasets.Dataset:
        asked.append((arguments, options))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    command = ["--task", "some/cities:small", "--model", folder, "--methods", "ifr", "--json"]
    result = run(*command, "--prepend-bos", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["task"] == "cities:small"
    assert asked == [(("some/cities", "small"), {"split": "train"})]


def test_data_sets_of_the_hub_need_the_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    result = run("--task", "some/cities", "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "some/cities is no file, and data sets of the hub need the package datasets" in line


def test_a_missing_extra_is_one_line_and_status_2(monkeypatch, tmp_path):
    for name in [n for n in sys.modules if n.split(".")[0] == "tracr"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tracr", None)
    result = run("--task", "tracr-count", "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "pip install strace-lens[tracr]" in line


def test_a_dry_run_says_what_would_be_run_and_writes_nothing(folder, pairs, tmp_path) -> None:
    out = tmp_path / "out"
    asked = ["compare", "--task", pairs, "--model", folder, "--methods", "eap-ig,acdc,random"]
    asked += ["--out", str(out), "--dry-run"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    assert "on tiny-llama in float32" in result.stdout
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["eap-ig", "7", "5"] in [line[:3] for line in lines]
    assert "of weights, and in addition about" in result.stdout
    other = CliRunner().invoke(
        app, [*asked, "--pairs", "3", "--option", "eap-ig.steps=2", "--json"]
    )
    told = json.loads(other.stdout)
    assert (told["pairs"], told["evaluated_pairs"]) == (3, 2)  # of five
    passes = {plan["method"]: (plan["forwards"], plan["backwards"]) for plan in told["methods"]}
    assert passes["eap-ig"] == (4, 2)
    assert passes["random"] == (0, 0)
    assert told["seconds"] > 0
    assert told["weights_bytes"] == sum(p.nbytes for p in tiny.hf_model("llama").parameters())
    assert not out.exists()


def test_a_dry_run_refuses_an_unknown_task() -> None:
    result = CliRunner().invoke(app, ["compare", "--task", "nonsense", "--dry-run"])
    assert result.exit_code != 0
    assert "unknown task 'nonsense'" in result.output
