"""The command line on a tiny model in a local folder: what it prints, writes and refuses."""

from __future__ import annotations

import html
import json
import math
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import strace_lens as sl
from strace_lens.cli import app
from strace_lens.cli.trace_results import read_nodes
from strace_lens.traces.estimators import steps
from tests import cases, tiny

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


@pytest.mark.extended
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
    assert found["keep"] == []
    assert found["versions"]["torch"]
    grid = [s["size"] for s in found["sizes"] if not s["refined"]]
    assert grid == [0.01, 0.1, 0.4, 1.0]
    assert len(grid) < len(found["sizes"]) <= len(grid) + 12
    for phase in found["phases"]:
        for end in ("from", "to"):
            below, above = phase[f"{end}_between"] or (0, 2)
            assert below < phase[end] < above
    for size in found["sizes"]:
        assert {
            *("size", "edges", "tv", "kl", "js", "head_error", "tail_error", "top1", "nucleus"),
            *("random_tv", "inverse_tv", "random_inverse_tv", "ablatable_size"),
            *("share", "mean_layer", "top", "refined"),
        } == set(size)
        assert size["edges"] == math.floor(size["size"] * found["edges"])
        assert isinstance(size["top1"], bool)
        assert set(size["share"]) == {"residual", "attention", "mlp"}
        assert len(size["top"]) == 5
        assert size["top"][0]["probability"] >= size["top"][1]["probability"]
    assert found["sizes"][-1]["tv"] < 1e-5
    for phase in found["phases"]:
        assert set(phase) == {"name", "from", "from_between", "to", "to_between"}


def test_the_result_file_holds_what_json_says(json_run):
    found, out = json_run
    curve = sl.load(out / "trace.safetensors")
    assert curve.table["tv"].tolist() == [s["tv"] for s in found["sizes"]]
    assert curve.trace.prompt.text == PROMPT
    assert "plotly" in (out / "trace.html").read_text("utf-8")


@pytest.mark.extended
def test_the_full_table_says_sizes_and_phases(folder, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text(PROMPT + "\n", "utf-8")
    given = ("--prompt-file", str(file), "--model", folder, "--out", str(tmp_path))
    result = run(*given, "--table", "full", "--alone")
    assert result.exit_code == 0, result.output
    for words in ("TV", "random", "inverse", "1e-05", "construction", "density", "trace.html"):
        assert words in result.stdout
    assert "as defined" not in result.stdout
    assert sl.load(tmp_path / "trace.safetensors").trace.prompt.text == PROMPT


@pytest.mark.extended
def test_three_ways_stand_side_by_side_in_80_columns(folder, tmp_path):
    result = run(PROMPT, "--model", folder, "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    *lines, last = result.stdout.splitlines()
    assert last.startswith("wrote")
    assert max(map(len, lines)) <= 80
    for words in ("as defined", "attention kept", "tight (fisher)", "has the model's top token"):
        assert words in result.stdout
    kept = sl.load(tmp_path / "trace-attention-kept.safetensors")
    assert kept.keep == ("attention",)
    assert sl.load(tmp_path / "trace-tight.safetensors").trace.metadata["estimator"] == "fisher"
    page = (tmp_path / "trace.html").read_text("utf-8")
    assert page.index("figure-ways") < page.index("figure-density")
    assert "figure-layer-phases-attention-kept" in page


@pytest.mark.extended
def test_kinds_that_are_kept_make_another_trace_of_the_page(folder, tmp_path):
    given = (PROMPT, "--model", folder, "--sizes", "0.1,0.4,1", "--out", str(tmp_path), "--json")
    result = run(*given, "--keep", "mlp+residual", "--estimator", "scheduled")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert sl.load(tmp_path / "trace.safetensors").keep == ("residual", "mlp")
    assert [way["name"] for way in found["ways"]] == [
        *("definition", "attention-kept", "tight", "scheduled-keep-residual+mlp")
    ]
    assert found["ways"][1]["keep"] == ["attention"]


@pytest.mark.extended
def test_a_target_is_measured_in_every_way_and_ranked_towards_where_fitted(folder, tmp_path):
    options = ("--model", folder, "--sizes", "0.1,0.4,1", "--out", str(tmp_path))
    given = ("--target", "Rome", "--target", "Tokyo", "--against", "Paris")
    result = run(PROMPT, *options, *given)
    assert result.exit_code == 0, result.output
    *lines, _ = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    shown = " ".join(result.stdout.split())
    assert "Logit difference of 'Rome', 'Tokyo' against 'Paris' is" in shown
    assert "Edges in the tighter order of fisher are ranked towards it." in shown
    plain, tight = (sl.load(tmp_path / f"trace{name}.safetensors") for name in ("", "-tight"))
    assert str(plain.target) == str(tight.trace.target) == "'Rome', 'Tokyo' against 'Paris'"
    assert plain.trace.target is None
    assert html.escape(plain.target_line) in (tmp_path / "trace.html").read_text("utf-8")
    full = run(PROMPT, *options, "--target", "Rome", "--alone", "--table", "full")
    assert "measured: probability of 'Rome'" in full.stdout
    assert "recovered" in full.stdout
    found = json.loads(run(PROMPT, *options, "--target", "Rome", "--json").stdout)
    assert found["target"]["strings"] == ["Rome"]
    assert 0 < found["target"]["full"] < 1
    assert found["sizes"][-1]["target_recovered"] == pytest.approx(1, abs=1e-4)
    assert found["ways"][2]["sizes"][-1]["target_recovered"] == pytest.approx(1, abs=1e-4)


def test_a_target_that_is_none_is_one_line(folder, tmp_path):
    for given, words in (
        (("--target", "the of"), "'the of' is not one token of tiny-llama but 2: 'the', 'of'"),
        (("--target", "Rome", "--target", "Paris"), "add --against, or give one token"),
        (("--against", "Rome"), "--against needs a --target"),
    ):
        result = run(PROMPT, "--model", folder, "--out", str(tmp_path / "out"), *given)
        assert result.exit_code == 2
        assert words in result.stderr


def test_an_unknown_kind_or_table_is_one_line(folder, tmp_path):
    for option, words in (
        (("--keep", "heads"), "unknown kind of edge 'heads'; choose from residual, attention, mlp"),
        (("--table", "long"), "unknown table 'long'; choose from short, full"),
    ):
        result = run(PROMPT, "--model", folder, "--out", str(tmp_path / "out"), *option)
        assert result.exit_code == 2
        assert words in result.stderr


@pytest.mark.extended
def test_a_prompt_file_is_read_as_the_editor_meant_it(folder, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"\xef\xbb\xbf" + PROMPT.replace(" ", "\r\n", 1).encode() + b"\r\n")
    page = tmp_path / "page.txt"
    page.write_bytes(b"\xef\xbb\xbf" + 4 * PROMPT.encode())
    options = ("--model", folder, "--sizes", "1", "--out", str(tmp_path))
    mean = ("--ablation", "mean", "--reference", str(page))
    result = run("--prompt-file", str(file), *options, *mean)
    assert result.exit_code == 0, result.output
    prompt = sl.load(tmp_path / "trace.safetensors").trace.prompt
    assert prompt.text == PROMPT.replace(" ", "\r\n", 1)
    assert prompt.strings == tuple(tiny.WORDS[:9])


@pytest.mark.parametrize("option", ["--prompt-file", "--reference"])
def test_a_file_that_is_no_utf_8_is_named(folder, tmp_path, option):
    file = tmp_path / "latin.txt"
    file.write_bytes("caf\u00e9".encode("latin-1"))
    given = () if option == "--prompt-file" else (PROMPT, "--ablation", "mean")
    result = run(*given, option, str(file), "--model", folder, "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert "latin.txt, line 1: not UTF-8 (byte 3 is 0xE9)" in result.stderr


def test_a_prompt_of_broken_unicode_ends_in_one_line(folder, tmp_path):
    result = run("the caf\udce9 of", "--model", folder, "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "character 7 is half of a surrogate pair" in result.stderr


def test_a_dry_run_prints_a_plan_and_writes_nothing(folder, tmp_path):
    out = tmp_path / "out"
    result = run(PROMPT, "--model", folder, "--dry-run", "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "119 rows in 13 forward passes" in result.stdout
    assert "in addition to the weights" in result.stdout
    assert "other ways add at most 78 rows" in result.stdout
    assert "one row" not in result.stdout
    assert not out.exists()


@pytest.mark.extended
def test_a_dry_run_names_a_row_that_does_not_fit(folder):
    arguments = [PROMPT, "--model", folder, "--dry-run", "--memory", "0.00001"]
    model = sl.load_model(folder, device="cpu")
    planned = sl.plan(model, 9, memory_budget=int(0.00001 * 2**30))
    said = planned.over_budget
    assert said is not None
    assert run(*arguments).stdout.splitlines()[-1] == said
    told = json.loads(run(*arguments, "--json").stdout)
    assert told.pop("over_budget") == said
    assert told.pop("fitting_steps") == 0
    assert told.pop("rows_of_other_ways") == 2 * 39
    assert told.pop("seconds") > 0
    assert told == {name: x for name, x in vars(planned).items() if name != "seconds"}
    fits = json.loads(run(*arguments[:-2], "--json").stdout)
    assert fits["over_budget"] is None


@pytest.mark.extended
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


@pytest.mark.extended
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


@pytest.mark.extended
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
        ([PROMPT, "--sizes", "a,b"], "numbers separated by commas"),
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
        ([PROMPT, "--estimator", "best"], "unknown estimator 'best'; choose from greedy"),
        (
            [PROMPT, "--estimator", "pruned", "--importance", "l2"],
            "--importance l2 is for --estimator greedy",
        ),
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


def test_pickled_weights_are_read_only_where_that_is_said(tmp_path):
    model = tmp_path / "pickled"
    tiny.hf_model("llama").save_pretrained(model)
    tiny.tokenizer().save_pretrained(model)
    (model / "model.safetensors").unlink()
    torch.save(tiny.hf_model("llama").state_dict(), model / "pytorch_model.bin")
    arguments = [PROMPT, "--model", str(model), "--dry-run"]
    refused = run(*arguments)
    assert refused.exit_code == 2
    assert "--allow-pickle" in refused.stderr.splitlines()[-1]
    assert run(*arguments, "--allow-pickle").exit_code == 0


def test_out_that_is_a_file_is_refused(folder, tmp_path):
    file = tmp_path / "file"
    file.touch()
    result = run(PROMPT, "--model", folder, "--out", str(file))
    assert result.exit_code == 2


@pytest.mark.extended
@pytest.mark.parametrize("estimator", ["scheduled", "pruned"])
def test_another_estimator_ranks_the_edges(folder, tmp_path, estimator):
    options = ["--model", folder, "--out", str(tmp_path), "--sizes", "0.01,0.1,1", "--seed", "4"]
    result = run(PROMPT, *options, "--estimator", estimator, "--ablation", "mean", "--json")
    assert result.exit_code == 0, result.output
    model = sl.load_model(folder, device="cpu")
    graph = sl.token_graph(model, PROMPT)
    mean = sl.replacement(model, graph.prompt, "mean")
    by_hand = sl.estimate(model, graph, estimator, replacement=mean, seed=4)
    saved = sl.load(tmp_path / "trace.safetensors").trace
    assert all(torch.equal(a, b) for a, b in zip(saved.ranks, by_hand.ranks, strict=True))
    assert saved.metadata["estimator"] == estimator
    assert json.loads(result.stdout)["order"] == saved.metadata["order"] == estimator
    assert "plotly" in (tmp_path / "trace.html").read_text("utf-8")


@pytest.mark.extended
def test_greedy_takes_another_importance(folder, tmp_path):
    options = ["--model", folder, "--out", str(tmp_path), "--sizes", "0.1,1", "--json"]
    result = run(PROMPT, *options, "--estimator", "greedy", "--importance", "l2")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["importance"] == "l2"


@pytest.mark.extended
def test_a_dry_run_tells_of_the_fitting(folder):
    result = run(PROMPT, "--model", folder, "--dry-run", "--estimator", "learned")
    assert f"after {steps('learned')} steps of fitting: 119 rows" in result.stdout
    result = run(PROMPT, "--model", folder, "--dry-run", "--estimator", "fisher", "--json")
    assert json.loads(result.stdout)["fitting_steps"] == 1


def test_the_page_says_what_nodes_promote_or_why_it_does_not(json_run):
    _, out = json_run
    page = html.unescape((out / "trace.html").read_text("utf-8"))
    (text,) = re.findall(r'<script id="results" type="application/json">(.*?)</script>', page)
    (lens,) = json.loads(text)["lenses"]
    top = sl.load(out / "trace.safetensors").top[0][0]
    assert lens["target"] == repr(top)
    model = cases.fresh_bridge("llama")
    graph = sl.token_graph(model, tiny.PROMPT)
    graph.activations.logits.add_(torch.linspace(0, 1, len(graph.activations.logits)))
    assert "is not shown: the logits of" in str(read_nodes(model, graph, None))
