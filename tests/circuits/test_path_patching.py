"""Path patching against slow hooked runs by hand: clean, corrupted, frozen, patched."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from strace_lens.circuits.interventions import ablate
from strace_lens.circuits.path_patching import path_patch
from strace_lens.circuits.wiring import component_graph
from tests.cases import model_of
from tests.circuits.made import single_pairs, slow_metric, tiny_task, uneven_task

TASK = tiny_task(3, 6)
HEADS, GROUPS = 4, {"gpt2": 4, "gptj": 4, "llama": 2}

Cache = dict[str, Tensor]


def cached(model: Any, tokens: Tensor) -> Cache:
    with torch.no_grad():
        return dict(model.run_with_cache(tokens)[1])


def run(model: Any, tokens: Tensor, writes: dict[str, Any], read: Sequence[str] = ()) -> Any:
    """Logits and what some points carry, in a run in which others are written."""
    kept: Cache = {}

    def keep(name: str) -> Any:
        return lambda value, hook: kept.__setitem__(name, value.clone())

    def write(name: str) -> Any:
        return lambda value, hook: writes[name](value.clone())

    hooks = [(name, write(name)) for name in writes] + [(name, keep(name)) for name in read]
    with torch.no_grad():
        return model.run_with_hooks(tokens, fwd_hooks=hooks), kept


def part(value: Tensor, head: int | None, count: int) -> Tensor:
    """A view of one head of a point, or of all of it."""
    return value if head is None else value.view(*value.shape[:2], count, -1)[:, :, head]


def by_hand(
    name: str,
    sender: tuple[str, int | None],
    receivers: Sequence[tuple[str, int | None]],
    *,
    freeze_mlps: bool,
    at: Any = slice(None),
    swap: bool = False,
) -> Tensor:
    """Metric of each pair after four runs of hooks, as the paper has them.

    Args:
        name: of the tiny model.
        sender: the hook point of its output, and its head.
        receivers: hook points of their inputs, each with a head; `last` for the logits.
        freeze_mlps: freeze MLPs in the third run too.
        at: positions of the sender.
        swap: exchange clean and corrupted.
    """
    model, tokens, others = model_of(name), TASK.clean, TASK.corrupted
    tokens, others = (others, tokens) if swap else (tokens, others)
    layers = range(component_graph(model).layers)
    last = f"blocks.{layers[-1]}.hook_resid_post"
    receivers = [(last if point == "last" else point, head) for point, head in receivers]
    own, other = cached(model, tokens), cached(model, others)
    frozen = [f"blocks.{layer}.attn.hook_z" for layer in layers]
    frozen += [f"blocks.{layer}.hook_mlp_out" for layer in layers] * freeze_mlps

    def freeze(point: str) -> Any:
        def write(value: Tensor) -> Tensor:
            fixed = own[point].clone() if point in frozen else value
            if point == sender[0]:
                mine, theirs = (part(x, sender[1], HEADS) for x in (fixed, other[point]))
                mine[:, at] = theirs[:, at]
            return fixed

        return write

    writes = {point: freeze(point) for point in {*frozen, sender[0]}}
    _, kept = run(model, tokens, writes, [point for point, _ in receivers])

    def receive(point: str) -> Any:
        def write(value: Tensor) -> Tensor:
            count = HEADS if point.endswith("_q") else GROUPS[name]
            for head in (h for p, h in receivers if p == point):
                part(value, head, count)[:] = part(kept[point], head, count)
            return value

        return write

    logits, _ = run(model, tokens, {point: receive(point) for point, _ in receivers})
    return torch.tensor([slow_metric(logits[pair], TASK, pair) for pair in range(len(TASK))])


RECEIVERS = {
    "queries": (["a1.h2.q"], [("blocks.1.attn.hook_q", 2)]),
    "logits": (["logits"], [("last", None)]),
    "an MLP and the logits": (
        ["m1", "logits"],
        [("blocks.1.mlp.hook_in", None), ("last", None)],
    ),
    "an earlier and a later one": (
        ["m0", "a1.h0.q"],
        [("blocks.0.mlp.hook_in", None), ("blocks.1.attn.hook_q", 0)],
    ),
}
SENDERS = {
    "a0.h1": ("blocks.0.attn.hook_z", 1),
    "m0": ("blocks.0.hook_mlp_out", None),
    "embed": ("blocks.0.hook_resid_pre", None),
}


CASES = [
    ("gpt2", "a0.h1", "queries", False),
    ("gpt2", "a0.h1", "an earlier and a later one", False),
    ("gpt2", "m0", "an MLP and the logits", False),
    ("gpt2", "embed", "queries", True),
    ("llama", "a0.h1", "an MLP and the logits", True),
    ("gptj", "a0.h1", "an MLP and the logits", False),
]
ALL = itertools.product(["gpt2", "llama", "gptj"], SENDERS, RECEIVERS, [True, False])
OTHERS = [pytest.param(*case, marks=pytest.mark.extended) for case in ALL if case not in CASES]


@pytest.mark.parametrize(("name", "sender", "receivers", "freeze_mlps"), [*CASES, *OTHERS])
def test_paths_against_four_runs_by_hand(
    name: str, sender: str, receivers: str, freeze_mlps: bool
) -> None:
    names, points = RECEIVERS[receivers]
    theirs = by_hand(name, SENDERS[sender], points, freeze_mlps=freeze_mlps)
    (row,) = path_patch(model_of(name), TASK, [sender], names, freeze_mlps=freeze_mlps).to_dict(
        "records"
    )
    assert row["metric"] == pytest.approx(float(theirs.mean()), abs=1e-4)


def test_positions_direction_and_a_kind_of_senders() -> None:
    _, points = RECEIVERS["queries"]
    options: dict[str, Any] = {"receivers": "a1.h2<q>", "positions": [-1, slice(0, 3)]}
    table = path_patch(model_of("gpt2"), TASK, "head", direction="denoise", **options)
    assert table["name"].tolist() == [f"a0.h{head}" for head in range(HEADS) for _ in range(2)]
    assert table["edges"].tolist() == [1, 3] * HEADS
    for row in (0, 3):
        at = [[5], slice(0, 3)][row % 2]
        sender = ("blocks.0.attn.hook_z", row // 2)
        theirs = by_hand("gpt2", sender, points, freeze_mlps=False, at=at, swap=True)
        assert table["metric"][row] == pytest.approx(float(theirs.mean()), abs=1e-4)
    one_row = path_patch(
        model_of("gpt2"), TASK, "head", direction="denoise", memory_budget=1, **options
    )
    pd.testing.assert_frame_equal(one_row, table, rtol=1e-4, atol=1e-5)


def test_with_mlps_frozen_and_one_receiver_it_is_the_ablation_of_an_edge() -> None:
    model, edges = model_of("llama"), ["a0.h3->a1.h1<q>", "a0.h2->a1.kv0<k>"]
    for edge, ablation in zip(edges, ("mean", "zero"), strict=True):
        sender, receiver = edge.split("->")
        path = path_patch(model, TASK, sender, receiver, freeze_mlps=True, ablation=ablation)
        cut = ablate(model, TASK, edges=[edge], ablation=ablation)
        assert path["metric"][0] == pytest.approx(cut["metric"][0], abs=1e-5)


def test_padded_pairs_and_a_node_as_receiver() -> None:
    task, model = uneven_task(), model_of("llama")
    together = path_patch(model, task, [["a0.h1", "m0"]], ["a1.h3"])["metric"][0]
    inputs = ["a1.h3.q", "a1.kv1.k", "a1.kv1.v"]
    each = [
        path_patch(model, one, [["a0.h1", "m0"]], inputs)["metric"][0] for one in single_pairs(task)
    ]
    assert together == pytest.approx(sum(each) / 3, abs=1e-5)


@pytest.mark.parametrize(
    ("senders", "options", "said"),
    [
        (["a1.h0"], {"receivers": "m0"}, "a1.h0 writes after every receiver has read"),
        (["a0.h0"], {"receivers": []}, "without a receiver"),
        (["a0.h0"], {"receivers": "embed"}, "'embed' reads nothing"),
        (["a0.h0"], {"receivers": "a1.h7.q"}, "the nearest is 'a1.h"),
        (["a0.h0.q"], {}, "'a0.h0<q>' cannot be a sender"),
        (["a0.h0"], {"direction": "denoise", "ablation": "zero"}, "use resample"),
        ([], {}, "no sender"),
    ],
)
def test_what_cannot_be_patched_is_refused(
    senders: list[str], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        path_patch(model_of("llama"), TASK, senders, **options)
