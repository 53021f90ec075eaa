"""Controls of estimators against every trace and every mask made by hand, on a tiny model."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import strace_lens as sl
from strace_lens.corpus.analyses.estimators import estimator_traces
from strace_lens.corpus.estimator_controls import control_rows
from strace_lens.corpus.prompts import CorpusError, with_wrong_texts
from strace_lens.corpus.run_folder import Run
from strace_lens.measures.sizes import ESTIMATOR_SIZES
from strace_lens.model.checks import architecture_of
from strace_lens.model.forward import last_logits
from strace_lens.traces.compute import compute_share, on_path
from strace_lens.traces.curve_rows import most_rows
from strace_lens.traces.estimators import Estimator
from strace_lens.traces.masked_run import embedding_noise, masked_logits
from strace_lens.traces.rows import MaskedRows
from strace_lens.utils.manifest import OtherResultsError
from tests import tiny
from tests.real import smollm2

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "prompts.jsonl"
PUBLISHED = Path(__file__).parents[2] / "docs" / "estimators" / "estimator_traces.csv"
MODEL = functools.partial(tiny.bridge, "llama")
SIZES = (0.001, 0.01, 0.05, 0.1, 0.2, 0.4, 0.9)
ESTIMATORS = ("greedy", "fisher")
RUNS = [
    (prompt, name, seed)
    for prompt in (0, 1)
    for name, seeds in (("greedy", 1), ("fisher", 2))
    for seed in range(seeds)
]


def text(first: int, words: int = 9) -> str:
    return " ".join(tiny.WORDS[first : first + words])


WRONG = {0: 1, 1: 0}
PROMPTS = [
    sl.CorpusPrompt(text(0), labels={"kind": "a", "sibling": text(12)}),
    sl.CorpusPrompt(text(24, 10), labels={"kind": "b", "wrong": 0}),
]


def options(estimator: str, **changed) -> sl.Options:
    given = {"sizes": SIZES, "refine": 0, "bos": True, "hidden": False, "threads": 1}
    return sl.Options(**{**given, "estimator": estimator, "controls": "all", **changed})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    return {name: sl.sweep(MODEL(), PROMPTS, folder / name, options(name)) for name in ESTIMATORS}


def found(run: Run, prompt: int, seed: int, role: str) -> pd.DataFrame:
    rows = run.controls.query("prompt == @prompt and seed == @seed and role == @role")
    return rows.reset_index(drop=True)


@functools.cache
def graph_of(words: str) -> sl.TokenGraph:
    return sl.token_graph(MODEL(), words, bos=True)


def output(words: str, hooks=()) -> Tensor:
    tokens = graph_of(words).prompt.tensor[None]
    return last_logits(MODEL(), architecture_of(MODEL()), tokens, hooks=hooks)[0].softmax(-1)


@functools.cache
def trace_of(prompt: int, name: str, seed: int, wrong: bool = False) -> sl.Trace:
    graph = graph_of(PROMPTS[prompt].text)
    if name == "greedy":
        return sl.extract(graph)
    target = output(PROMPTS[WRONG[prompt]].text) if wrong else None
    return sl.fisher(MODEL(), graph, target=target, seed=seed)


def by_hand(trace: sl.Trace, words: str, target: Tensor, hooks=()) -> tuple[list, list]:
    """TV and top-1 of each size of a trace run alone on a prompt, against a distribution."""
    tv, top1 = [], []
    for size in SIZES:
        rows = MaskedRows(
            tokens=graph_of(words).prompt.tensor,
            shape=trace.shape,
            ranks=trace.ranks,
            start=torch.zeros(1, dtype=torch.int32),
            stop=torch.tensor([int(size * trace.edges)], dtype=torch.int32),
        )
        logits = masked_logits(MODEL(), architecture_of(MODEL()), [rows], hooks=hooks)[0]
        tv.append(float((logits.softmax(-1) - target).abs().sum() / 2))
        top1.append(bool(logits.argmax() == target.argmax()))
    return tv, top1


@pytest.mark.extended
@pytest.mark.parametrize(("prompt", "name", "seed"), RUNS)
def test_every_role_equals_its_masks_run_alone(runs, prompt, name, seed) -> None:
    trace, words = trace_of(prompt, name, seed), PROMPTS[prompt].text
    noise = embedding_noise(trace.shape.tokens, 32, share=0.1, seed=prompt)
    expected = {
        "own": by_hand(trace, words, output(words)),
        "noise": by_hand(trace, words, output(words, [noise]), [noise]),
        "sibling": ([], []),
        "wrong": ([], []),
    }
    sibling = PROMPTS[prompt].labels.get("sibling")
    if sibling is not None:
        expected["sibling"] = by_hand(trace, sibling, output(sibling))
    if seed == 0:
        aimed = trace_of(prompt, name, seed, wrong=True)
        expected["wrong"] = by_hand(aimed, words, output(PROMPTS[WRONG[prompt]].text))
    for role, (tv, top1) in expected.items():
        rows = found(runs[name], prompt, seed, role)
        assert rows["tv"].tolist() == pytest.approx(tv, abs=1e-5)
        assert rows["top1"].tolist() == top1
        assert rows["size"].tolist() == list(SIZES[: len(tv)])


@pytest.mark.parametrize(("prompt", "name", "seed"), RUNS)
def test_the_own_role_has_paths_compute_and_passes(runs, prompt, name, seed) -> None:
    trace = trace_of(prompt, name, seed)
    rows = found(runs[name], prompt, seed, "own")
    counts = [trace.edge_count(size) for size in SIZES]
    paths = on_path(trace, counts)
    np.testing.assert_array_equal(rows["path_share"], paths.share)
    assert rows["connected"].tolist() == paths.connected.tolist()
    compute = compute_share(trace, architecture_of(MODEL()), counts)
    assert rows["compute"].tolist() == compute.share.tolist()
    passes = trace.metadata.get("passes", {"forward": 0, "backward": 0})
    for column in ("forward", "backward"):
        assert rows[column].tolist() == [passes[column]] * len(SIZES)
    for role in ("wrong", "sibling", "noise"):
        others = found(runs[name], prompt, seed, role)
        assert others[["path_share", "connected", "compute"]].isna().all(axis=None)


def test_the_own_role_of_the_sweeps_seed_is_the_curve(runs) -> None:
    for run in runs.values():
        own = run.controls.query("role == 'own' and seed == 0").reset_index(drop=True)
        assert own[["prompt", "size", "tv", "top1"]].equals(
            run.sizes[["prompt", "size", "tv", "top1"]]
        )


def test_the_controls_differ_from_what_they_control(runs) -> None:
    for name in ESTIMATORS:
        own = found(runs[name], 0, 0, "own")["tv"].to_numpy()
        for role in ("wrong", "sibling", "noise"):
            others = found(runs[name], 0, 0, role)["tv"].to_numpy()
            assert np.abs(own - others).max() > 1e-3


def test_what_names_the_controls_is_no_label_of_the_run(runs) -> None:
    labels = [c for c in runs["greedy"].prompts if str(c).startswith("label_")]
    assert labels == ["label_kind"]


@pytest.mark.extended
def test_a_learned_trace_starts_from_the_pruned_one_of_its_target(tmp_path, monkeypatch) -> None:
    brief = Estimator(functools.partial(sl.learn, steps=3), steps=3, start="pruned")
    monkeypatch.setitem(sl.ESTIMATORS, "brief", brief)
    run = sl.sweep(MODEL(), PROMPTS, tmp_path / "run", options("brief"))
    graph, target = graph_of(PROMPTS[0].text), output(PROMPTS[1].text)
    start = sl.prune(MODEL(), graph, target=target)
    aimed = sl.learn(MODEL(), graph, start=start, target=target, steps=3)
    rows = found(run, 0, 0, "wrong")
    tv, _ = by_hand(aimed, PROMPTS[0].text, target)
    assert rows["tv"].tolist() == pytest.approx(tv, abs=1e-5)
    assert set(rows["backward"]) == {start.metadata["passes"]["backward"] + 3 * 4}


@pytest.mark.extended
def test_mean_ablation_is_fitted_and_measured(tmp_path) -> None:
    run = sl.sweep(MODEL(), PROMPTS, tmp_path / "run", options("fisher", ablation="mean"))
    graph = graph_of(PROMPTS[0].text)
    mean = sl.replacement(MODEL(), graph.prompt, "mean")
    trace = sl.fisher(MODEL(), graph, replacement=mean, seed=1)
    curve = sl.density_curve(
        MODEL(), trace, sizes=SIZES, refine=0, controls=False, replacement=mean
    )
    assert found(run, 0, 1, "own")["tv"].tolist() == pytest.approx(
        curve.table["tv"].tolist(), abs=1e-5
    )


@pytest.mark.extended
def test_kinds_that_are_kept_are_kept_by_the_controls(tmp_path) -> None:
    run = sl.sweep(MODEL(), PROMPTS, tmp_path / "run", options("fisher", keep=("attention",)))
    trace = sl.estimate(MODEL(), graph_of(PROMPTS[0].text), "fisher", keep=("attention",), seed=1)
    curve = sl.density_curve(
        MODEL(), trace, sizes=SIZES, refine=0, controls=False, keep=("attention",)
    )
    assert found(run, 0, 1, "own")["tv"].tolist() == pytest.approx(
        curve.table["tv"].tolist(), abs=1e-5
    )


@pytest.mark.parametrize("controls", ["none", "size"])
def test_other_sweeps_have_no_such_rows(tmp_path, controls) -> None:
    run = sl.sweep(MODEL(), PROMPTS, tmp_path / "run", options("greedy", controls=controls))
    assert run.controls.empty
    assert "label_sibling" in run.prompts


def test_a_run_with_another_wrong_target_is_another_run(tmp_path) -> None:
    three = [*PROMPTS, sl.CorpusPrompt(text(40))]
    sl.sweep(MODEL(), three, tmp_path / "run", options("greedy"))
    other = [sl.CorpusPrompt(text(0), labels={**PROMPTS[0].labels, "wrong": 2}), *three[1:]]
    with pytest.raises(OtherResultsError, match="of its 3 prompts 1 are not given"):
        sl.sweep(MODEL(), other, tmp_path / "run", options("greedy"))


def test_a_sibling_of_another_length_is_recorded_and_the_others_go_on(tmp_path) -> None:
    bad = sl.CorpusPrompt(text(0), labels={"sibling": text(12, 4)})
    run = sl.sweep(MODEL(), [bad, PROMPTS[1]], tmp_path / "run", options("greedy"))
    assert run.prompts["prompt"].tolist() == [1]
    (error,) = run.failures["error"]
    assert error.startswith("the sibling has 5 tokens, the prompt 10; give texts of equal token")


def test_without_a_label_the_next_prompt_is_the_wrong_target() -> None:
    given = [
        sl.CorpusPrompt("a", labels={"wrong": 2}),
        sl.CorpusPrompt("b"),
        sl.CorpusPrompt("c"),
        sl.CorpusPrompt("d", labels={"wrong": "any other text"}),
    ]
    named = with_wrong_texts(given)
    assert [one.labels["wrong"] for one in named] == ["c", "c", "d", "any other text"]
    assert with_wrong_texts(named) == named


def test_the_prompts_of_the_benchmark_are_good() -> None:
    given = sl.read_corpus(BENCHMARK)
    named = with_wrong_texts(given)
    assert len({one.labels["kind"] for one in given}) >= 8
    assert all(isinstance(one.labels["sibling"], str) for one in given)
    # Each output is the wrong target of one prompt.
    assert sorted(str(one.labels["wrong"]) for one in named) == sorted(one.text for one in given)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([{"wrong": 2}, {}], r"prompt 0 \(counted from 0\): 'wrong' must be .* from 0 to 1; got 2"),
        ([{}, {"wrong": -1}], r"prompt 1 .* from 0 to 1; got -1"),
        ([{"wrong": True}, {}], "prompt 0 .*got True"),
        ([{"wrong": 1.0}, {}], "prompt 0 .*got 1.0"),
        ([{"wrong": 0}, {}], "prompt 0 .*is its own text, whose output is the right target"),
        ([{}, {"wrong": "b"}], "prompt 1 .*is its own text"),
        ([{}], "prompt 0 .*has no other whose output could be its wrong target"),
    ],
)
def test_a_wrong_target_that_will_not_do_is_named(labels, message) -> None:
    given = [sl.CorpusPrompt("ab"[i], labels=one) for i, one in enumerate(labels)]
    with pytest.raises(CorpusError, match=message):
        with_wrong_texts(given)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"controls": "some"}, "a sweep has no controls 'some'; choose from none, size, all"),
        ({"generate": 1}, "are of prompts as given; set controls to size"),
        ({"corrupt": "shuffle"}, "are of prompts as given; set controls to size"),
    ],
)
def test_options_that_will_not_do_are_refused(changed, message) -> None:
    with pytest.raises(ValueError, match=message):
        options("greedy", **changed)


def test_the_most_rows_and_fits_of_the_controls() -> None:
    each = most_rows(SIZES, controls=False)
    assert control_rows("greedy", SIZES) == (3 * each + 4, 0)  # wrong, sibling, noise
    assert control_rows("fisher", SIZES) == (6 * each + 4, 2)  # and three traces for two


@pytest.mark.extended
def test_a_published_prompt_comes_out_equal(tmp_path) -> None:
    chosen = options("scheduled", sizes=ESTIMATOR_SIZES)
    prompts = with_wrong_texts(sl.read_corpus(BENCHMARK))[:1]
    run = sl.sweep(smollm2(), prompts, tmp_path / "scheduled", chosen)
    published = pd.read_csv(PUBLISHED).query("run == 'scheduled' and prompt == 0")
    pd.testing.assert_frame_equal(
        estimator_traces(run),
        published.drop(columns="run").reset_index(drop=True),
        check_dtype=False,
        atol=1e-6,
    )
