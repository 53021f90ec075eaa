"""Many circuits on many pairs: the metric by the slow route, batches, padding, refusals."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from strace_lens.circuits.circuit import (
    Circuit,
    circuit_of_nodes,
    empty_circuit,
    full_circuit,
)
from strace_lens.circuits.experiment import make_experiment
from strace_lens.circuits.run_circuits import (
    circuit_logits,
    circuit_metric,
    patched_pairs,
    run_circuits,
    run_known,
    stack,
)
from strace_lens.circuits.task import Task
from strace_lens.circuits.wiring import component_graph
from strace_lens.model.architecture import UnsupportedModelError
from tests import cases, oracle, real
from tests.cases import fresh_bridge, model_of, relative_error
from tests.circuits.made import (
    MASKS,
    NAMES,
    hooks_on,
    random_keep,
    single_pairs,
    slow_metric,
    slow_run,
    tiny_task,
    uneven_task,
)
from tests.circuits.oracle_patching import by_name, full_run, patched_run
from tests.families import FAMILIES, family
from tests.oracle_hugging_face import _llama_like

TASK = tiny_task()
PAIRS = range(len(TASK))


def slow_metrics(name: str, circuits: list[Circuit], task: Task, **options: Any) -> Tensor:
    return torch.tensor(
        [
            [
                slow_metric(slow_run(name, task, pair, c.keep, **options).logits, task, pair)
                for pair in range(len(task))
            ]
            for c in circuits
        ]
    )


def some_circuits(name: str) -> list[Circuit]:
    """One of every kind of mask."""
    graph = component_graph(model_of(name))
    masks = [random_keep(graph, seed, **kind) for seed, kind in enumerate(MASKS.values())]
    return [Circuit(graph, mask) for mask in masks]


@pytest.mark.parametrize("name", NAMES)
def test_the_full_circuit_is_the_model_and_the_empty_one_the_corrupted_run(name: str) -> None:
    graph, model = component_graph(model_of(name)), model_of(name)
    circuits = [full_circuit(graph), empty_circuit(graph)]
    with torch.no_grad():
        plain = torch.tensor(
            [
                [slow_metric(model(tokens[None])[0], TASK, i) for i, tokens in enumerate(prompts)]
                for prompts in (TASK.clean, TASK.corrupted)
            ]
        )
    for direction in ("noise", "denoise"):
        assert (
            relative_error(run_circuits(model, TASK, circuits, direction=direction), plain) < 1e-4
        )


@pytest.mark.parametrize("direction", ["noise", "denoise"])
@pytest.mark.parametrize("name", NAMES)
def test_random_circuits_score_as_by_the_slow_route(name: str, direction: Any) -> None:
    circuits = some_circuits(name)
    ours = run_circuits(model_of(name), TASK, circuits, direction=direction)
    assert ours.dtype == torch.float32
    if direction == "noise":
        slow = slow_metrics(name, circuits, TASK)
    else:  # the corrupted prompt, where a circuit's edges carry what they do on the clean one
        opposite = [dataclasses.replace(c, keep=1 - c.keep.float()) for c in circuits]
        slow = slow_metrics(name, opposite, TASK, swap=True)
    assert relative_error(ours, slow) < 1e-4


@pytest.mark.parametrize("ablation", ["mean", "mean-over-positions", "zero"])
@pytest.mark.parametrize("name", NAMES)
def test_the_other_ablations_score_as_by_the_slow_route(name: str, ablation: str) -> None:
    circuits = [*some_circuits(name)[::3], empty_circuit(component_graph(model_of(name)))]
    ours = run_circuits(model_of(name), TASK, circuits, ablation=ablation)
    assert relative_error(ours, slow_metrics(name, circuits, TASK, ablation=ablation)) < 1e-4


@pytest.mark.extended
@pytest.mark.parametrize("name", ["llama", "gptj", "gemma2"])
def test_a_batch_gives_what_each_circuit_gives_alone_in_any_budget(name: str) -> None:
    circuits, model = some_circuits(name), model_of(name)
    batch = run_circuits(model, TASK, circuits)
    alone = torch.cat([run_circuits(model, TASK, [c]) for c in circuits])
    by_pair = torch.cat([run_circuits(model, TASK.take([i]), circuits) for i in PAIRS], 1)
    one_row = run_circuits(model, TASK, circuits, memory_budget=1)
    for other in (alone, by_pair, one_row):
        assert relative_error(other, batch) < 1e-5
    experiment = make_experiment(model, TASK, memory_budget=1)
    runs = circuit_logits(experiment, stack(experiment, circuits))
    assert [len(pairs) for _, pairs in runs] == [1] * (len(circuits) * len(TASK))
    # Both untouched prompts of each pair: circuits begin with one, and are replaced from the other.
    assert experiment.passes.forward_rows == (len(circuits) + 2) * len(TASK)


@pytest.mark.extended
@pytest.mark.parametrize("direction", ["noise", "denoise"])
@pytest.mark.parametrize("ablation", ["resample", "zero"])
@pytest.mark.parametrize("name", NAMES)
def test_padded_pairs_score_as_each_without_padding(
    name: str, ablation: str, direction: Any
) -> None:
    if direction == "denoise" and ablation == "zero":
        return
    graph, task = component_graph(model_of(name)), uneven_task()
    circuits = [
        Circuit(graph, random_keep(graph, 3)),
        Circuit(graph, random_keep(graph, 4, soft=True)),
    ]
    options: dict[str, Any] = {"ablation": ablation, "direction": direction}
    together = run_circuits(model_of(name), task, circuits, **options)
    apart = [run_circuits(model_of(name), one, circuits, **options) for one in single_pairs(task)]
    assert relative_error(together, torch.cat(apart, 1)) < 1e-5


def test_what_stands_in_the_padding_does_not_matter() -> None:
    graph, task = component_graph(model_of("llama")), uneven_task()
    circuit = Circuit(graph, random_keep(graph, 3))
    before = run_circuits(model_of("llama"), task, [circuit])
    padding = torch.arange(7) >= task.lengths[:, None]
    task.clean[padding] = 77
    task.corrupted[padding] = 55
    assert torch.equal(run_circuits(model_of("llama"), task, [circuit]), before)


@pytest.mark.parametrize("metric", ["kl_divergence", "recovered"])
def test_a_task_read_at_every_position_is_measured_there(metric: str) -> None:
    graph = component_graph(model_of("llama"))
    task = tiny_task(metric=metric, every_position=True)
    circuit = Circuit(graph, random_keep(graph, 3))
    ours = run_circuits(model_of("llama"), task, [circuit])[0]
    plain = oracle.plain("llama")
    for pair in PAIRS:
        row = slow_run("llama", task, pair, circuit.keep).logits
        clean, corrupted = (
            full_run(plain, t[pair].tolist()).logits for t in (task.clean, task.corrupted)
        )
        if metric == "recovered":
            truth = ((row - corrupted) * (clean - corrupted)).sum()
            truth = truth / (clean - corrupted).square().sum()
        else:
            p, q = clean.log_softmax(-1), row.log_softmax(-1)
            truth = (p.exp() * (q - p)).sum(-1).mean()
        assert float(ours[pair]) == pytest.approx(float(truth), rel=1e-4)


def test_a_node_mask_is_the_edge_mask_of_all_its_out_edges() -> None:
    graph = component_graph(model_of("llama"))
    keep = graph.exists.clone()
    keep[:, graph.source_index("a1.h2")] = False
    names = [n for n in graph.source_names if n != "a1.h2"]
    node, edges = circuit_of_nodes(graph, names), Circuit(graph, keep)
    assert torch.equal(node.keep, edges.keep)
    first, second = run_circuits(model_of("llama"), TASK, [node, edges])
    assert torch.equal(first, second)


def test_cells_that_are_no_edges_are_never_patched() -> None:
    graph = component_graph(model_of("gptj"))
    keep = random_keep(graph, 5)
    circuits = [Circuit(graph, keep & graph.exists), Circuit(graph, keep | ~graph.exists)]
    first, second = run_circuits(model_of("gptj"), TASK, circuits)
    assert torch.equal(first, second)


def test_masks_of_all_kinds_go_into_one_batch() -> None:
    """A mask of 0 and 1 scores the same as booleans, as weights and at every position."""
    graph = component_graph(model_of("llama"))
    keep = random_keep(graph, 6)
    masks = [keep, keep.float(), keep[..., None].expand(-1, -1, 6), keep.double(), keep.int()]
    found = run_circuits(model_of("llama"), TASK, [Circuit(graph, mask) for mask in masks])
    for other in found[1:]:
        assert relative_error(other, found[0]) < 1e-6


@pytest.mark.parametrize("density", [0.1, 0.9])
@pytest.mark.parametrize("name", NAMES)
def test_circuits_that_share_a_run_are_as_run_alone(name: str, density: float) -> None:
    """One edge dropped after another, from the logits back to the first block."""
    experiment = make_experiment(model_of(name), TASK)
    keep = (random_keep(experiment.graph, 4, soft=True) < density) & experiment.graph.exists
    cells = keep.nonzero().flip(0)[:: max(1, int(keep.sum()) // 7)]
    masks = keep.repeat(len(cells) + 1, 1, 1)
    masks[(torch.arange(len(cells)), *cells.T)] = False
    known = run_known(experiment, keep)
    alone = slow_metrics(name, [Circuit(experiment.graph, mask) for mask in masks], TASK)
    assert relative_error(circuit_metric(experiment, masks, known=known), alone) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_prompts_that_differ_late_give_the_slow_routes_metric(name: str) -> None:
    """Before their first difference nothing is changed, so MLPs need not run there."""
    task = tiny_task()
    task.corrupted[0, :4], task.corrupted[1, :2] = task.clean[0, :4], task.clean[1, :2]
    graph = component_graph(model_of(name))
    circuits = [Circuit(graph, random_keep(graph, 8, soft=True) < d) for d in (0.1, 0.3, 0.8)]
    found = run_circuits(model_of(name), task, circuits)
    truth = slow_metrics(name, circuits, task)
    assert relative_error(found, truth) < 1e-5
    experiment = make_experiment(model_of(name), task)
    for circuit, own in zip(circuits, truth, strict=True):
        known = run_known(experiment, circuit.keep)
        again = circuit_metric(experiment, circuit.keep[None], known=known)
        assert relative_error(again[0], own) < 1e-5


@pytest.mark.parametrize(
    "name",
    [n if n == "olmoe" else pytest.param(n, marks=pytest.mark.families) for n in FAMILIES],
)
def test_what_does_not_run_changes_nothing_in_further_families(name: str) -> None:
    """Against passes in which every block, node and projection runs.

    OLMoE norms the queries of all heads at once, so that heads which write nothing matter.
    """
    if name == "falcon_grouped":
        pytest.skip("TransformerLens cannot wrap it")
    try:
        experiment = make_experiment(family(name), TASK)
    except UnsupportedModelError as error:
        pytest.skip(str(error))
    for density in (0.05, 0.3, 0.9):
        keep = (random_keep(experiment.graph, 4, soft=True) < density) & experiment.graph.exists
        cells = keep.nonzero().flip(0)[:: max(1, int(keep.sum()) // 3)]
        masks = keep.repeat(len(cells) + 1, 1, 1)
        masks[(torch.arange(len(cells)), *cells.T)] = False
        whole = []
        for mask in masks:
            cut = ((~mask) & experiment.graph.exists).float().expand(len(TASK), *mask.shape)
            with torch.no_grad():
                logits = patched_pairs(
                    experiment, TASK.clean, torch.tensor(PAIRS), cut, experiment.replaced
                )
            whole.append(experiment.score(logits, experiment.reference))
        truth = torch.stack(whole)
        scale = experiment.clean.logits.abs().max()
        for known in (None, run_known(experiment, keep)):
            ours = circuit_metric(experiment, masks, known=known)
            assert float((ours - truth).abs().max() / scale) < 1e-5


def test_gradients_are_not_asked_for() -> None:
    graph = component_graph(model_of("llama"))
    soft = random_keep(graph, 1, soft=True).requires_grad_()
    assert not run_circuits(model_of("llama"), TASK, [Circuit(graph, soft)]).requires_grad


# What is left behind


@pytest.mark.parametrize("name", ["llama", "gptj", *cases.HOOKED])
def test_no_hook_and_no_flag_is_left_behind_also_after_an_error(name: str) -> None:
    model = model_of(name)
    experiment = make_experiment(model, TASK)
    masks = stack(experiment, some_circuits(name)[:1])
    before = hooks_on(model)
    circuit_metric(experiment, masks)
    assert hooks_on(model) == before
    point = model.hook_dict["blocks.1.hook_resid_post"]
    point.add_hook(lambda value, hook: value * float("nan"))
    try:
        with_users = hooks_on(model)
        with pytest.raises(FloatingPointError, match="NaN or infinite logits"):
            circuit_metric(experiment, masks)
        assert hooks_on(model) == with_users
    finally:
        point.remove_hooks("fwd")
    assert hooks_on(model) == before


def test_a_run_that_is_left_half_way_leaves_nothing_behind() -> None:
    model = model_of("llama")
    experiment = make_experiment(model, TASK, memory_budget=1)
    before = hooks_on(model)
    runs = circuit_logits(experiment, stack(experiment, some_circuits("llama")))
    logits, _ = next(runs)
    assert len(logits) == 1
    runs.close()
    assert hooks_on(model) == before


def test_the_masks_and_the_task_stay_as_they_were() -> None:
    circuits, task = some_circuits("llama"), tiny_task()
    kept = [c.keep.clone() for c in circuits]
    run_circuits(model_of("llama"), task, circuits)
    assert all(torch.equal(c.keep, k) for c, k in zip(circuits, kept, strict=True))
    assert torch.equal(task.clean, TASK.clean)
    assert torch.equal(task.corrupted, TASK.corrupted)


# Bad input


def _by_position(width: int) -> Circuit:
    graph = component_graph(model_of("llama"))
    return Circuit(graph, random_keep(graph, 0, positions=width))


def test_circuits_that_do_not_fit_are_an_error() -> None:
    model, full = model_of("llama"), full_circuit(component_graph(model_of("llama")))
    with pytest.raises(ValueError, match="no circuits to run; give at least one"):
        run_circuits(model, TASK, [])
    other = full_circuit(component_graph(model_of("mistral")))
    with pytest.raises(ValueError, match=r"belongs to tiny-mistral .* not to tiny-llama"):
        run_circuits(model, TASK, [full, other])
    with pytest.raises(ValueError, match=r"has 5 token positions, but the prompts .* have 6"):
        run_circuits(model, TASK, [_by_position(5)])
    with pytest.raises(ValueError, match="by token position need prompts of one length"):
        run_circuits(model, uneven_task(), [_by_position(7)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "denoise", "ablation": "zero"}, "denoising .*: use resample"),
        ({"direction": "denoise", "ablation": "mean"}, "denoising .*: use resample"),
        ({"ablation": "noise"}, "unknown ablation 'noise'"),
        ({"metric": "loss"}, "unknown metric 'loss'"),
        ({"memory_budget": -1}, "memory_budget must be positive; got -1 bytes"),
    ],
)
def test_unknown_options_are_an_error(options: dict[str, Any], message: str) -> None:
    full = full_circuit(component_graph(model_of("llama")))
    with pytest.raises(ValueError, match=message):
        run_circuits(model_of("llama"), TASK, [full], **options)


def test_a_model_that_cannot_be_patched_is_refused_by_name() -> None:
    model = fresh_bridge("llama")
    model.hook_dict["blocks.2.hook_resid_post"].add_hook(lambda value, hook: value + 1)
    full = full_circuit(component_graph(model_of("llama")))
    with pytest.raises(UnsupportedModelError, match="tiny-llama cannot be"):
        run_circuits(model, TASK, [full])


# The real model


def real_task() -> Task:
    """One pair of prompts of equal length: another country."""
    model = real.smollm2()
    clean, corrupted, answers = (
        model.to_tokens(text, prepend_bos=False)
        for text in ("The capital of France is", "The capital of Japan is", " Paris Tokyo")
    )
    return Task(
        name="capitals",
        clean=clean,
        corrupted=corrupted,
        lengths=torch.tensor([clean.shape[1]]),
        answers=answers[:, :1],
        incorrect=answers[:, 1:2],
        metric="logit_difference",
    )


@pytest.mark.extended
def test_smollm2_end_to_end() -> None:
    model, task = real.smollm2(), real_task()
    graph = component_graph(model)
    assert (graph.layers, graph.heads, graph.kv_heads, graph.edges) == (30, 9, 3, 70_651)
    random = Circuit(graph, random_keep(graph, 0, soft=True) > 0.1)
    before = hooks_on(model)
    circuits = [full_circuit(graph), empty_circuit(graph), random]
    (full,), (empty,), (ours,) = run_circuits(model, task, circuits).tolist()
    assert hooks_on(model) == before
    for found, prompts in ((full, task.clean), (empty, task.corrupted)):
        with torch.no_grad():
            logits = model(prompts)[0]
        assert abs(found - slow_metric(logits, task, 0)) < 1e-4 * float(logits[-1].abs().max())
    assert abs(ours - full) > 0.1

    plain = _llama_like(real.hugging_face_smollm2())  # in float32, as the model itself
    with torch.no_grad():
        other = full_run(plain, task.corrupted[0].tolist()).outputs
        keep = by_name(graph, random.keep, torch.float32)
        slow = patched_run(plain, task.clean[0].tolist(), keep, other).logits
    assert abs(ours - slow_metric(slow, task, 0)) < 1e-4 * float(slow[-1].abs().max())
