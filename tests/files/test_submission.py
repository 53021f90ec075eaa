"""Folders for MIB's circuit track, read by a reader that knows nothing of ours."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.graph import ComponentGraph
from strace_lens.circuits.scores import Scores
from strace_lens.files import submission
from strace_lens.files.interchange import save_importances
from strace_lens.files.result_files import ResultFileError
from strace_lens.files.submission import (
    PERCENTAGES,
    entry_name,
    load_submission,
    missing_for_leaderboard,
    save_submission,
)

PLAIN = ComponentGraph("plain", layers=3, heads=4, kv_heads=4)
GROUPED = ComponentGraph("grouped", layers=3, heads=4, kv_heads=2)
NAMES: dict[str, Any] = {"task": "ioi", "model": "gpt2", "d_model": 16}


def drawn(graph: ComponentGraph, *, nodes: bool = False) -> Scores:
    shape = (graph.sources,) if nodes else graph.exists.shape
    values = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    return Scores(graph, values * graph.exists, "drawn")


def their_edges(path: Path) -> dict[str, dict[str, Any]]:
    """The edges of a file, after what `Graph.from_json` of EAP-IG asks of one."""
    content = json.loads(path.read_text())
    assert set(content) >= {"cfg", "nodes", "edges"}
    assert set(content["cfg"]) == {"n_layers", "n_heads", "parallel_attn_mlp", "d_model"}
    assert all(set(edge) == {"score", "in_graph"} for edge in content["edges"].values())
    assert all(type(node["in_graph"]) is bool for node in content["nodes"].values())
    return content["edges"]


@pytest.mark.parametrize("graph", [PLAIN, GROUPED], ids=["plain", "grouped"])
def test_scores_are_one_file_that_reads_back(tmp_path: Path, graph: ComponentGraph) -> None:
    scores = drawn(graph)
    entry = save_submission(scores, tmp_path / "new" / "eap", **NAMES)
    assert entry == tmp_path / "new" / "eap" / "ioi_gpt2"
    (file,) = entry.iterdir()
    edges = their_edges(file)
    # Counted as EAP-IG does: 13 sources of 3 layers, q, k and v of every head.
    assert len(edges) == sum(12 * (1 + 5 * i) + (5 + 5 * i) for i in range(3)) + 16
    read = load_submission(entry, graph)
    assert isinstance(read, Scores)
    assert read.method == "eap"
    assert torch.allclose(read.values, scores.values.double(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("graph", [PLAIN, GROUPED], ids=["plain", "grouped"])
@pytest.mark.parametrize("absolute", [True, False])
def test_nine_circuits_are_nested_and_as_large_as_they_may_be(
    tmp_path: Path, graph: ComponentGraph, absolute: bool
) -> None:
    scores = drawn(graph)
    entry = save_submission(scores, tmp_path, circuits=True, absolute=absolute, **NAMES)
    names = sorted(f"circuit_{p:g}.json" for p in PERCENTAGES)
    assert sorted(path.name for path in entry.iterdir()) == names
    before: set[str] = set()
    for percentage in PERCENTAGES:
        edges = their_edges(entry / f"circuit_{percentage:g}.json")
        inside = {name for name, edge in edges.items() if edge["in_graph"]}
        most = percentage / 100 * len(edges)
        assert most - (2 if graph is GROUPED else 1) < len(inside) <= most
        assert before <= inside
        before = inside
    read = load_submission(entry, graph)
    assert isinstance(read, dict)
    assert list(read) == sorted(read)
    half = read[max(read)]
    if graph is PLAIN:
        assert torch.equal(half.kept, scores.top(graph.edges // 2, absolute=absolute).kept)


def test_scores_of_nodes_are_written_and_read_as_such(tmp_path: Path) -> None:
    scores = drawn(PLAIN, nodes=True)
    entry = save_submission(scores, tmp_path, level="node", **NAMES)
    nodes = json.loads((entry / "importances.json").read_text())["nodes"]
    assert nodes["input"]["score"] == float(scores.values[-1, 0])
    assert nodes["m2"]["score"] == float(scores.values[-1, -1])
    assert "score" not in nodes["logits"]
    assert {edge["score"] for edge in their_edges(entry / "importances.json").values()} == {0.0}
    read = load_submission(entry, PLAIN)
    assert isinstance(read, Scores)
    assert torch.equal(read.values, scores.values.double())
    with pytest.raises(ValueError, match="drawn scores edges, and those out of embed differ"):
        save_submission(drawn(PLAIN), tmp_path, level="node", overwrite=True, **NAMES)
    with pytest.raises(ValueError, match="nine circuits are sets of edges"):
        save_submission(scores, tmp_path, level="node", circuits=True, **NAMES)


def test_an_entry_is_whole_or_not_there_at_all(tmp_path: Path, monkeypatch) -> None:
    save_submission(drawn(PLAIN), tmp_path, **NAMES)
    with pytest.raises(FileExistsError, match="ioi_gpt2 is there already"):
        save_submission(drawn(PLAIN), tmp_path, **NAMES)

    def fails(circuit: Circuit, path: Path, **options: Any) -> None:
        if "_5" in path.name:
            raise OSError("no space left")
        save_importances(circuit, path, **options)

    monkeypatch.setattr(submission, "save_importances", fails)
    with pytest.raises(OSError, match="no space left"):
        save_submission(drawn(PLAIN), tmp_path, circuits=True, overwrite=True, **NAMES)
    assert [path.name for path in tmp_path.iterdir()] == ["ioi_gpt2"]
    assert isinstance(load_submission(tmp_path / "ioi_gpt2", PLAIN), Scores)
    monkeypatch.undo()
    save_submission(drawn(PLAIN), tmp_path, circuits=True, overwrite=True, **NAMES)
    assert len(list((tmp_path / "ioi_gpt2").iterdir())) == 9


def test_what_does_not_read_back_is_not_kept(tmp_path: Path, monkeypatch) -> None:
    def other(scores: Scores, path: Path, **options: Any) -> None:
        save_importances(dataclasses.replace(scores, values=scores.values + 1), path, **options)

    monkeypatch.setattr(submission, "save_importances", other)
    with pytest.raises(OSError, match="did not read back"):
        save_submission(drawn(PLAIN), tmp_path, **NAMES)
    assert not list(tmp_path.iterdir())


def test_folders_that_are_no_entry_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_submission(tmp_path / "none", PLAIN)
    entry = save_submission(drawn(PLAIN), tmp_path, **NAMES)
    with pytest.raises(ResultFileError, match="layers, heads"):
        load_submission(entry, dataclasses.replace(PLAIN, layers=2))
    (entry / "second.json").write_text("{}")
    with pytest.raises(ResultFileError, match="ioi_gpt2 has 2 files"):
        load_submission(entry, PLAIN)
    (entry / "second.json").rename(entry / "notes.txt")
    with pytest.raises(ResultFileError, match=r"ioi_gpt2 has notes\.txt in it"):
        load_submission(entry, PLAIN)
    wide = dataclasses.replace(
        drawn(PLAIN), values=drawn(PLAIN).values[..., None].expand(-1, -1, 2)
    )
    for circuits in (False, True):
        with pytest.raises(ValueError, match="no token positions"):
            save_submission(wide, tmp_path / "wide", circuits=circuits, **NAMES)


@pytest.mark.parametrize(
    ("task", "model", "name"),
    [
        ("ioi", "gpt2-small", "ioi_gpt2"),
        ("arithmetic_addition", "meta-llama/Llama-3.1-8B", "arithmetic-addition_llama3"),
        ("arc_easy", "google/gemma-2-2b", "arc-easy_gemma2"),
        ("mcqa", "Qwen/Qwen2.5-0.5B", "mcqa_qwen2.5"),
        ("greater-than", "models/My_Model/", "greater-than_my-model"),
        ("ioi", "gpt2-xl", "ioi_gpt2-xl"),
    ],
)
def test_folders_have_the_names_of_the_benchmark(task: str, model: str, name: str) -> None:
    assert entry_name(task, model) == name


def test_what_the_leaderboard_would_not_take_is_said() -> None:
    assert not missing_for_leaderboard(["ioi_gpt2", "mcqa_llama3"])
    lines = missing_for_leaderboard(["ioi_gpt2", "ioi_smollm2"])
    assert len(lines) == 2
    assert lines[0].startswith("ioi_smollm2 is no task and model")
    assert lines[1].endswith("there are 1 and 2")
    with pytest.raises(ValueError, match="needs the names"):
        entry_name("ioi", "/")
