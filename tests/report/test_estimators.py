"""The page of estimators: complete, self-contained, escaped and the same each time."""

from __future__ import annotations

import dataclasses
import math

import pytest
from plotly.offline import get_plotlyjs

import strace_lens as sl
from strace_lens.corpus.trials.phase_table import phase_table
from strace_lens.corpus.trials.phases import TrialPhases, trial_phases
from strace_lens.report.estimators import estimators_report
from tests import tiny
from tests.corpus.trials.made import PROMPTS
from tests.plot import made_trials as made
from tests.report.test_trace import Page, tables

FIGURES = (
    *("fidelity", "densities", "phase-ends", "errors", "depths", "depth-curves", "layers"),
    *("kinds", "compute"),
)


def page_of(trials: sl.Trials, phases: TrialPhases) -> str:
    return estimators_report(
        trials, sl.estimator_table(trials), phases, phase_table(phases.prompts)
    )


@pytest.fixture(scope="module")
def page() -> str:
    return page_of(made.trials(), made.phases())


def test_the_same_results_make_the_same_page(page: str) -> None:
    assert page_of(made.trials(), made.phases()) == page


def test_it_holds_plotly_once_and_asks_for_nothing(page: str) -> None:
    assert page.count(get_plotlyjs()) == 1
    for tag, attributes in Page(page).tags:
        assert tag != "link"
        assert not (attributes.get("src") or "").startswith(("http", "//")), tag
    assert "mathjax" not in page.replace(get_plotlyjs(), "").lower()


def test_every_figure_is_there_once_with_a_caption(page: str) -> None:
    ids = [a["id"] for tag, a in Page(page).tags if tag == "div" and "id" in a]
    assert ids == [f"figure-{name}" for name in FIGURES]
    assert sum(tag == "figcaption" for tag, _ in Page(page).tags) == len(FIGURES)


def test_it_says_what_was_run_and_how(page: str) -> None:
    text = Page(page).text
    for said in (
        "Estimators of a trace of made-up",
        "prompts4, of 9 to 9 tokens and 100 to 100 edges",
        "kinds of promptskind 0, kind 1",
        "estimatorsgreedy, pruned, learned",
        "relative sizes7, from 0.0001 to 0.8",
        "ablated edges carryzero",
        "versionstorch 2",
    ):
        assert said in text


def test_the_tables_hold_every_estimator_and_number(page: str) -> None:
    shown = tables(page)
    for table in shown:
        assert table["estimator"].tolist() == list(made.NAMES)
    density = sl.estimator_table(made.trials())["density"]
    cells = [cell.split(" ")[0] for cell in shown[0]["density"]]
    assert cells == [f"{value:.3f}" for value in density]
    (depths,) = [t for t in shown if "head at s" in t and "tail at s" in t]
    means = made.means().set_index(["quantity", "estimator"])["mean"]
    assert [c.split(" ")[0] for c in depths["head depth"]] == [
        f"{means['head_depth', name]:.3g}" for name in made.NAMES
    ]


def test_nothing_of_a_trial_becomes_markup() -> None:
    hostile = "</script><script>alert(1)</script>"
    trials = made.trials()
    named = sl.Trials(trials.runs.assign(kind=hostile), trials.traces.assign(kind=hostile))
    phases = dataclasses.replace(made.phases(), made={"model": hostile})
    plain, page = (Page(page_of(*of)) for of in ((trials, made.phases()), (named, phases)))
    count = [tag for tag, _ in plain.tags].count("script")
    assert [tag for tag, _ in page.tags].count("script") == count
    assert hostile in page.text


def test_missing_phases_make_a_page_that_says_so() -> None:
    text = Page(page_of(made.trials(), made.no_phases())).text
    assert "no prompt has a construction phase" in text
    assert "no prompt has its head restored at a measured size" in text
    assert "nan" not in text


def test_one_prompt_makes_a_page_without_intervals() -> None:
    page = Page(page_of(made.trials(prompts=1), made.phases(prompts=1)))
    assert "prompts1, of" in page.text
    assert "nan" not in page.text


def test_a_trial_without_rows_is_refused() -> None:
    trials, phases = made.trials(), made.phases()
    empty = sl.Trials(trials.runs.head(0), trials.traces.head(0))
    with pytest.raises(ValueError, match="no estimator"):
        estimators_report(empty, sl.estimator_table(trials), phases, made.means())


def test_a_real_trial_makes_a_page(tmp_path) -> None:
    trials = sl.run_trials(
        tiny.bridge("llama"),
        PROMPTS,
        estimators=("greedy", "fisher"),
        sizes=(0.001, 0.01, 0.05, 0.1, 0.2, 0.4, 0.9),
        seeds=1,
        limit=2,
        out=tmp_path,
    )
    phases = trial_phases(trials, tmp_path)
    page = Page(page_of(trials, phases))
    assert "Estimators of a trace of tiny-llama" in page.text
    assert "greedy: density" in page.text
    assert math.isfinite(phases.prompts["construction_start"].iloc[0])
