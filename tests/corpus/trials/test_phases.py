"""Phases of a trial's traces against the phases of each trace's own curve, on a tiny model."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import strace_lens as sl
from strace_lens.corpus.trials import phases as module
from strace_lens.corpus.trials.jobs import Job
from strace_lens.corpus.trials.phases import TrialPhases, trial_phases
from strace_lens.corpus.trials.saved import OtherTrialError
from strace_lens.density.phases import THRESHOLD, LayerPhase, find_phases
from strace_lens.measures.sizes import restored_from
from strace_lens.token_graph.edges import KINDS
from tests import tiny
from tests.corpus.trials.made import PROMPTS

ESTIMATORS = ("greedy", "fisher")
SIZES = (0.001, 0.01, 0.03, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)
RUNS = [(prompt, name) for prompt in (0, 1) for name in ESTIMATORS]
LOOSE = 0.4  # a threshold under which heads and tails of the tiny model have edges


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, sl.Trials]:
    out = tmp_path_factory.mktemp("trials")
    run = sl.run_trials(
        tiny.bridge("llama"),
        PROMPTS,
        estimators=ESTIMATORS,
        sizes=SIZES,
        seeds=2,
        limit=2,
        out=out,
    )
    return out, run


@pytest.fixture(scope="module", params=[THRESHOLD, LOOSE])
def found(made, request) -> tuple[float, TrialPhases]:
    threshold = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            module,
            "restored_from",
            lambda table, mass: restored_from(table, mass, threshold),
        )
        return threshold, trial_phases(made[1], made[0])


def curve_of(out: Path, prompt: int, name: str) -> sl.DensityCurve:
    trace = sl.load_trace(Job(name, 0, "own").path(out, prompt))
    return sl.density_curve(tiny.bridge("llama"), trace, sizes=SIZES, refine=0, controls=False)


def row_of(found: TrialPhases, prompt: int, name: str) -> dict:
    (row,) = found.prompts.query("prompt == @prompt and estimator == @name").to_dict("records")
    return row


def depth(phase: LayerPhase | None, blocks: bool = False) -> float:
    """Mean layer over the last one, an edge at a time."""
    if phase is None or phase.edges == 0:
        return math.nan
    layers = [
        layer
        for kind, by_layer in zip(KINDS, phase.counts.tolist(), strict=True)
        for layer, edges in enumerate(by_layer)
        for _ in range(edges)
        if not (blocks and kind == "residual")
    ]
    return float(np.mean(layers)) / (len(phase.reachable) - 1) if layers else math.nan


def same(value: float):
    return pytest.approx(value, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize(("prompt", "name"), RUNS)
def test_phases_along_the_sizes_are_those_of_the_curve(made, found, prompt, name) -> None:
    row = row_of(found[1], prompt, name)
    along = find_phases(curve_of(made[0], prompt, name))
    construction, refinement = along.get("construction"), along.get("refinement")
    assert construction is not None  # or this test sees nothing
    assert row["construction_start"] == same(construction.start)
    assert row["construction_stop"] == same(construction.stop)
    assert row["construction_tv"] == same(construction.tv_stop)
    for phase in (construction, refinement):
        if phase is not None:
            fall = (phase.tv_start - phase.tv_stop) / math.log10(phase.stop / phase.start)
            assert row[f"{phase.name}_pace"] == pytest.approx(fall, abs=1e-3)
    assert math.isnan(row["refinement_pace"]) == (refinement is None)
    assert row["kind"] == PROMPTS[prompt].kind


@pytest.mark.parametrize(("prompt", "name"), RUNS)
def test_phases_along_the_layers_are_those_of_the_curve(made, found, prompt, name) -> None:
    threshold, phases = found
    row = row_of(phases, prompt, name)
    layers = sl.find_phases(curve_of(made[0], prompt, name), threshold)
    head, tail = layers.head, layers.tail
    assert head is not None
    assert row["head_size"] == head.stop
    assert row["tail_size"] == same(math.nan if tail is None else tail.stop)
    assert row["head_edges"] == head.edges
    assert row["tail_edges"] == same(math.nan if tail is None else tail.edges)
    for blocks, prefix in ((False, ""), (True, "block_")):
        assert row[f"head_{prefix}depth"] == same(depth(head, blocks))
        assert row[f"tail_{prefix}depth"] == same(depth(tail, blocks))
        assert row[f"{prefix}depth_gap"] == same(depth(head, blocks) - depth(tail, blocks))


def test_some_tail_refinement_has_edges(found) -> None:
    threshold, phases = found
    assert threshold != LOOSE or (phases.prompts["tail_edges"] > 0).any()


@pytest.mark.parametrize(("prompt", "name"), RUNS)
def test_counts_by_layer_are_those_of_each_subgraph(made, found, prompt, name) -> None:
    trace = sl.load_trace(Job(name, 0, "own").path(made[0], prompt))
    rows = found[1].layers.query("prompt == @prompt and estimator == @name")
    assert len(rows) == len(SIZES) * trace.shape.layers
    layer_of, reachable = trace.shape.layer_of(), trace.shape.reachable().flat()
    for row in rows.to_dict("records"):
        kept = trace.subgraph(row["size"]).kept
        for kind in KINDS:
            here = getattr(kept, kind) & (getattr(layer_of, kind) == row["layer"])
            assert row[kind] == int(here.sum())
        assert row["reachable"] == int((reachable & (layer_of.flat() == row["layer"])).sum())


@pytest.mark.parametrize(("prompt", "name"), RUNS)
def test_shares_and_depth_at_single_sizes(made, found, prompt, name) -> None:
    row = row_of(found[1], prompt, name)
    runs = made[1].runs.query(
        "prompt == @prompt and estimator == @name and seed == 0 and role == 'own'"
    )
    for one in runs.to_dict("records"):
        if one["size"] in (0.01, 0.05, 0.2):
            for kind in KINDS:
                assert row[f"{kind}_{one['size']:g}"] == same(one[kind])
            assert row[f"depth_{one['size']:g}"] == same(one["mean_layer"] / 2)
    whole = runs.iloc[-1]
    assert whole["size"] == 1
    assert row["graph_depth"] == same(whole["mean_layer"] / 2)


def test_how_the_traces_were_made_is_told(found) -> None:
    made_by = found[1].made
    assert made_by["model"] == "tiny-llama"
    assert made_by["trial"]["ablation"] == "zero"


def test_only_sizes_that_were_measured_have_columns(made) -> None:
    out, run = made
    fewer = sl.Trials(run.runs.query("size != 0.05"), run.traces)
    columns = set(trial_phases(fewer, out).prompts)
    assert {"mlp_0.01", "depth_0.2"} <= columns
    assert not {"mlp_0.05", "depth_0.05"} & columns


def test_a_missing_trace_is_named(made, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="000-greedy-0-own"):
        trial_phases(made[1], tmp_path)


def test_a_trace_of_another_graph_is_refused(made) -> None:
    out, run = made
    other = sl.Trials(run.runs.assign(edges=run.runs["edges"] + 1), run.traces)
    with pytest.raises(OtherTrialError, match=r"000-greedy-0-own.* edges, the trial's graph"):
        trial_phases(other, out)
