"""Estimators and their controls on a page and as tables: every number, in every run's row."""

from __future__ import annotations

import functools

import pandas as pd
import pytest

from strace_lens.corpus.analyses.all import analyse
from strace_lens.report.corpus import corpus_report
from strace_lens.report.tables_corpus import estimator_sections
from tests.corpus.synthetic import controlled_run
from tests.report.test_trace import Page

NAMES = ("greedy", "fisher")


@functools.cache
def runs(prompts: int = 4) -> list:
    return [controlled_run(name, prompts, 1 + i, i) for i, name in enumerate(NAMES)]


@functools.cache
def found(prompts: int = 4) -> dict[str, pd.DataFrame]:
    return analyse(runs(prompts), progress=lambda *_: None)


@pytest.mark.extended
def test_the_page_has_every_figure_and_table_of_estimators() -> None:
    page = Page(corpus_report(runs(), found()))
    ids = [a["id"] for tag, a in page.tags if tag == "div" and "id" in a]
    figures = ("fidelity", "phase-ends", "depth-curves", "compute")
    assert {f"figure-{name}" for name in figures} <= set(ids)
    assert "Estimators and their controls" in page.text
    for title in estimator_sections(found()):
        assert title in page.text
    for name in ("estimator_curves", "estimator_phases"):
        assert f"{name}.csv" in page.text


@pytest.mark.extended
def test_a_single_prompt_makes_a_page_without_nan() -> None:
    assert "nan" not in Page(corpus_report(runs(1), found(1))).text


@pytest.mark.extended
def test_runs_without_controls_have_no_such_section() -> None:
    plain = {n: frame for n, frame in found().items() if not n.startswith("estimator_")}
    assert estimator_sections(plain) == {}
    text = Page(corpus_report(runs(), plain)).text
    assert "Estimators and their controls" not in text


@pytest.mark.extended
def test_the_tables_hold_every_run_and_number() -> None:
    sections = estimator_sections(found())
    assert all(frame["run"].tolist() == list(NAMES) for frame in sections.values())
    table, phases = found()["estimator_table"], found()["estimator_phases"]
    first = next(iter(sections.values()))
    assert [c.split(" ")[0] for c in first["density"]] == [f"{x:.3f}" for x in table["density"]]
    (spread,) = [f["sd of density"] for f in sections.values() if "sd of density" in f]
    assert spread.tolist() == ["-", f"{table['density_sd'][1]:.3f}"]
    means = phases.set_index(["quantity", "run"])
    (depths,) = [f for t, f in sections.items() if t.startswith("Where head and tail")]
    assert [c.split(" ")[0] for c in depths["head depth"]] == [
        f"{means.loc[('head_depth', name), 'mean']:.3g}" for name in NAMES
    ]
    (counts,) = [f for t, f in sections.items() if t.startswith("In how many prompts")]
    assert counts["construction"].tolist() == [
        f"{means.loc[('construction_start', name), 'prompts']}" for name in NAMES
    ]
    (versus,) = [f for t, f in sections.items() if t.startswith("Compared with greedy")]
    ratio = means.loc[("head_size", "fisher"), "vs_greedy"]
    assert versus["head at s"][1].split(" ")[0] == f"{ratio:.2f}"


@pytest.mark.parametrize("pattern", ["tv_", "sibling_", "noise_", "compute_"])
def test_every_measured_size_has_a_column(pattern: str) -> None:
    sizes = [c.removeprefix(pattern) for c in found()["estimator_table"] if c.startswith(pattern)]
    shown = {column for frame in estimator_sections(found()).values() for column in frame}
    heads = {"tv_": "TV "}.get(pattern, pattern.replace("_", " "))
    assert sizes
    assert {f"{heads}{size}" for size in sizes} <= shown
