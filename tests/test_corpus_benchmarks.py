"""What the benchmarks of sweeps stand on: held-out prompts, a sweep that really is killed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks import checkpoints, sweeps
from strace_lens.corpus.run_folder import Run
from strace_lens.corpus.sweep import sweep
from strace_lens.utils.choices import BUILTIN
from tests.corpus.made import model, options, prompts

KILLABLE = """
import sys
from tests.corpus.made import model, options, prompts
from strace_lens.corpus import batches
from strace_lens.corpus.sweep import sweep
batches.MOST_PROMPTS = 1
sweep(model(), prompts(5), sys.argv[1], options())
"""


def test_prompts_are_held_out_of_the_training_text() -> None:
    training, held = checkpoints.texts()
    assert len(held) >= checkpoints.PROMPTS
    assert not {p.text for p in held} & set(training)
    assert checkpoints.texts() == (training, held)


def test_one_by_one_keeps_what_the_sweep_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Run] = []

    def kept(*args: Any, **kwargs: Any) -> Run:
        runs.append(sweep(*args, **kwargs))
        return runs[-1]

    monkeypatch.setattr(sweeps, "smollm2", model)
    monkeypatch.setattr(sweeps, "sweep", kept)
    assert sweeps.swept(prompts(3), options()) > 0
    assert sweeps.one_by_one(prompts(3), options()) > 0
    together, *alone = (run.prompts for run in runs)
    assert [len(run) for run in alone] == [1, 1, 1]
    one_by_one = pd.concat(alone, ignore_index=True)
    assert list(one_by_one.columns) == list(together.columns)
    assert one_by_one["text"].tolist() == together["text"].tolist()
    assert one_by_one["density"].tolist() == pytest.approx(together["density"].tolist(), abs=1e-4)


@pytest.mark.extended
def test_a_killed_sweep_is_resumed_and_compared(capsys: pytest.CaptureFixture[str]) -> None:
    sweeps.killed(lambda out: [sys.executable, "-c", KILLABLE, str(out)], [0.0])
    said = capsys.readouterr().out
    assert "1 kills, then resumed: 5 parts equal to the byte, whole parts done again: 0" in said


def test_the_command_that_is_killed_is_a_sweep(tmp_path: Path) -> None:
    command = sweeps.command(Path(BUILTIN), tmp_path)
    assert command[:4] == [sys.executable, "-m", "strace_lens.cli", "sweep"]
