"""Trials against every trace and every control made by hand, on a tiny model."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import strace_lens as sl
from strace_lens.corpus.trials.run import trial_steps
from strace_lens.measures.sizes import DENSITY_SIZES, density, smallest_size_from_which
from strace_lens.model.checks import architecture_of
from strace_lens.model.forward import last_logits
from strace_lens.token_graph.compute import compute_share, on_path
from strace_lens.token_graph.estimators import Estimator
from strace_lens.token_graph.masked_run import masked_logits
from strace_lens.token_graph.noise import embedding_noise
from strace_lens.token_graph.rows import MaskedRows
from tests import tiny
from tests.corpus.trials.made import ESTIMATORS, PROMPTS, SIZES, text, trials

MODEL = functools.partial(tiny.bridge, "llama")
RUNS = [
    (prompt, name, seed)
    for prompt in (0, 1)
    for name, seeds in (("greedy", 1), ("fisher", 2))
    for seed in range(seeds)
]


@functools.cache
def graph_of(words: str) -> sl.TokenGraph:
    return sl.token_graph(MODEL(), words, bos=True)


def output(words: str, hooks=()) -> Tensor:
    tokens = graph_of(words).prompt.tensor[None]
    return last_logits(MODEL(), architecture_of(MODEL()), tokens, hooks=hooks)[0].softmax(-1)


@functools.cache
def trace_of(prompt: int, name: str, seed: int, wrong: bool = False) -> sl.Trace:
    one = PROMPTS[prompt]
    graph = graph_of(one.prompt)
    target = output(PROMPTS[one.wrong].prompt) if wrong else None
    if name == "greedy":
        return sl.extract(graph)
    fit = sl.fisher if name == "fisher" else sl.prune
    return fit(MODEL(), graph, target=target, seed=seed)


def tv_by_hand(trace: sl.Trace, words: str, target: Tensor, hooks=()) -> list[float]:
    """Each size of a trace run alone on a prompt, against a distribution."""
    values = []
    for size in SIZES:
        rows = MaskedRows(
            tokens=graph_of(words).prompt.tensor,
            shape=trace.shape,
            ranks=trace.ranks,
            start=torch.zeros(1, dtype=torch.int32),
            stop=torch.tensor([int(size * trace.edges)], dtype=torch.int32),
        )
        logits = masked_logits(MODEL(), architecture_of(MODEL()), [rows], hooks=hooks)[0]
        values.append(float((logits.softmax(-1) - target).abs().sum() / 2))
    return values


def found(prompt: int, name: str, seed: int, role: str) -> pd.DataFrame:
    return trials().runs.query(
        "prompt == @prompt and estimator == @name and seed == @seed and role == @role"
    )


@pytest.mark.parametrize(("prompt", "name", "seed"), RUNS)
def test_the_own_role_is_the_density_curve_with_paths_and_compute(prompt, name, seed) -> None:
    trace = trace_of(prompt, name, seed)
    rows = found(prompt, name, seed, "own").reset_index(drop=True)
    curve = sl.density_curve(MODEL(), trace, sizes=SIZES, refine=0, controls=False)
    columns = ["size", "tv", "kl", "js", "head_error", "tail_error", "top1", "nucleus"]
    columns += ["residual", "attention", "mlp", "mean_layer"]
    # Rows that share a pass with others differ in the last digits.
    pd.testing.assert_frame_equal(rows[columns], curve.table[columns], atol=1e-5)
    counts = [trace.edge_count(size) for size in SIZES]
    paths = on_path(trace, counts)
    np.testing.assert_array_equal(rows["path_share"], paths.share)
    np.testing.assert_array_equal(rows["path_tokens"], paths.tokens)
    assert rows["connected"].tolist() == paths.connected.tolist()
    assert (
        rows["compute"].tolist()
        == compute_share(trace, architecture_of(MODEL()), counts).share.tolist()
    )
    assert set(rows["edges"]) == {trace.edges}
    assert set(rows["tokens"]) == {trace.shape.tokens}
    assert set(rows["kind"]) == {PROMPTS[prompt].kind}


@pytest.mark.parametrize(("prompt", "name", "seed"), RUNS)
def test_controls_equal_their_masks_run_alone(prompt, name, seed) -> None:
    trace, one = trace_of(prompt, name, seed), PROMPTS[prompt]
    noise = embedding_noise(trace.shape.tokens, 32, share=0.1, seed=prompt)
    by_hand = {
        "noise": tv_by_hand(trace, one.prompt, output(one.prompt, [noise]), [noise]),
        "sibling": [],
        "wrong": [],
    }
    if one.sibling is not None:
        by_hand["sibling"] = tv_by_hand(trace, one.sibling, output(one.sibling))
    if seed == 0:
        aimed = trace_of(prompt, name, seed, wrong=True)
        by_hand["wrong"] = tv_by_hand(aimed, one.prompt, output(PROMPTS[one.wrong].prompt))
    for role, values in by_hand.items():
        rows = found(prompt, name, seed, role)
        assert rows["tv"].tolist() == pytest.approx(values, abs=1e-5)
        assert rows["size"].tolist() == list(SIZES[: len(values)])
        assert rows[["kl", "nucleus", "compute", "connected"]].isna().all(axis=None)


def test_the_controls_differ_from_what_they_control() -> None:
    for name in ESTIMATORS:
        own = found(0, name, 0, "own")["tv"].to_numpy()
        for role in ("wrong", "sibling", "noise"):
            assert np.abs(own - found(0, name, 0, role)["tv"].to_numpy()).max() > 1e-3


def test_top1_of_a_role_is_against_that_roles_output() -> None:
    one = PROMPTS[0]
    aimed, target = trace_of(0, "fisher", 0, wrong=True), output(PROMPTS[one.wrong].prompt)
    right = []
    for size in SIZES:
        sub = aimed.subgraph(size).kept
        rows = MaskedRows(
            tokens=aimed.prompt.tensor,
            shape=aimed.shape,
            ranks=sub.map(lambda k: (~k).int()),
            start=torch.zeros(1, dtype=torch.int32),
            stop=torch.ones(1, dtype=torch.int32),
        )
        logits = masked_logits(MODEL(), architecture_of(MODEL()), [rows])[0]
        right.append(bool(logits.argmax() == target.argmax()))
    assert found(0, "fisher", 0, "wrong")["top1"].tolist() == right


def test_each_trace_has_a_row_with_density_size_and_cost() -> None:
    traces = trials().traces
    assert len(traces) == 2 * (2 + 3)
    for row in traces.to_dict("records"):
        rows = found(row["prompt"], row["estimator"], row["seed"], row["target"])
        sizes = rows["size"].to_numpy()
        assert row["density"] == density(sizes, rows["tv"].to_numpy())
        top1 = smallest_size_from_which(sizes, rows["top1"].to_numpy())
        assert row["top1_size"] == pytest.approx(top1, nan_ok=True)
        wrong = row["target"] == "wrong"
        made = trace_of(row["prompt"], row["estimator"], row["seed"], wrong).made
        passes = made.get("passes", {"forward": 0, "backward": 0})
        assert (row["forward"], row["backward"]) == (passes["forward"], passes["backward"])
        assert row["seconds"] > 0


def test_rows_come_by_prompt_estimator_seed_role_and_size() -> None:
    keys = trials().runs[["prompt", "estimator", "seed", "role", "size"]]
    order = keys.assign(
        estimator=keys["estimator"].map(ESTIMATORS.index),
        role=keys["role"].map(["own", "wrong", "sibling", "noise"].index),
    )
    assert order.equals(order.sort_values(list(order)))
    assert not keys.duplicated().any()


def test_a_learned_trace_starts_from_the_pruned_one_of_its_target(tmp_path, monkeypatch) -> None:
    rank = functools.partial(sl.learn, steps=3)
    monkeypatch.setitem(sl.ESTIMATORS, "brief", Estimator(rank, steps=3, start="pruned"))
    told: list[int] = []
    one = sl.run_trials(
        MODEL(),
        PROMPTS,
        estimators=["brief"],
        sizes=SIZES,
        seeds=1,
        limit=1,
        out=tmp_path,
        progress=lambda what, n: told.append(n),
    )
    assert set(one.runs["estimator"]) == {"brief"}
    assert sum(told) == trial_steps(["brief"], seeds=1)
    files = {p.name: sl.load_trace(p) for p in (tmp_path / "traces").iterdir()}
    assert set(files) == {
        f"000-{name}-0-{target}.safetensors"
        for name in ("pruned", "brief")
        for target in ("own", "wrong")
    }
    for target in ("own", "wrong"):
        start = files[f"000-pruned-0-{target}.safetensors"]
        by_hand = trace_of(0, "pruned", 0, wrong=target == "wrong")
        assert all(torch.equal(a, b) for a, b in zip(start.ranks, by_hand.ranks, strict=True))
        trace = files[f"000-brief-0-{target}.safetensors"]
        (row,) = one.traces.query("target == @target").to_dict("records")
        assert trace.made["start"]["seconds"] == start.made["seconds"] < row["seconds"]
        passes = trace.made["passes"]
        assert (row["forward"], row["backward"]) == (passes["forward"], passes["backward"])
        assert row["backward"] == start.made["passes"]["backward"] + 3 * 4
        by_hand = sl.learn(MODEL(), graph_of(PROMPTS[0].prompt), start=start, steps=3)
        assert (target == "own") == all(
            torch.equal(a, b) for a, b in zip(trace.ranks, by_hand.ranks, strict=True)
        )


def test_mean_ablation_is_fitted_and_measured(tmp_path) -> None:
    one = sl.run_trials(
        MODEL(), PROMPTS, estimators=["fisher"], sizes=SIZES, seeds=1, limit=1, ablation="mean"
    )
    graph = graph_of(PROMPTS[0].prompt)
    mean = sl.replacement(MODEL(), graph.prompt, "mean")
    trace = sl.fisher(MODEL(), graph, replacement=mean)
    curve = sl.density_curve(
        MODEL(), trace, sizes=SIZES, refine=0, controls=False, replacement=mean
    )
    own = one.runs.query("role == 'own'")["tv"]
    assert own.tolist() == pytest.approx(curve.table["tv"].tolist(), abs=1e-5)


def test_the_default_grid_takes_density_over_its_even_part() -> None:
    one = sl.run_trials(MODEL(), PROMPTS, estimators=["greedy"], limit=1, bos=None)
    assert len(DENSITY_SIZES) == 25
    assert np.ptp(np.diff(np.log(DENSITY_SIZES))) < 1e-12
    own = one.runs.query("role == 'own'")
    assert own["size"].tolist() == sorted({*DENSITY_SIZES, 0.01, 0.05, 0.1, 0.2, 0.4})
    even = own[own["size"].isin(DENSITY_SIZES)]
    value = density(even["size"].to_numpy(), even["tv"].to_numpy())
    assert one.traces["density"][0] == value
    assert value != density(own["size"].to_numpy(), own["tv"].to_numpy())
    assert set(own["tokens"]) == {len(text(0).split())}  # this tokenizer adds no BOS of its own


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimators": []}, "no estimators; choose from greedy"),
        ({"estimators": ["greedy", "best"]}, "unknown estimator 'best'"),
        ({"sizes": (0.01, 0.1, 0.5)}, "sizes of 0.001 or less"),
        ({"sizes": (0.001,)}, "got 1 from 0.001"),
        ({"sizes": ()}, "sizes are empty"),
        ({"sizes": (0.001, 1.2)}, "sizes must lie in"),
        ({"sizes": (0.001, 0.0001)}, "sizes must rise"),
        ({"ablation": "resample"}, "trials ablate to zero or mean; got 'resample'"),
        ({"seeds": 0}, "seeds must be at least 1; got 0"),
        ({"limit": 0}, "limit must be at least 1; got 0"),
        ({"memory_budget": 0, "estimators": ["greedy"]}, "memory_budget must be positive"),
    ],
)
def test_options_that_say_nothing_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        sl.run_trials(MODEL(), PROMPTS, **options)
