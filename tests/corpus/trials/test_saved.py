"""Trials taken up again: what is read back, and what is refused."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

import strace_lens as sl
from strace_lens.corpus.trials.saved import OtherTrialError
from strace_lens.files.result_files import ResultFileError
from tests import tiny
from tests.corpus.trials.made import ESTIMATORS, PROMPTS, SIZES, trials

REVERSED = tuple(
    dataclasses.replace(prompt, wrong=(i + 1) % 3) for i, prompt in enumerate(PROMPTS[::-1])
)


def run(out: Path, **options) -> sl.Trials:
    given = {"estimators": ESTIMATORS, "sizes": SIZES, "limit": 2, "out": out, **options}
    return sl.run_trials(tiny.bridge("llama"), given.pop("prompts", PROMPTS), **given)


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> tuple[Path, sl.Trials]:
    out = tmp_path_factory.mktemp("trials") / "made" / "on the way"
    return out, run(out)


@pytest.fixture
def out(first, tmp_path) -> Path:
    """A copy to damage."""
    shutil.copytree(first[0], tmp_path / "out")
    return tmp_path / "out"


def test_saving_changes_nothing(first) -> None:
    _, made = first
    assert made.runs.equals(trials().runs)
    assert made.traces.drop(columns="seconds").equals(trials().traces.drop(columns="seconds"))


def test_a_second_run_reads_every_trace_and_gives_the_same_tables(first) -> None:
    out, made = first
    files = sorted((out / "traces").iterdir())
    assert [f.name for f in files[:2]] == [
        "000-fisher-0-own.safetensors",
        "000-fisher-0-wrong.safetensors",
    ]
    assert len(files) == 2 * (1 + 3)
    before = [f.stat().st_mtime_ns for f in files]
    again = run(out)
    assert again.runs.equals(made.runs)
    assert again.traces.equals(made.traces)  # the seconds too
    assert [f.stat().st_mtime_ns for f in files] == before
    assert sorted((out / "traces").iterdir()) == files


def test_other_sizes_and_fewer_estimators_use_the_same_traces(first) -> None:
    out, made = first
    again = run(out, estimators=["fisher"], seeds=1, limit=1, sizes=(*SIZES, 0.95))
    fisher = made.traces.query("estimator == 'fisher' and seed == 0 and prompt == 0")
    assert again.traces["seconds"].tolist() == fisher["seconds"].tolist()
    assert len(again.runs) == 4 * (len(SIZES) + 1)


def test_a_truncated_trace_is_named_and_left_alone(out) -> None:
    path = out / "traces" / "001-fisher-0-own.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    size = path.stat().st_size
    with pytest.raises(ResultFileError, match=r"001-fisher-0-own.*delete it to have it made"):
        run(out)
    assert path.stat().st_size == size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ablation": "mean"}, "its ablation is 'zero', not 'mean'"),
        ({"bos": False}, "its token hash is"),
        ({"prompts": REVERSED}, "its prompt is"),
        (
            {"prompts": (sl.TrialPrompt(PROMPTS[0].prompt, wrong=1), *PROMPTS[1:])},
            "000-fisher-0-wrong.*its target is",
        ),
    ],
)
def test_the_traces_of_another_trial_are_refused(first, options, message) -> None:
    with pytest.raises(OtherTrialError, match=message):
        run(first[0], **{"prompts": PROMPTS, **options})


def test_a_trace_saved_otherwise_is_refused(out) -> None:
    path = out / "traces" / "000-greedy-0-own.safetensors"
    graph = sl.token_graph(tiny.bridge("llama"), PROMPTS[0].prompt, bos=True)
    sl.save_trace(sl.extract(graph), path)
    with pytest.raises(OtherTrialError, match="its prompt is None"):
        run(out)
