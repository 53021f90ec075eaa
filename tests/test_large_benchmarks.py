"""The scripts for large models, tried on models that a test can afford."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import strace_lens as sl
from benchmarks import gpu, large, replication
from benchmarks.random_models import TINY, llama, qwen2, random_ids, random_model

ROOT = Path(__file__).parents[1]

PUBLISHED = {
    "Llama-2-7B": 6_738_415_616,
    "Llama-3.1-8B": 8_030_261_248,
    "Mistral-7B": 7_248_023_552,
    "OLMo-2-7B": 7_298_617_344,
    "OLMo-2-13B": 13_716_198_400,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-14B": 14_768_307_200,
    "Gemma-3-12B": 11_766_034_176,  # of the text alone
    "Phi-3-medium-14B": 13_960_238_080,
}
"""Parameters in the files of weights that the makers of the models released."""


@pytest.mark.extended
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no high-water mark")
def test_a_model_in_bfloat16_runs_whole_in_the_memory_that_is_planned() -> None:
    """32 million parameters in a process of its own, as `benchmarks.large` does with a billion."""
    told, plan = large.child("small", 20), large.planned(large.SHAPES["small"], 20)
    assert 0.3 * plan.peak_bytes < told["peak"] <= plan.peak_bytes
    assert plan.weights_bytes == 2 * 31_791_616
    for curve, gap in zip(told["tv"], told["gap"], strict=True):
        assert curve[-1] < 1e-3  # every edge
        assert curve[-1] < curve[0] <= 1
        assert gap < 0.1  # of logits in half precision


@pytest.mark.parametrize("config", [llama(TINY), qwen2(TINY)], ids=["llama", "qwen2"])
def test_a_random_model_is_the_same_each_time_and_is_that_of_its_configuration(config) -> None:
    first, second = (random_model(config, torch.float32) for _ in range(2))
    ids = random_ids(TINY["vocab_size"], 9)
    ours, again = (sl.token_graph(model, ids).activations.logits for model in (first, second))
    assert torch.equal(ours, again)
    assert sl.check_model(first) < 1e-5  # rotations too are those of transformers' own modules


@pytest.mark.extended
def test_the_script_for_a_gpu_runs_on_a_tiny_model_without_one() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--tiny", "--device", "cpu"]
    done = subprocess.run(
        [*command, "--repeats", "1"], capture_output=True, text=True, cwd="/", check=True
    )
    told = json.loads(done.stdout[done.stdout.index("{") :])
    for keep in ("none", "attention"):
        run = told["large"][keep]
        assert run["rows"] > 27
        assert run["rows_a_second"] > 0
        assert run["curve_over_plain"] > 0
        assert f"whole curve, 7B shape, 20 tokens, {keep} kept: " in done.stdout
        assert 0 < run["tv_to_float32"]["mean"] <= run["tv_to_float32"]["max"] < 0.05
    assert told["small"]["tv_max"] == 0  # the same device
    assert told["small"]["ranks_moved"] == 0


def test_what_is_installed_is_not_asked_for() -> None:
    wanted = ["numpy>=2.0", "no-such-package>=1.0,<2", "transformer-lens>=3.9,<5"]
    assert gpu.missing(wanted) == ["no-such-package>=1.0,<2"]


def test_what_is_missing_is_installed_from_a_folder_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package made by hand, into a folder of its own; what is installed here stays as it is."""
    wheels, target = tmp_path / "wheels", tmp_path / "target"
    wheels.mkdir()
    info = "handmade-1.5.dist-info"
    with zipfile.ZipFile(wheels / "handmade-1.5-py3-none-any.whl", "w") as wheel:
        wheel.writestr("handmade.py", "")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: handmade\nVersion: 1.5\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    project = '[project]\ndependencies = ["numpy>=2.0", "handmade>=1.0,<2"]\n'
    (tmp_path / "pyproject.toml").write_text(project)
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setenv("PIP_TARGET", str(target))
    with pytest.raises(SystemExit, match=r"not installed: handmade>=1\.0,<2; name a folder"):
        gpu.install(None, smollm2=False)
    gpu.install(wheels, smollm2=False)
    assert {info, "handmade.py"} <= {path.name for path in target.iterdir()}


@pytest.mark.parametrize("name", replication.MODELS)
def test_the_shapes_of_the_replication_are_those_of_the_released_models(name: str) -> None:
    kind, shape = replication.MODELS[name]
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(kind(**shape))
    assert sum(p.numel() for p in made.parameters()) == PUBLISHED[name]


@pytest.mark.extended
def test_the_cost_of_the_replication_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "Llama-2-7B"
    monkeypatch.setattr(sys, "argv", ["replication", "--models", name])
    replication.main()
    _, _, line, total = capsys.readouterr().out.splitlines()
    assert (
        line.split() == "Llama-2-7B 12.6 GiB 7.8 GiB 2,140,000 1.5e+18 15.0 hours 9.9 GiB".split()
    )
    assert total == "all: 2,140,000 rows, 1.5e+18 FLOP, 15.0 hours on 1, 9.9 GiB on disk"
    # By hand: both estimators and both ways of ablation, of 27 sizes and their three controls, of
    # which the random one of all edges is the full trace itself; two FLOP a weight and token.
    rows = 2 * 2 * replication.PASSAGES * (4 * len(sl.SIZES) - 1)
    assert f"{rows:,}" == "2,140,000"
    assert 1.45e18 < 2 * (PUBLISHED[name] - 32_000 * 4096) * replication.TOKENS * rows < 1.55e18
    assert f"{2 * PUBLISHED[name] / 2**30:.1f} GiB" == "12.6 GiB"
