"""`strace-lens sweep` on tiny models: what it prints, leaves and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

import strace_lens as sl
from strace_lens.cli import app
from strace_lens.cli.dry_run import duration
from strace_lens.corpus import measure as measure_module
from strace_lens.corpus import sweep as sweep_module
from strace_lens.corpus.parts import part_paths
from strace_lens.corpus.plan import plan_sweep
from strace_lens.corpus.run_folder import read_run
from strace_lens.model.load import load_model
from tests import hub, tiny
from tests.corpus.made import prompts, words

SIZES = ["--sizes", "0.01,0.1,1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "tiny-llama"
    tiny.hf_model("llama").save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    lines = [{"text": p.text, "next": p.next, **p.labels} for p in prompts(5)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["sweep", *map(str, arguments), "--threads", "1", *SIZES])


@pytest.mark.extended
def test_a_sweep_leaves_a_run_and_says_what_comes_next(
    file: Path, model: str, tmp_path: Path
) -> None:
    out = tmp_path / "runs" / "first"
    result = run(file, "--model", model, "--out", out)
    assert result.exit_code == 0, result.output
    assert f"prompts measured: 5 of tiny-llama in {out}" in result.stdout
    assert f"next: strace-lens phases {out}" in result.stdout
    found = read_run(out)
    assert found.prompts["text"].tolist() == [p.text for p in prompts(5)]
    assert found.prompts["label_kind"].tolist() == ["a", "b", "a", "b", "a"]
    again = run(file, "--model", model, "--out", out, "--json")
    said = json.loads(again.stdout)
    assert said["prompts"] == 5
    assert said["density"] == pytest.approx(found.prompts["density"].mean())


@pytest.mark.extended
def test_an_interrupt_says_that_the_same_command_goes_on(
    file: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = sweep_module.write_part, []

    def interrupted(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr("strace_lens.corpus.batches.MOST_PROMPTS", 1)
    with monkeypatch.context() as patch:
        patch.setattr(sweep_module, "write_part", interrupted)
        result = run(file, "--model", model, "--out", tmp_path / "run")
    assert result.exit_code == 130
    assert "stopped; the same command resumes the sweep" in result.stderr
    assert len(part_paths(tmp_path / "run")) == 1
    assert run(file, "--model", model, "--out", tmp_path / "run").exit_code == 0
    assert len(read_run(tmp_path / "run").prompts) == 5


def test_failed_prompts_are_told_and_do_not_end_it(model: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text(f"{words(5)}\n{words(1)}\n")
    result = run(file, "--model", model, "--out", tmp_path / "run")
    assert result.exit_code == 0
    assert "prompts measured: 1 of tiny-llama" in result.stdout
    assert "1 failed" in result.stdout
    assert "prompt 1 failed: the prompt has 1 token" in result.stderr


@pytest.mark.extended
def test_a_prompt_without_memory_is_one_line_and_others_are_tried_again_if_asked(
    file: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(error: Exception) -> Any:
        def measured(*_: Any) -> Any:
            raise error

        return measured

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(measure_module, "_measured", fails(MemoryError("no room")))
        result = run(file, "--model", model, "--out", out)
        assert result.exit_code == 2
        assert "does not fit in memory (MemoryError: no room)" in result.stderr
        assert result.stderr.count("\n") == 1
        patch.setattr(measure_module, "_measured", fails(FloatingPointError("passing")))
        assert (
            "the first says FloatingPointError" in run(file, "--model", model, "--out", out).stderr
        )
    assert run(file, "--model", model, "--out", out).exit_code == 2
    assert run(file, "--model", model, "--out", out, "--retry-failed").exit_code == 0
    assert len(read_run(out).prompts) == 5


def test_texts_are_cut_drawn_and_repeats_left_out(model: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    lines = [words(20, start=i) for i in range(6)]
    file.write_text("\n".join([*lines, lines[0], words(2)]))
    result = run(
        *(file, "--model", model, "--out", tmp_path / "run"),
        *("--words", "4:8", "--dedupe", "--sample", "3"),
    )
    assert result.exit_code == 0, result.output
    found = read_run(tmp_path / "run").prompts
    assert len(found) == 3
    assert found["tokens"].between(4, 8).all()
    assert all(any(line.startswith(text) for line in lines) for text in found["text"])
    assert "left out 1 texts of fewer than 4 tokens" in result.stderr
    assert "left out 1 repeated texts" in result.stderr


def test_texts_that_cannot_be_cut_are_counted_and_none_left_is_an_error(
    model: str, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text(f"{words(20).replace(' ', '-')}\n{words(2)}\n")
    result = run(file, "--model", model, "--out", tmp_path / "run", "--words", "4:8")
    assert result.exit_code == 2
    assert "left out 1 texts of fewer than 4 tokens" in result.stderr
    assert "left out 1 texts that end no word within 4 to 8 tokens" in result.stderr
    assert "--words 4:8 leaves none of 2 texts; widen the range" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--engine", "spark"], "unknown engine 'spark'; choose from local, processes, ray"),
        (["--workers", "0"], "workers must be at least 1; got 0"),
        (["--estimator", "magic"], "unknown estimator 'magic'"),
        (["--estimator", "greedy,magic"], "unknown estimator 'magic'"),
        (["--keep", "none,heads"], "unknown kind of edge 'heads'; choose from residual"),
        (["--ablation", "resample"], "a sweep has no ablation 'resample'; choose from zero, mean"),
        (["--words", "many"], "--words takes LOW:HIGH in tokens, as 20:60; got 'many'"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str], said: str, file: Path, model: str, tmp_path: Path
) -> None:
    result = run(file, "--model", model, "--out", tmp_path / "run", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("strace-lens: ")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"\x00\x01\x02", "binary"),
        (b'{"text": "a b"}\nnot json', "line 2"),
    ],
)
def test_a_corpus_that_is_none_is_one_line(
    content: bytes, said: str, model: str, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(content)
    result = run(file, "--model", model, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.extended
def test_another_run_in_the_folder_is_told_by_its_difference(
    file: Path, model: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert run(file, "--model", model, "--out", out).exit_code == 0
    result = run(file, "--model", model, "--out", out, "--controls", "none")
    assert result.exit_code == 2
    assert "holds another run: controls was 'size' and is 'none'" in result.stderr


@pytest.mark.extended
def test_other_kinds_kept_are_another_run(file: Path, model: str, tmp_path: Path) -> None:
    given = (file, "--limit", 1, "--controls", "none", "--no-hidden", "--model", model)
    out = ("--out", tmp_path / "run")
    assert run(*given, *out, "--keep", "mlp+residual").exit_code == 0
    assert read_run(tmp_path / "run").manifest["options"]["keep"] == ["residual", "mlp"]
    result = run(*given, *out, "--keep", "attention")
    assert result.exit_code == 2
    assert "holds another run: keep was ['residual', 'mlp'] and is ['attention']" in result.stderr
    # The order in which kinds are named is no difference.
    assert run(*given, *out, "--keep", "residual+mlp").exit_code == 0


@pytest.mark.extended
def test_every_combination_of_estimators_and_kinds_kept_is_a_run_in_a_folder_of_its_own(
    file: Path, model: str, tmp_path: Path
) -> None:
    out = tmp_path / "runs"
    given = (file, "--model", model, "--refine", 0, "--no-hidden", "--out", out)
    several = ("--estimator", "greedy,scheduled", "--keep", "none,attention")
    result = run(*given, *several, "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    names = ["greedy", "greedy-keep-attention", "scheduled", "scheduled-keep-attention"]
    assert [Path(one["out"]) for one in said] == [out / name for name in names]
    assert [(one["estimator"], one["keep"], one["prompts"]) for one in said] == [
        ("greedy", [], 5),
        ("greedy", ["attention"], 5),
        ("scheduled", [], 5),
        ("scheduled", ["attention"], 5),
    ]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    loaded = load_model(model)
    for one in said:
        found = read_run(one["out"])
        assert found.manifest["options"]["keep"] == one["keep"]
        assert one["density"] == pytest.approx(found.prompts["density"].mean())
        trace = sl.estimate(
            loaded, sl.token_graph(loaded, prompts(5)[2].text), one["estimator"], keep=one["keep"]
        )
        sizes = found.sizes[found.sizes["prompt"] == 2]
        curve = sl.density_curve(
            loaded, trace, sizes=sizes["size"].tolist(), refine=0, keep=one["keep"]
        )
        for column in ("tv", "random_tv", "random_inverse_tv", "ablatable_size"):
            assert sizes[column].tolist() == pytest.approx(curve.table[column].tolist(), abs=1e-5)

    again = run(*given, *several)
    assert again.exit_code == 0
    for name in names:
        assert f"prompts measured: 5 of tiny-llama in {out / name}" in again.stdout
    assert f"next: strace-lens phases {out}\n" in again.stdout

    analysed = CliRunner().invoke(app, ["phases", str(out), "--out", str(tmp_path / "page")])
    assert analysed.exit_code == 0, analysed.output
    claims = pd.read_csv(tmp_path / "page" / "claims.csv", keep_default_na=False)
    assert set(zip(claims["estimator"], claims["keep"], strict=True)) >= {
        (estimator, keep) for estimator in ("greedy", "scheduled") for keep in ("none", "attention")
    }
    curves = pd.read_csv(tmp_path / "page" / "mean_curves.csv")
    assert curves["run"].unique().tolist() == names


def test_a_combination_named_twice_is_swept_once(file: Path, model: str, tmp_path: Path) -> None:
    given = (
        file,
        "--limit",
        1,
        "--controls",
        "none",
        "--no-hidden",
        "--refine",
        0,
        "--model",
        model,
    )
    twice = ("--estimator", "greedy,greedy", "--keep", "attention+mlp,mlp+attention")
    result = run(*given, *twice, "--out", tmp_path / "run", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["keep"] == ["attention", "mlp"]
    assert read_run(tmp_path / "run").manifest["options"]["estimator"] == "greedy"


@pytest.mark.extended
def test_another_revision_is_another_run(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fill(tmp_path / "hub")
    hub.use(tmp_path / "hub", monkeypatch)
    given = (
        file,
        "--limit",
        1,
        "--controls",
        "none",
        "--out",
        tmp_path / "run",
        "--model",
        hub.NAME,
    )
    result = run(*given, "--revision", hub.REVISION)
    assert result.exit_code == 0, result.output
    assert f"1 of {hub.NAME}@{hub.REVISION} in" in result.stdout
    assert read_run(tmp_path / "run").model == f"{hub.NAME}@{hub.REVISION}"
    other = run(*given)
    assert other.exit_code == 2
    assert f"model was '{hub.NAME}@{hub.REVISION}' and is '{hub.NAME}'" in other.stderr


@pytest.mark.parametrize("command", ["trace", "sweep", "compare"])
def test_a_revision_of_a_folder_is_one_line(command: str, file: Path, model: str, tmp_path) -> None:
    given = {"trace": ["a b"], "sweep": [file], "compare": ["--task", "ioi"]}
    arguments = [*given[command], "--model", model, "--revision", "v1", "--out", tmp_path / "out"]
    result = CliRunner().invoke(app, [command, *map(str, arguments)])
    assert result.exit_code == 2
    assert f"revision 'v1' is of a model on the Hugging Face hub, but '{model}'" in result.stderr
    assert result.stderr.count("\n") == 1


# Dry runs


def configured(folder: Path) -> Path:
    """A folder with a configuration and a tokenizer, and no weights."""
    tiny.hf_model("llama").config.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def test_a_dry_run_tells_the_cost_without_weights_and_writes_nothing(
    file: Path, tmp_path: Path
) -> None:
    folder = configured(tmp_path / "tiny-plan")
    before = sorted(tmp_path.rglob("*"))
    asked = (file, "--model", folder, "--dry-run", "--speed", "1e9", "--estimator", "fisher")
    result = run(*asked, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    options = sl.Options(estimator="fisher", sizes=(0.01, 0.1, 1.0))
    planned = plan_sweep(folder, prompts(5), options, speed=1e9)
    assert told == json.loads(json.dumps(planned.to_dict()))
    assert told["prompts"] == 5
    assert sorted(tmp_path.rglob("*")) == before
    shown = run(*asked).stdout
    assert "tiny-plan in float32: 5 prompts of" in shown
    assert f"{planned.rows:,}" in shown
    assert "1e+09 FLOP/s and 5e+06 byte/s, as given" in shown


def test_a_dry_run_takes_prompts_as_it_is_told_to(file: Path, tmp_path: Path) -> None:
    folder = configured(tmp_path / "tiny-plan")
    asked = ("--model", folder, "--dry-run", "--speed", "h100", "--json")
    stated = json.loads(run("40x12", *asked).stdout)
    assert (stated["prompts"], stated["tokens"], stated["longest"]) == (40, 480, 12)
    few = json.loads(run(file, *asked, "--sample", "2", "--words", "2:4").stdout)
    assert few["prompts"] == 2
    assert few["longest"] <= 4
    eight = json.loads(run("40x12", *asked, "--engine", "ray", "--workers", "8").stdout)
    assert eight["seconds"] == pytest.approx(stated["seconds"] / 8)


def test_a_sweep_without_a_folder_is_refused(file: Path, model: str) -> None:
    result = run(file, "--model", model)
    assert result.exit_code == 2
    assert "name the folder of the run with --out, or add --dry-run" in result.output


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.04, "3.0 seconds"), (150.0, "2.5 minutes"), (9e3, "2.5 hours"), (5e5, "5.8 days")],
)
def test_times_are_told_in_units_that_can_be_read(seconds: float, text: str) -> None:
    assert duration(seconds) == text


CONTROLLED = [
    {"prompt": words(6), "wrong": 2, "sibling": words(6, 3)},
    {"prompt": words(7, 9)},
    {"prompt": words(5, 20)},
]


@pytest.fixture
def controlled(tmp_path: Path) -> Path:
    path = tmp_path / "controlled.jsonl"
    path.write_text("\n".join(map(json.dumps, CONTROLLED)))
    return path


@pytest.mark.extended
def test_estimators_are_compared_with_all_their_controls(
    controlled: Path, model: str, tmp_path: Path
) -> None:
    given = ("--model", model, "--no-hidden", "--estimator", "greedy,fisher")
    out = tmp_path / "runs"
    result = run(controlled, *given, "--limit", 2, "--controls", "all", "--out", out)
    assert result.exit_code == 0, result.output
    for name, seeds in (("greedy", 1), ("fisher", 2)):
        controls = read_run(out / name).controls
        assert set(controls["prompt"]) == {0, 1}  # the wrong targets lie beyond the limit
        assert set(controls["role"]) == {"own", "wrong", "sibling", "noise"}
        assert controls["seed"].nunique() == seeds
    told = CliRunner().invoke(app, ["phases", str(out)])
    assert told.exit_code == 0, told.output
    assert "Controls: lowest TV to a wrong target" in told.stdout
    table = pd.read_csv(out / "estimator_table.csv")
    assert table["run"].tolist() == ["greedy", "fisher"]
    assert 'id="figure-fidelity"' in (out / "phases.html").read_text()
    said = json.loads(CliRunner().invoke(app, ["phases", str(out), "--json"]).stdout)
    assert [row["run"] for row in said["estimator_table"]] == ["greedy", "fisher"]


def test_all_controls_are_measured_at_the_published_sizes_and_cost_more(
    controlled: Path, model: str
) -> None:
    given = ("sweep", str(controlled), "--model", model, "--dry-run", "--json", "--speed", "1e12")
    plain, size, every = (
        json.loads(CliRunner().invoke(app, [*given, "--controls", controls]).stdout)
        for controls in ("none", "size", "all")
    )
    assert plain["rows"] < size["rows"] < every["rows"]
    # 30 sizes and the full mask, the controls of equal size, refined sizes, and four roles.
    assert every["rows"] == 3 * (31 + 3 * 30 + 12 + 3 * 31 + 4)


@pytest.mark.parametrize(
    ("lines", "more", "said"),
    [
        (CONTROLLED[:2], (), "prompt 0 (counted from 0): 'wrong' must be"),
        (CONTROLLED[1:2], (), "has no other whose output could be its wrong target"),
        (CONTROLLED, ("--limit", 0), "limit must be at least 1; got 0"),
        (CONTROLLED, ("--generate", 2), "the controls of an estimator are of prompts as given"),
    ],
)
def test_controls_that_will_not_do_are_one_line(
    lines: list, more: tuple, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    result = run(file, "--controls", "all", "--out", tmp_path / "run", *more)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert said in line
    assert not (tmp_path / "run").exists()
