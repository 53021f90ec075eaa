"""The row of each prompt against a search through its sizes; the published rows against a rerun."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from strace_lens.corpus.analyses.layer_phases import head_and_tail
from strace_lens.corpus.analyses.per_prompt import per_prompt
from strace_lens.corpus.read import CARRIED, read_corpus
from strace_lens.corpus.run_folder import Run
from strace_lens.corpus.setting import Options
from strace_lens.corpus.sweep import sweep
from tests.corpus.synthetic import synthetic_run
from tests.real import smollm2

STUDY = Path(__file__).parents[3] / "docs" / "phases"
RERUN = (27, 42, 52, 78)
"""Short prompts of four kinds; in two of them the tail is restored later than the head."""


def first_from_which(run: Run, prompt: int, holds: np.ndarray) -> float:
    sizes = run.sizes[run.sizes["prompt"] == prompt]["size"].tolist()
    return next((s for i, s in enumerate(sizes) if holds[i:].all()), np.nan)


def test_a_row_is_what_the_run_holds_of_its_prompt() -> None:
    run = synthetic_run(prompts=7)
    run.sizes.loc[run.sizes["prompt"] == 3, "top1"] = False
    run.sizes.loc[run.sizes.index[run.sizes["prompt"] == 1][:3], "top1"] = [False, True, False]
    table = per_prompt(run)
    given = ("prompt", "sha256", "tokens", "edges", "density", "auc_paper")
    for name in (*given, "entropy", "head_mass", "loss"):
        pd.testing.assert_series_equal(table[name], run.prompts[name])
    for number, row in table.iterrows():
        rows, mass = run.sizes[run.sizes["prompt"] == number], row["head_mass"]
        for name, holds in {
            "top1_size": rows["top1"],
            "nucleus_size": rows["nucleus"] >= 0.5,
            "head_size": rows["head_error"] < 0.1 * mass,
            "tail_size": rows["tail_error"] < 0.1 * (1 - mass),
        }.items():
            expected = first_from_which(run, int(str(number)), holds.to_numpy())
            np.testing.assert_equal(row[name], expected)
            if name in ("top1_size", "nucleus_size"):
                first = next((s for s, yes in zip(rows["size"], holds, strict=True) if yes), np.nan)
                np.testing.assert_equal(row[name.replace("_size", "_first")], first)
    assert table["top1_size"].isna().tolist() == [n == 3 for n in range(7)]


@pytest.fixture(scope="module", params=[(), ("attention",)], ids=["greedy", "attention-kept"])
def rerun(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Prompts of the study swept again, one after another: four, or two with attention kept."""
    keep = request.param
    prompts = read_corpus(CARRIED)
    options = Options(keep=keep, controls=False, hidden=False)
    folder = tmp_path_factory.mktemp("runs") / f"greedy{'-keep-attention' * bool(keep)}"
    chosen = [prompts[number] for number in (RERUN[:2] if keep else RERUN)]
    return sweep(smollm2(), chosen, folder, options)


def published(name: str, rerun: Run) -> pd.DataFrame:
    table = pd.read_csv(STUDY / f"{name}.csv")
    table = table[table["run"] == rerun.name].drop(columns="run").set_index("prompt")
    return table.loc[list(RERUN[: len(rerun.prompts)])].reset_index(drop=True)


def test_the_published_head_and_tail_are_those_of_a_rerun(rerun: Run) -> None:
    table = published("head_and_tail", rerun)
    found = head_and_tail(rerun).drop(columns="prompt")
    np.testing.assert_allclose(found[list(table)].to_numpy(float), table.to_numpy(float), rtol=1e-3)


def test_the_published_scalars_are_those_of_a_rerun(rerun: Run) -> None:
    table = published("prompts", rerun)
    found = per_prompt(rerun).drop(columns="prompt")
    assert table["sha256"].tolist() == found["sha256"].tolist()
    numbers = [name for name in table if name != "sha256"]
    np.testing.assert_allclose(
        found[numbers].to_numpy(float), table[numbers].to_numpy(float), rtol=1e-3, atol=1e-4
    )
