"""The same commands in two processes leave the same files, to the byte.

The processes differ in the seed of Python's hashes, which orders sets, and in that of Rust's, which
orders the metadata of safetensors and is always random.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny

ROOT = Path(__file__).parent.parent
TIMED = {"compare.html", "timings.csv"}
"""Files that say how long something took."""

SCRIPT = """
import sys
from pathlib import Path
import torch
import strace_lens as sl
from strace_lens.files.interchange import save_importances
from strace_lens.files.interchange import write_graph
from typer.testing import CliRunner
from strace_lens.cli import app

model, task, prompts, out = sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])
torch.set_num_threads(1)

def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output

text, same = "the capital of France is Paris", ("--model", model, "--seed", 3)
run("trace", text, *same, "--sizes", "0.1,0.5,1", "--out", out / "trace")
methods = ("--methods", "eap,edge-pruning,random", "--option", "edge-pruning.steps=2")
run("compare", "--task", task, *same, *methods, "--out", out / "compare")
sweep = ("--sizes", "0.1,1", "--threads", 1, "--estimator", "fisher")
run("sweep", prompts, *same, *sweep, "--out", out / "run")
run("phases", out / "run", "--out", out / "phases")

scores = sl.load(out / "compare" / "scores" / "eap.safetensors")
curve = sl.load(out / "trace" / "trace.safetensors")
sl.save(curve.trace, out / "trace.safetensors")
save_importances(scores, out / "scores.json")
save_importances(scores.top(20), out / "circuit.json")
write_graph(curve.trace.subgraph(0.1), out / "subgraph.graphml")
write_graph(scores.top(20), out / "circuit.graph.json")
"""

pytestmark = pytest.mark.extended


@pytest.fixture(scope="module")
def left(tmp_path_factory) -> tuple[dict[str, bytes], ...]:
    """What two processes left, by file."""
    folder = tmp_path_factory.mktemp("same")
    tiny.hf_model("llama").save_pretrained(folder / "tiny-llama")
    tiny.tokenizer().save_pretrained(folder / "tiny-llama")
    lines = [
        {
            "clean": f"the city of {noun} is",
            "corrupted": f"the city of {other} is",
            "answers": " London",
            "wrong_answers": " Tokyo",
        }
        for noun, other in (("France", "Italy"), ("Japan", "England"), ("Paris", "Rome"))
    ]
    (folder / "task.jsonl").write_text("\n".join(map(json.dumps, lines)))
    prompts = [{"text": "the city of " + " ".join(tiny.WORDS[i : i + 4])} for i in range(3)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    given = [str(folder / name) for name in ("tiny-llama", "task.jsonl", "prompts.jsonl")]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *given, str(folder / seed)],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in "12"
    ]
    for process in running:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    return tuple(
        {
            path.relative_to(folder / seed).as_posix(): path.read_bytes()
            for path in (folder / seed).rglob("*")
            if path.is_file() and path.name not in TIMED and path.parent.name != "timings"
        }
        for seed in "12"
    )


def test_two_processes_leave_the_same_files(left):
    one, two = left
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []


@pytest.mark.parametrize(
    "name",
    [
        *("trace.safetensors", "trace/trace.safetensors", "trace/trace.html"),
        *("compare/compare.csv", "compare/projection.csv"),
        *("compare/scores/eap.safetensors", "compare/circuits/edge-pruning.safetensors"),
        *("scores.json", "circuit.json", "subgraph.graphml", "circuit.graph.json"),
        *("run/manifest.json", "run/parts/part-00000.parquet", "phases/mean_curves.csv"),
    ],
)
def test_every_kind_of_file_was_among_them(left, name):
    assert len(left[0][name]) > 100
