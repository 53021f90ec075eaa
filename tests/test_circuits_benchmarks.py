"""The benchmarks of circuits compare what computes the same thing, and say when it does not."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

import strace_lens as sl
from benchmarks import (
    circuits_attribution,
    circuits_lead,
    circuits_masked,
    circuits_scaling,
    circuits_tasks,
    siit,
)
from benchmarks.circuits_models import gpt2_shape, random_task
from benchmarks.circuits_peers import has_auto_circuit, scores_edges
from strace_lens.circuits.graph import ComponentGraph
from tests import cases

PUBLISHED = Path(__file__).parents[1] / "docs" / "circuits"


def small() -> TransformerBridge:
    return gpt2_shape(layers=2, heads=2, d_head=8, vocabulary=64)


@pytest.fixture(scope="module")
def model() -> TransformerBridge:
    return small()


def test_the_shape_of_gpt2_small_has_its_edges():
    graph = ComponentGraph("gpt2", layers=12, heads=12, kv_heads=12)
    assert graph.edges == 32_491  # the count that auto-circuit has too
    assert sl.component_graph(small()).edges == ComponentGraph("x", 2, 2, 2).edges


def test_random_tasks_have_answers_that_differ(model):
    task = random_task(model, pairs=5, tokens=7)
    assert task.clean.shape == task.corrupted.shape == (5, 7)
    assert len({*task.answers.flatten().tolist(), *task.incorrect.flatten().tolist()}) == 10
    assert torch.equal(task.clean, random_task(model, 5, 7).clean)
    scores = sl.discover(model, task, "eap").values
    assert float(scores.abs().max()) > 1e-3


@pytest.mark.extended
def test_the_plain_forward_is_the_models_own(model, capsys):
    task = random_task(model)
    with torch.no_grad():
        whole = model(task.clean)[:, -1]
    ours = circuits_attribution.plain_forward(model, task)()
    torch.testing.assert_close(ours, whole, rtol=0, atol=1e-5)
    circuits_attribution.against_plain_forward("small", model, 4, repeats=1)
    assert "EAP, times the plain forward, small: " in capsys.readouterr().out


def test_scores_that_differ_are_an_error():
    scores = torch.tensor([[1.0, -2.0]])
    gap = circuits_attribution.expect_equal("a peer", scores, scores + 0.001)
    assert gap == pytest.approx(0.0005, rel=0.01)
    with pytest.raises(RuntimeError, match=r"a peer scores edges differently: by 5\.3e-02"):
        circuits_attribution.expect_equal("a peer", scores, scores + 0.1)
    with pytest.raises(RuntimeError, match="by nan"):
        circuits_attribution.expect_equal("a peer", scores, scores * torch.nan)


@pytest.mark.skipif(not scores_edges(), reason="this TransformerLens scores no edges")
def test_transformer_lens_is_compared(capsys):
    circuits_attribution.against_transformer_lens("small", small, repeats=1)
    assert "attribution_patching, small: " in capsys.readouterr().out


@pytest.mark.skipif(not has_auto_circuit(), reason="auto-circuit is not installed")
def test_auto_circuit_is_compared(capsys):
    circuits_attribution.against_auto_circuit("small", small, repeats=1, memory=True)
    out = capsys.readouterr().out
    assert "EAP against auto-circuit, small: " in out
    assert "EAP's memory against auto-circuit's, small: " in out


def test_masks_are_compared_with_the_same_rows(model, capsys):
    experiment = circuits_masked.ready(model)
    circuits_masked.against_plain("small", experiment, 3, 1.6, repeats=1)
    circuits_masked.batch_against_single("small", experiment, 4, repeats=1)
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert [line.split(":")[0] for line in lines] == [
        "masked forward, 3 rows, small",
        "masked forward, 3 rows, small, by position",
        "masked forward, 3 rows, small, a fifth cut",
        "4 circuits as one batch, small",
    ]


def test_few_edges_cut_lie_between_a_fifth_of_both_ends(model):
    graph = ComponentGraph("some", layers=4, heads=4, kv_heads=4)
    cut = ~circuits_masked.few_cut(graph, 6)
    readers, writers = cut.any(0).any(1), cut.any(0).any(0)
    assert 0 < int(readers.sum()) <= graph.destinations // 5
    assert 0 < int(writers.sum()) <= graph.sources // 5
    assert not torch.equal(cut[0], cut[1])


@pytest.mark.extended
def test_costs_grow_with_the_graph(monkeypatch, capsys):
    monkeypatch.setattr(circuits_scaling, "D_HEAD", 8)
    monkeypatch.setattr(circuits_scaling, "VOCABULARY", 64)
    costs = [circuits_scaling.cost(layers, 2, 4) for layers in (1, 2, 3)]
    assert [c.edges for c in costs] == [
        ComponentGraph("x", layers, 2, 2).edges for layers in (1, 2, 3)
    ]
    assert all(c.eap > 0 and c.masked > 0 for c in costs)
    circuits_scaling.print_table("title:", costs, "layers")
    out = capsys.readouterr().out
    assert out.startswith("title:\n")
    assert "exponent of" in out


def test_runs_of_a_method_are_summed_up_with_an_interval():
    rows = [
        {"task": "a", "method": "eap", "auroc": auroc, "precision": 1.0, "seconds": 2.0}
        for auroc in (0.5, 0.7, 0.9)
    ]
    one = {"task": "a", "method": "random", "auroc": 0.5, "precision": 0.0, "seconds": 0.0}
    eap, random = siit.summary(pd.DataFrame([*rows, one])).to_dict("records")
    assert (eap["task"], eap["method"], eap["runs"], eap["seconds"]) == ("a", "eap", 3, 2.0)
    assert eap["auroc"] == pytest.approx(0.7)
    assert 0.5 <= eap["auroc_low"] < 0.7 < eap["auroc_high"] <= 0.9
    assert eap["precision_low"] == eap["precision_high"] == 1
    assert (random["method"], random["runs"]) == ("random", 1)
    assert random["auroc_low"] != random["auroc_low"]  # NaN: one run has no interval


@pytest.mark.extended
def test_methods_are_held_to_a_semi_synthetic_model(capsys):
    pytest.importorskip("tracr")
    methods = ["edge-patching", "eap", "node-patching", "random"]
    found = siit.table(["siit-detect-ab"], methods, seeds=1, pairs=16)
    assert found["method"].tolist() == methods
    assert set(found["task"]) == {"siit-detect-ab"}
    aurocs = dict(zip(methods, found["auroc"], strict=True))
    assert aurocs["edge-patching"] == 1
    assert aurocs["eap"] > 0.95 > aurocs["node-patching"] > 0.5
    assert "siit-detect-ab, seed 0" in capsys.readouterr().out


def test_a_small_part_of_the_published_table_of_known_circuits_comes_out_again(tmp_path) -> None:
    methods = ["eap", "eap-ig", "strace", "random"]
    table, against = circuits_tasks.run_task("linear", methods, 12, tmp_path)
    circuits_tasks.write(tmp_path, "known.csv", [table], circuits_tasks.KNOWN_COLUMNS)
    ours = pd.read_csv(tmp_path / "known.csv").set_index("method")
    theirs = pd.read_csv(PUBLISHED / "known.csv").query("task == 'linear'").set_index("method")
    numbers = ["cpr", "cmd", "auroc", "precision"]
    assert ours.index.tolist() == methods
    pd.testing.assert_frame_equal(ours[numbers], theirs.loc[methods, numbers], atol=1e-3)
    assert set(against["measure"]) == {"cpr", "cmd"}
    assert set(against["method"]) == {"eap", "strace", "random"}


@pytest.mark.extended
def test_two_methods_are_compared_on_pairs_that_the_tables_do_not_use() -> None:
    model = cases.model_of("llama")
    found = circuits_lead.run_task("induction", 5, model).set_index("measure")
    assert set(found["pairs"]) == {5}
    task = sl.make_task(model, "induction", pairs=2 * circuits_tasks.PAIRS + 5)
    seen, others = task.take(range(circuits_tasks.PAIRS)), task.take(range(-5, 0))
    for method in ("pair-magnitude", "eap-ig"):
        curve = sl.faithfulness(model, others, sl.discover(model, seen, method), ranking="absolute")
        assert found.at["cmd", method] == pytest.approx(curve.cmd)
        assert found.at["cpr", method] == pytest.approx(curve.cpr)
    assert (found["difference"] == found["pair-magnitude"] - found["eap-ig"]).all()


def test_the_published_lead_is_that_of_its_own_columns() -> None:
    published = pd.read_csv(PUBLISHED / "lead.csv")
    assert set(published["pairs"]) == {circuits_lead.EVALUATED}
    assert sorted(set(published["task"])) == sorted(circuits_tasks.LANGUAGE)
    gap = published["pair-magnitude"] - published["eap-ig"]
    np.testing.assert_allclose(published["difference"], gap, atol=1e-4)
    assert published["difference"].between(published["low"], published["high"]).all()
    ahead = np.where(published["measure"] == "cpr", published["low"] > 0, published["high"] < 0)
    assert (published["better"] == ahead).all()


def test_the_readme_quotes_the_published_table():
    published = pd.read_csv(PUBLISHED / "tasks.csv").set_index(["method", "task"])["cmd"]
    lines = (PUBLISHED.parents[1] / "README.md").read_text("utf-8").splitlines()
    (start,) = [n for n, line in enumerate(lines) if line.startswith("| CMD of circuits")]
    tasks = [cell.strip() for cell in lines[start].split("|")[2:-1]]
    rows = list(itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :]))
    assert len(rows) >= 5
    for row in rows:
        name, *cells = (cell.strip(" `*") for cell in row.split("|")[1:-1])
        assert [float(cell) for cell in cells] == [
            pytest.approx(published[name, task], rel=5e-3) for task in tasks
        ]
