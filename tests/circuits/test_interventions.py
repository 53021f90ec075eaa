"""Ablation and activation patching by name, against slow runs edge by edge and hooks by hand."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.interventions import ablate, activation_patch
from strace_lens.circuits.run_circuits import run_circuits
from strace_lens.circuits.wiring import component_graph
from tests import oracle
from tests.cases import model_of
from tests.circuits.made import slow_metric, slow_run, tiny_task, uneven_task
from tests.circuits.oracle_patching import full_run

TASK = tiny_task(3, 6)
PAIRS = range(len(TASK))
ENDS = ("effect_low", "effect_high")


def slow(name: str, cut: Tensor, *, swap: bool = False) -> float:
    """The mean metric with the marked edges ablated, by the oracle, one run a pair."""
    keep = (~cut).double()
    runs = [slow_run(name, TASK, pair, keep, swap=swap).logits for pair in PAIRS]
    return sum(slow_metric(run, TASK, pair) for pair, run in enumerate(runs)) / len(TASK)


def ends(name: str) -> tuple[float, float]:
    """The mean metric of the clean and of the corrupted prompts, by the oracle."""
    model = oracle.plain(name)
    clean, corrupted = (
        sum(slow_metric(full_run(model, p.tolist()).logits, TASK, i) for i, p in enumerate(prompts))
        for prompts in (TASK.clean, TASK.corrupted)
    )
    return clean / len(TASK), corrupted / len(TASK)


def marked(name: str, *edges: tuple[Any, Any]) -> Tensor:
    """A mask of edges by (destination, source), either None for all, from names."""
    graph = component_graph(model_of(name))
    mask = torch.zeros_like(graph.exists)
    for destination, source in edges:
        to = slice(None) if destination is None else graph.destination_names.index(destination)
        of = slice(None) if source is None else graph.source_names.index(source)
        mask[to, of] = True
    return mask & graph.exists


@pytest.mark.parametrize(("name", "key"), [("gpt2", "a1.h0<k>"), ("llama", "a1.kv0<k>")])
def test_every_kind_of_name_is_what_slow_runs_make_of_its_edges(name: str, key: str) -> None:
    masks = {
        "a0.h1 + a1.h3": marked(name, (None, "a0.h1"), (None, "a1.h3")),
        "m0": marked(name, (None, "m0")),
        "a1.h2<q>": marked(name, ("a1.h2<q>", None)),
        key: marked(name, (key, None)),
        "a0.h1->a1.h2<q> + m0->logits": marked(name, ("a1.h2<q>", "a0.h1"), ("logits", "m0")),
        "mask 0": marked(name, ("m1", "a0.h0"), ("logits", "embed")),
    }
    table = ablate(
        model_of(name),
        TASK,
        nodes=[["a0.h1", "a1.h3"], "m0", "a1.h2.q", key.replace("<k>", ".k")],
        edges=[["a0.h1->a1.h2.q", "m0->logits"]],
        masks=[masks["mask 0"]],
    )
    clean, corrupted = ends(name)
    assert table["name"].tolist() == list(masks)
    assert table["edges"].tolist() == [int(mask.sum()) for mask in masks.values()]
    found = [slow(name, mask) for mask in masks.values()]
    assert table["metric"].tolist() == pytest.approx(found, abs=1e-4)
    assert table["effect"].tolist() == pytest.approx([clean - m for m in found], abs=1e-4)
    fractions = [(clean - m) / (clean - corrupted) for m in found]
    assert table["fraction"].tolist() == pytest.approx(fractions, rel=1e-3, abs=1e-3)
    assert (
        (table["effect_low"] <= table["effect"]) & (table["effect"] <= table["effect_high"])
    ).all()
    assert table["layer"].tolist() == [pd.NA, 0, 1, 1, pd.NA, pd.NA]
    assert table["head"].tolist() == [pd.NA, pd.NA, 2, 0, pd.NA, pd.NA]


def by_hand(name: str, point: str, index: Any, at: Any, *, into: str) -> Tensor:
    """Metric of each pair when one activation of the other run is written by a hook of our own."""
    model: Any = model_of(name)
    run, other = (TASK.clean, TASK.corrupted)[:: 1 if into == "clean" else -1]
    kept: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: Any) -> None:
        kept[point] = value.clone()

    def write(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        heads = value.view(*value.shape[:2], 4, -1) if index is not None else value
        theirs = kept[point].view(heads.shape)
        where = (slice(None), at) if index is None else (slice(None), at, index)
        heads[where] = theirs[where]
        return value

    with torch.no_grad():
        model.run_with_hooks(other, fwd_hooks=[(point, keep)])
        logits = model.run_with_hooks(run, fwd_hooks=[(point, write)])
    return torch.tensor([slow_metric(logits[pair], TASK, pair) for pair in PAIRS])


POINTS = {
    "head": ("blocks.0.attn.hook_z", 2, "a0.h2"),
    "q": ("blocks.1.attn.hook_q", 3, "a1.h3<q>"),
    "v": ("blocks.1.attn.hook_v", 1, "a1.h1<v>"),
    "mlp_out": ("blocks.0.hook_mlp_out", None, "m0"),
    "attn_out": ("blocks.0.hook_attn_out", None, "blocks.0.hook_attn_out"),
    "resid_pre": ("blocks.1.hook_resid_pre", None, "blocks.1.hook_resid_pre"),
}


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("kind", POINTS)
def test_kinds_of_activations_are_what_a_hook_by_hand_writes(kind: str, direction: Any) -> None:
    point, index, label = POINTS[kind]
    table = activation_patch(
        model_of("gpt2"), TASK, kind, positions=[2, [0, 5], slice(3, 6)], direction=direction
    )
    rows = table[table["name"] == label].set_index("position")
    assert list(rows.index) == ["2", "0,5", "3:6"]
    into = "corrupted" if direction == "denoise" else "clean"
    for place, at in (("2", [2]), ("0,5", [0, 5]), ("3:6", slice(3, 6))):
        theirs = by_hand("gpt2", point, index, at, into=into).mean()
        assert rows.loc[place, "metric"] == pytest.approx(float(theirs), abs=1e-4)


def test_each_position_of_each_head_and_the_shape_of_a_heat_map() -> None:
    table = activation_patch(model_of("gpt2"), TASK, positions="each")
    graph = component_graph(model_of("gpt2"))
    assert len(table) == graph.layers * graph.heads * 6
    assert table["position"].tolist()[:7] == [0, 1, 2, 3, 4, 5, 0]
    everywhere = activation_patch(model_of("gpt2"), TASK)
    assert everywhere.pivot(index="layer", columns="head", values="fraction").shape == (
        graph.layers,
        4,
    )
    last = table[table["position"] == 5].reset_index(drop=True)
    again = activation_patch(model_of("gpt2"), TASK, positions=-1)
    pd.testing.assert_frame_equal(last, again)


def test_all_streams_before_the_first_block_restore_the_clean_run() -> None:
    (row,) = activation_patch(model_of("llama"), TASK, ["embed"]).to_dict("records")
    assert row["fraction"] == pytest.approx(1, abs=1e-4)
    whole = activation_patch(model_of("llama"), TASK, "resid_pre")
    assert (whole["fraction"] - 1).abs().max() < 1e-4


def test_small_budgets_and_masks_by_position_change_nothing() -> None:
    name = "llama"
    graph = component_graph(model_of(name))
    mask = torch.zeros(*graph.exists.shape, 6, dtype=torch.bool)
    mask[graph.parse_edge("a0.h1->logits")] = torch.tensor([0, 0, 1, 0, 0, 1]).bool()
    mask[graph.parse_edge("m0->logits")] = True
    options: dict[str, Any] = {"nodes": ["a0.h0"], "masks": [mask], "positions": [1, 4]}
    table = ablate(model_of(name), TASK, **options)
    assert table["name"].tolist() == ["a0.h0", "a0.h0", "mask 0"]
    assert table["edges"].tolist()[-1] == 8
    direct = run_circuits(model_of(name), TASK, [Circuit(graph, ~mask)]).mean()
    assert table["metric"].tolist()[-1] == pytest.approx(float(direct), abs=1e-5)
    small = ablate(model_of(name), TASK, **options, memory_budget=1)
    pd.testing.assert_frame_equal(small, table, rtol=1e-4, atol=1e-5)


def test_accuracy_is_the_share_of_pairs_that_are_right() -> None:
    graph, model = component_graph(model_of("llama")), model_of("llama")
    table = ablate(model, TASK, masks=[graph.exists, marked("llama", (None, "m0"))])
    with torch.no_grad():
        last = model(TASK.corrupted)[:, -1]
    best = last.gather(1, TASK.answers).amax(1)
    right = (best > last.gather(1, TASK.incorrect).amax(1)).double().mean()
    assert table["accuracy"].tolist()[0] == pytest.approx(float(right))
    without = tiny_task(2, 6, metric="kl_divergence")
    without.answers.fill_(-1)
    assert ablate(model, without, nodes=["m0"])["accuracy"].isna().all()


def test_a_task_whose_ends_are_alike_has_no_fraction() -> None:
    task = tiny_task(2, 6)
    task.corrupted.copy_(task.clean)
    table = ablate(model_of("llama"), task, nodes=["m0"], ablation="zero")
    assert table["fraction"].isna().all()
    assert table["effect"].abs().max() > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "nothing to ablate"),
        ({"nodes": ["a0.h9"]}, "no source of .* named 'a0.h9'; the nearest is 'a0.h"),
        ({"nodes": ["a1.h2.k"]}, r"groups its queries, .* head 2 reads a1.kv1<k>"),
        ({"nodes": ["a1.kv7.k"]}, r"no destination of .* 'a1.kv7<k>'; the nearest is 'a1.kv"),
        ({"nodes": [[]]}, "without a node changes nothing"),
        ({"edges": [[]]}, "without an edge changes nothing"),
        ({"edges": ["m1->a0.h0.q"]}, "its source comes too late"),
        ({"masks": [torch.ones(2, 2, dtype=torch.bool)]}, r"mask 0 is torch.bool of \(2, 2\)"),
        ({"nodes": ["m0"], "positions": [6]}, "position 6 lies outside the prompts of 6 tokens"),
        ({"nodes": ["m0"], "positions": [1.5]}, "position 1.5 lies outside"),
        ({"nodes": ["m0"], "positions": []}, "names no token position"),
        ({"nodes": ["m0"], "positions": [slice(4, 2)]}, "empty place"),
        ({"nodes": ["m0"], "positions": "all"}, "unknown positions 'all'"),
    ],
)
def test_what_cannot_be_ablated_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ablate(model_of("llama"), TASK, **options)


def test_more_refusals() -> None:
    empty = torch.zeros_like(component_graph(model_of("llama")).exists)
    with pytest.raises(ValueError, match="mask 0 marks no edge"):
        ablate(model_of("llama"), TASK, masks=[empty])
    with pytest.raises(ValueError, match="need prompts of one length"):
        ablate(model_of("llama"), uneven_task(), nodes=["m0"], positions=[0])
    with pytest.raises(ValueError, match=r"no source of .* named 'heads'"):
        activation_patch(model_of("llama"), TASK, "heads")
    with pytest.raises(ValueError, match="has no mlp_out"):
        activation_patch(model_of("attention_only"), TASK, "mlp_out")
