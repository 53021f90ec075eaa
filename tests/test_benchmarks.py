"""The benchmarks say what they measured, and what they compare computes the same thing."""

from __future__ import annotations

import subprocess
import sys

import pandas as pd
import pytest

import strace_lens as sl
from benchmarks import (
    common,
    extraction,
    fitting,
    importance,
    masked_forward,
    sparse_seconds,
    start,
    trace_job,
)
from benchmarks.scaling import cost_of_trace, exponent
from strace_lens.traces.ablation import ZERO
from strace_lens.traces.edges import GraphShape
from strace_lens.traces.fit import fit_to, gradients, weighted_log_probs
from strace_lens.traces.importance import IMPORTANCES
from strace_lens.utils.choices import GRADIENT_BUDGET
from tests import tiny

SIZES = (0.01, 0.1, 0.3, 1.0)


@pytest.fixture(scope="module")
def trace() -> sl.Trace:
    """Of a sequential model without biases, whose every edge carries something."""
    return sl.extract(sl.token_graph(tiny.bridge("no_positions"), tiny.PROMPT))


@pytest.mark.parametrize(
    ("ratio", "goal", "at_most", "line"),
    [
        (31.42, 30, False, "x: 31.4x (goal 30x) ok"),
        (2.999, 3, False, "x: 3.00x (goal 3x) SHORT"),
        (1.0149, 1.1, True, "x: 1.01x (goal at most 1.1x) ok"),
        (1.7, 1.1, True, "x: 1.70x (goal at most 1.1x) SHORT"),
        (float("nan"), 3, False, "x: nanx (goal 3x) SHORT"),
        (float("nan"), 1.1, True, "x: nanx (goal at most 1.1x) SHORT"),
    ],
)
def test_report_prints_one_line(ratio, goal, at_most, line, capsys):
    common.report("x", ratio, goal, at_most)
    assert capsys.readouterr().out == line + "\n"


def test_what_is_no_ratio_is_reported_in_its_unit(capsys):
    common.report("x", 0.213, 0.5, at_most=True, unit=" s")
    assert capsys.readouterr().out == "x: 0.21 s (goal at most 0.5 s) ok\n"


def test_a_command_runs_in_its_folder_and_a_failure_is_raised(tmp_path):
    import_it = "import os, pathlib; pathlib.Path('at').write_text(os.environ['STRACE_LENS_CACHE'])"
    found = start.spent((sys.executable, "-c", import_it), tmp_path)
    assert found.wall > 0
    assert found.processor > 0
    assert (tmp_path / "at").read_text() == str(tmp_path / "cache")
    with pytest.raises(subprocess.CalledProcessError):
        start.spent((sys.executable, "-c", "raise SystemExit(3)"), tmp_path)


def test_functions_take_turns_and_the_order_reverses():
    calls: list[str] = []
    seconds = common.interleaved_seconds([lambda: calls.append("a"), lambda: calls.append("b")], 3)
    assert calls == list("abbaab")
    assert [len(s) for s in seconds] == [3, 3]


def test_the_real_prompt_has_exactly_the_tokens_asked_for():
    model = tiny.bridge("no_positions")
    assert len(common.real_prompt(model, 11)) == 11
    with pytest.raises(ValueError, match="1000000 were asked for"):
        common.real_prompt(model, 1_000_000)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("mlp", [False, True])
def test_networkx_ranks_as_best_first_does(parallel, mlp, capsys):
    shape = GraphShape(layers=3, heads=2, tokens=5, parallel=parallel, mlp=mlp)
    extraction.compare("tiny", extraction.lognormal_importance(shape), shape)  # raises otherwise
    assert f"{shape.edges} edges" in capsys.readouterr().out


def test_masked_and_plain_passes_run_the_same_model(trace):
    seconds = masked_forward.compare(tiny.bridge("no_positions"), trace, SIZES, repeats=2)
    assert all(s > 0 for s in (*seconds.masked, *seconds.plain))
    with pytest.raises(RuntimeError, match="logits differ"):
        masked_forward.compare(tiny.bridge("no_positions"), trace, (0.01,), repeats=1)
    for controls in (False, True):
        seconds = masked_forward.curve(tiny.bridge("no_positions"), trace, controls, repeats=1)
        assert all(s > 0 for s in (*seconds.masked, *seconds.plain))


def test_one_by_one_gives_the_curve_of_the_whole_job(trace):
    model = tiny.bridge("no_positions")
    curve = trace_job.whole_job(model, trace.prompt.ids, SIZES)
    alone = trace_job.one_by_one(model, trace.prompt.ids, SIZES)
    assert trace_job.largest_difference(curve, alone) < trace_job.TOLERANCE
    assert (alone["tv"].iloc[:3] > 0.01).all()  # the masks bite

    shifted = alone.assign(random_tv=alone["random_tv"] + 0.5)
    assert trace_job.largest_difference(curve, shifted) > 0.4


def test_tables_have_a_row_a_size_and_an_importance(trace, monkeypatch):
    model = tiny.bridge("no_positions")
    table = sparse_seconds.seconds_by_size(model, trace, SIZES, repeats=1)
    assert table["edges"].tolist() == [trace.edge_count(s) for s in SIZES]

    monkeypatch.setattr(importance, "ENOUGH_SECONDS", 1e-9)
    graph = sl.token_graph(model, tiny.PROMPT)
    table = importance.seconds_by_importance(graph, importance.NAMES)
    assert table["importance"].tolist() == [*IMPORTANCES, "leverage(8)"]


def test_what_is_timed_beside_an_estimator_runs_its_passes(monkeypatch):
    model = tiny.bridge("no_positions")
    graph = sl.token_graph(model, tiny.PROMPT)
    start = sl.extract(graph, "l2", order="scheduled")
    fit = fit_to(model, graph, None, ZERO, GRADIENT_BUDGET)
    forward, backward = [], []

    def log_probs(model, architecture, rows):
        forward.append(len(rows))
        return weighted_log_probs(model, architecture, rows)

    def differentiated(value, rows, **options):
        backward.append(len(options["grad_outputs"]))
        return gradients(value, rows, **options)

    monkeypatch.setattr(fitting, "weighted_log_probs", log_probs)
    monkeypatch.setattr(fitting, "gradients", differentiated)
    table = fitting.schedules(model, graph)
    fitting.pruning_passes(fit, start, int(table["forward"].iloc[0]))
    assert sum(forward) == table["forward"].iloc[0]
    assert sum(backward) == table["backward"].iloc[0]
    assert table["passes"].tolist() == (table["forward"] + table["backward"]).tolist()
    assert table["passes"].iloc[2] < table["passes"].iloc[0] / 1.5  # the shorter schedule
    assert table["density"].between(0, 1).all()


def test_cost_adds_its_stages_up(trace):
    cost = cost_of_trace(tiny.bridge("no_positions"), trace.prompt.ids)
    assert (cost.tokens, cost.layers, cost.heads) == (12, 2, 4)
    assert cost.seconds == pytest.approx(cost.graph + cost.extract + cost.curve)
    assert 0 <= cost.above_gb < cost.peak_gb


def test_exponent_is_the_slope_of_the_upper_half():
    x = [16, 32, 64, 128, 256, 512]
    assert exponent(x, [9, 1, 7, *(n**2.5 for n in x[3:])]) == pytest.approx(2.5)
    assert exponent(x[:4], [5, *(3 * n for n in x[1:4])]) == pytest.approx(1)


def test_the_table_is_indented(capsys):
    common.show(pd.DataFrame({"size": [0.5], "edges": [7]}))
    assert all(line.startswith("  ") for line in capsys.readouterr().out.splitlines())
