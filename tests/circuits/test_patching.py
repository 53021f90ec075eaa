"""Patched runs against a slow route in float64, edge by edge; nodes against plain ablation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from strace_lens.circuits.circuit import circuit_of_nodes
from strace_lens.circuits.experiment import Experiment
from strace_lens.circuits.patch_hooks import KnownRun
from strace_lens.circuits.patching import plan_pass, run_plan
from strace_lens.circuits.task import Task
from tests import oracle, tiny
from tests.cases import POST_NORM, relative_error
from tests.circuits.made import (
    MASKS,
    NAMES,
    double_experiment,
    hooks_on,
    random_keep,
    slow_run,
    tiny_task,
)
from tests.circuits.oracle_patching import full_run

TASK = tiny_task()
# Hugging Face's norms and softmaxes, and all rotations, are worked out in single precision even in
# a model of double precision. Everything else would agree to 1e-9.
TOLERANCE = 5e-6


def patch(
    experiment: Experiment,
    keep: Tensor,
    task: Task = TASK,
    *,
    every_position: bool = False,
    known: KnownRun | None = None,
    from_replaced: bool = False,
) -> Float[Tensor, "pair read vocab"]:
    """One circuit on every pair, by the package, in float64."""
    exists = experiment.graph.exists if keep.ndim == 2 else experiment.graph.exists[..., None]
    cut = (1 - keep.double()) * exists
    plan = plan_pass(
        experiment.model,
        experiment.wiring,
        cut.expand(len(task), *cut.shape).contiguous(),
        experiment.replaced,
        task.clean.shape[1],
        streams=experiment.replaced_streams if from_replaced else None,
        is_run=experiment.ablation == "resample",
        known=known,
        from_replaced=from_replaced,
    )
    assert plan.from_replaced is from_replaced or bool(keep.all())
    model, wiring = experiment.model, experiment.wiring
    with torch.no_grad():
        return run_plan(
            model, wiring, task.clean, task.lengths, plan, every_position=every_position
        )


def untouched(experiment: Experiment) -> KnownRun:
    """The run that cuts nothing."""
    clean = experiment.clean
    exists = experiment.graph.exists
    return KnownRun(torch.zeros(exists.shape).double(), clean.outputs, clean.streams)


@pytest.mark.parametrize("name", NAMES)
def test_the_slow_route_is_the_model_at_full_and_the_corrupted_run_at_empty(name: str) -> None:
    """The oracle itself, held against the untouched model."""
    experiment = double_experiment(name, TASK)
    for share, truth in ((1.0, TASK.clean), (0.0, TASK.corrupted)):
        keep = torch.full(experiment.graph.exists.shape, share)
        with torch.no_grad():
            full = experiment.model(truth)
        for pair in range(len(TASK)):
            assert relative_error(slow_run(name, TASK, pair, keep).logits, full[pair]) < TOLERANCE


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("name", NAMES)
def test_random_masks_give_what_the_slow_route_gives(name: str, kind: str) -> None:
    experiment = double_experiment(name, TASK)
    keep = random_keep(experiment.graph, seed=len(kind), **MASKS[kind])
    ours = patch(experiment, keep, every_position=True)
    assert ours.dtype == torch.float64
    for pair in range(len(TASK)):
        assert relative_error(ours[pair], slow_run(name, TASK, pair, keep).logits) < TOLERANCE


@pytest.mark.extended
@settings(max_examples=12)
@given(
    name=st.sampled_from([n for n in NAMES if isinstance(n, str)]),
    seed=st.integers(0, 2**20),
    density=st.sampled_from([0.02, 0.3, 0.9, 0.99]),
    positions=st.sampled_from([0, 6]),
    ablation=st.sampled_from(["resample", "mean", "zero"]),
)
def test_masks_of_any_density_and_ablation_give_what_the_slow_route_gives(
    name: str, seed: int, density: float, positions: int, ablation: str
) -> None:
    """Sparse and dense ones: only some sources and destinations are then cut at all."""
    experiment = double_experiment(name, TASK, ablation=ablation)
    keep = random_keep(experiment.graph, seed, soft=True, positions=positions) < density
    truth = slow_run(name, TASK, 1, keep, ablation).logits[-1]
    assert relative_error(patch(experiment, keep)[1, 0], truth) < TOLERANCE


@pytest.mark.parametrize("density", [0.03, 0.2, 0.6])
@pytest.mark.parametrize("kind", ["boolean", "soft by position"])
@pytest.mark.parametrize("name", [n for n in NAMES if n not in POST_NORM])
def test_what_is_kept_added_to_the_replaced_streams_gives_what_the_slow_route_gives(
    name: str, kind: str, density: float
) -> None:
    """In sparse masks some nodes, and some blocks, do not run at all."""
    experiment = double_experiment(name, TASK)
    keep = random_keep(experiment.graph, seed=len(kind), **{**MASKS[kind], "soft": True})
    keep = torch.where(keep < density, keep if "soft" in kind else torch.ones_like(keep), 0)
    known = untouched(experiment)
    ours = patch(experiment, keep, every_position=True, known=known, from_replaced=True)
    for pair in range(len(TASK)):
        assert relative_error(ours[pair], slow_run(name, TASK, pair, keep).logits) < TOLERANCE


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "attn_only"])
def test_the_mean_of_streams_is_the_stream_of_mean_outputs(name: str) -> None:
    """No source is then as what replaces it, so all that reach the logits matter."""
    if name not in NAMES:
        pytest.skip("not with this transformer-lens")
    experiment = double_experiment(name, TASK, ablation="mean")
    keep = random_keep(experiment.graph, 3, soft=True) < 0.1
    ours = patch(experiment, keep, known=untouched(experiment), from_replaced=True)
    truth = slow_run(name, TASK, 1, keep, "mean").logits[-1]
    assert relative_error(ours[1, 0], truth) < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_blocks_below_the_first_edge_that_goes_do_not_run(name: str) -> None:
    """The embedding of a run that starts late means nothing: what is read is the stored stream."""
    experiment = double_experiment(name, TASK)
    graph, last = experiment.graph, experiment.graph.layers - 1
    keep = random_keep(graph, 5)
    keep[graph.destination_layers < last] = True
    known, _ = untouched(experiment), experiment.replaced  # which run all blocks
    ran: list[int] = []
    points = [
        experiment.model.hook_dict[f"blocks.{layer}.attn.hook_z"] for layer in range(graph.layers)
    ]
    for layer, point in enumerate(points):
        point.add_hook(lambda value, hook, layer=layer: ran.append(layer))
    try:
        ours = patch(experiment, keep, known=known)
    finally:
        for point in points:
            point.remove_hooks("fwd")
    assert ran == [last]
    assert relative_error(ours[1, 0], slow_run(name, TASK, 1, keep).logits[-1]) < TOLERANCE


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_each_edge_alone_is_cut_as_by_the_slow_route(name: str) -> None:
    """Every twentieth edge of the graph, all others whole."""
    experiment = double_experiment(name, TASK)
    with torch.no_grad():
        full = experiment.model(TASK.clean[:1])[0, -1]
    moved = 0
    for d, s in experiment.graph.exists.nonzero().tolist()[::20]:
        keep = torch.ones(experiment.graph.exists.shape)
        keep[d, s] = 0
        ours, truth = patch(experiment, keep)[0, 0], slow_run(name, TASK, 0, keep).logits[-1]
        assert relative_error(ours, truth) < TOLERANCE
        moved += relative_error(ours, full) > 1e-4
    assert moved > 3


# Nodes


def ablated(experiment: Experiment, node: str) -> Float[Tensor, "vocab"]:
    """The first clean prompt with what a node writes replaced at its hook point."""
    other, layer = experiment.corrupted[0], int(node[1]) if node != "embed" else 0

    def z(value: Tensor, hook: Any) -> Tensor:
        head = int(node.partition(".h")[2])
        by_head = value.clone().reshape(*value.shape[:2], experiment.graph.heads, -1)
        by_head[:, :, head] = other.z[layer][:1, :, head]
        return by_head.reshape(value.shape)

    if node == "embed":
        hook = ("blocks.0.hook_resid_pre", lambda value, hook: other.embed[:1])
    elif node.startswith("m"):
        hook = (f"blocks.{layer}.hook_mlp_out", lambda value, hook: other.mlp[layer][:1])
    else:
        hook = (f"blocks.{layer}.attn.hook_z", z)
    with torch.no_grad():
        return experiment.model.run_with_hooks(TASK.clean[:1], fwd_hooks=[hook])[0, -1]


@pytest.mark.parametrize("name", NAMES)
def test_a_node_without_its_out_edges_is_the_node_ablated_at_its_hook_point(name: str) -> None:
    """A norm after attention sees the ablated head, but not the ablated edges: it is left out."""
    experiment = double_experiment(name, TASK)
    names = experiment.graph.source_names
    for node in names:
        if name in POST_NORM and node.startswith("a"):
            continue
        circuit = circuit_of_nodes(experiment.graph, [n for n in names if n != node])
        assert (
            relative_error(patch(experiment, circuit.keep)[0, 0], ablated(experiment, node)) < 5e-6
        )


# Gradients


GRADIENTS = ["llama", "gpt2", "gptj", "gemma2", "bloom"]


def directional(
    function: Callable[[Tensor], Tensor], at: Tensor, direction: Tensor, step: float = 1e-5
) -> float:
    """A central difference."""
    return float(function(at + step * direction) - function(at - step * direction)) / (2 * step)


@pytest.mark.parametrize(
    ("positions", "start"),
    [
        *((positions, "soft") for positions in (0, 6)),
        (0, "full"),
        (6, "empty"),
        pytest.param(6, "full", marks=pytest.mark.extended),
        pytest.param(0, "empty", marks=pytest.mark.extended),
    ],
)
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_in_the_masks_are_those_of_differences_of_the_slow_route(
    name: str, positions: int, start: str
) -> None:
    """At the full mask too, where no edge is cut, and one edge at a time as well as all."""
    task = TASK.take([0])
    experiment = double_experiment(name, task)
    exists = experiment.graph.exists
    soft = random_keep(experiment.graph, 7, soft=True, positions=positions).double()
    keep = {"soft": soft, "full": torch.ones_like(soft), "empty": torch.zeros_like(soft)}[start]
    exists = exists if not positions else exists[..., None].expand(keep.shape)
    weight = torch.randn(tiny.VOCABULARY, generator=torch.Generator().manual_seed(3)).double()

    keep.requires_grad_()
    cut = (1 - keep) * exists
    model, wiring = experiment.model, experiment.wiring
    plan = plan_pass(model, wiring, cut[None], experiment.replaced, task.clean.shape[1])
    logits = run_plan(model, wiring, task.clean, task.lengths, plan, gradient=True)
    (gradient,) = torch.autograd.grad((logits[0, 0] * weight).sum(), keep)
    keep = keep.detach()

    def slow(keep: Tensor) -> Tensor:
        return slow_run(name, task, 0, keep).logits[-1] @ weight

    generator = torch.Generator().manual_seed(5)
    directions = [torch.randn(keep.shape, generator=generator).double() * exists]
    cells = exists.nonzero().tolist()
    for cell in cells[:: len(cells) // 2 - 1]:
        directions.append(torch.zeros_like(keep))
        directions[-1][tuple(cell)] = 1
    largest = float(gradient.abs().max())
    for direction in directions:
        truth = directional(slow, keep, direction)
        ours = float((gradient * direction).sum())
        scale = max(abs(truth), largest)
        assert abs(ours - truth) < 2e-4 * scale


def test_no_hook_is_left_and_a_users_own_hook_takes_part() -> None:
    experiment = double_experiment("llama", TASK)
    keep = random_keep(experiment.graph, 1)
    before = hooks_on(experiment.model)
    plain = patch(experiment, keep)
    assert hooks_on(experiment.model) == before
    point = experiment.model.hook_dict["blocks.1.hook_mlp_out"]
    point.add_hook(lambda value, hook: value + 0.5)
    try:
        own = patch(experiment, keep)
    finally:
        point.remove_hooks("fwd")
    assert relative_error(own, plain) > 1e-3
    assert torch.equal(patch(experiment, keep), plain)


def test_the_slow_route_reads_names_not_numbers() -> None:
    """One named edge, cut by hand in the oracle's own terms."""
    experiment = double_experiment("llama", TASK)
    graph = experiment.graph
    d, s = graph.parse_edge("a0.h1->a2.kv0<v>")
    keep = torch.ones(graph.exists.shape)
    keep[d, s] = 0
    cut = slow_run("llama", TASK, 0, keep)
    full = full_run(oracle.plain("llama"), TASK.clean[0].tolist())
    changed = [n for n in graph.source_names if not torch.equal(cut.outputs[n], full.outputs[n])]
    assert changed == ["a2.h0", "a2.h1", "m2"]
    assert relative_error(patch(experiment, keep)[0, 0], cut.logits[-1]) < TOLERANCE
