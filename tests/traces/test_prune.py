"""Backward pruning against its recipe written out over lists, and what a pruning may be asked."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

import strace_lens as sl
from strace_lens.traces.edges import UNREACHABLE, EdgeTensors, GraphShape
from strace_lens.traces.fisher import fisher_scores
from strace_lens.traces.fit import bytes_per_gradient_row, fit_to
from strace_lens.traces.prune import prune_steps
from strace_lens.traces.schedule import FREE, schedule
from strace_lens.utils.choices import GRADIENT_BUDGET
from tests import cases, tiny
from tests.cases import architecture, model_of
from tests.traces.test_schedule import Edge, in_order, reachable_edges
from tests.weighted import TOKENS, graph_of, replacement_of, shape_of

UNIFORM = torch.full((tiny.VOCABULARY,), 1 / tiny.VOCABULARY)


def pruned(name: str, **options) -> sl.Trace:
    return sl.prune(model_of(name), graph_of(name), **options)


def order_of(trace: sl.Trace) -> list[Edge]:
    """Edges as ranked; every prefix of them hangs from the output."""
    edges = in_order(trace.ranks, trace.shape)
    reached = {(trace.shape.levels - 1, trace.shape.tokens - 1)}
    for edge in edges:
        assert edge.target in reached
        reached.add(edge.source)
    return edges


# The recipe of shared/estimators.md, "backward pruning", edge by edge.


def slow_prune(
    name: str,
    *,
    kind: str = "zero",
    factor: float = 0.7,
    decay: float = 0.5,
    smallest: float = 1e-4,
    seed: int = 0,
    keep: tuple[str, ...] = (),
) -> list[Edge]:
    """Edges in the order that `prune` should rank them, with three probes a step.

    Edges of kinds to keep are in every trace, so that their scores count, but none of them is ever
    dropped: they come last. Where residual edges are among them, columns cost next to nothing.
    """
    model, graph, shape = model_of(name), graph_of(name), shape_of(name)
    fit = fit_to(model, graph, None, replacement_of(name, kind), GRADIENT_BUDGET, keep=keep)
    generator = torch.Generator().manual_seed(seed)
    edges = reachable_edges(shape)
    kept = [e for e in edges if e.kind in keep]
    kept.sort(key=lambda e: (EdgeTensors._fields.index(e.kind), e.index))  # in the order of ids
    total, alive = len(edges), [e for e in edges if e.kind not in keep]
    dropped: list[Edge] = []
    mean: dict[Edge, float] = {}
    while len(alive) >= smallest * total and alive:
        ranks = ranked([*alive, *dropped, *kept], shape)
        found = fisher_scores(fit, ranks, len(alive), probes=3, generator=generator)
        there = [*alive, *kept]
        average = sum(at(found, e) for e in there) / len(there)
        scores = {e: at(found, e) / max(average, 1e-30) for e in there}
        mean = {e: decay * mean[e] + (1 - decay) * s if mean else s for e, s in scores.items()}
        scheduled = schedule(values(mean, shape), shape, FREE if "residual" in keep else None)
        alive = sorted(alive, key=lambda e, order=scheduled: at(order, e))
        left = int(len(alive) * factor)
        while left > 0 and alive[left].residual:  # the column goes with the read it is bought for
            left -= 1
        alive, dropped = alive[:left], alive[left:] + dropped
    order = [*alive, *dropped, *kept]
    return order if keep else held_back(order, shape)


def at(tensors: EdgeTensors, edge: Edge) -> float:
    return float(getattr(tensors, edge.kind)[edge.index])


def values(known: dict[Edge, float], shape: GraphShape) -> EdgeTensors:
    scores = shape.full(0.0, torch.float32)
    for edge, value in known.items():
        getattr(scores, edge.kind)[edge.index] = value
    return scores


def ranked(edges: Sequence[Edge], shape: GraphShape) -> EdgeTensors:
    ranks = shape.full(UNREACHABLE, torch.int32)
    for rank, edge in enumerate(edges):
        getattr(ranks, edge.kind)[edge.index] = rank
    return ranks


def held_back(edges: Sequence[Edge], shape: GraphShape) -> list[Edge]:
    """Each edge as soon as it hangs from the output, and not before."""
    waiting, taken = list(edges), []
    reached = {(shape.levels - 1, shape.tokens - 1)}
    while waiting:
        edge = next(e for e in waiting if e.target in reached)
        waiting.remove(edge)
        taken.append(edge)
        reached.add(edge.source)
    return taken


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {}),
        ("gemma2", {"kind": "mean", "factor": 0.5}),
        ("gptj", {"kind": "resample", "factor": 0.6, "decay": 0.0}),
        ("opt", {"decay": 0.8, "factor": 0.5, "seed": 3}),
        ("mistral", {"factor": 0.5, "smallest": 0.1}),  # a window, and no bias anywhere
        pytest.param("attention_only", {"seed": 1}, marks=tiny.needs_hooked_transformer),
    ],
)
def test_equals_the_recipe_edge_by_edge(name: str, options: dict) -> None:
    instead = replacement_of(name, options.get("kind", "zero"))
    given = {k: v for k, v in options.items() if k != "kind"}
    assert order_of(pruned(name, replacement=instead, **given)) == slow_prune(name, **options)


@pytest.mark.parametrize(
    ("name", "keep", "options"),
    [
        ("llama", ("attention",), {}),
        ("llama", ("mlp",), {"factor": 0.5}),
        ("gptj", ("residual",), {"factor": 0.6, "seed": 1}),
        ("opt", ("residual", "attention"), {"kind": "mean", "factor": 0.5}),
    ],
)
def test_what_is_kept_is_never_pruned_and_comes_last(
    name: str, keep: tuple[str, ...], options: dict
) -> None:
    instead = replacement_of(name, options.get("kind", "zero"))
    given = {k: v for k, v in options.items() if k != "kind"}
    trace = pruned(name, replacement=instead, keep=keep, **given)
    edges = in_order(trace.ranks, trace.shape)
    assert edges == slow_prune(name, keep=keep, **options)
    behind = [edge.kind in keep for edge in edges]
    assert behind == sorted(behind)
    assert trace.metadata["keep"] == list(keep)
    assert edges != in_order(pruned(name, replacement=instead, **given).ranks, trace.shape)


@pytest.mark.extended
def test_a_smallest_size_ends_it_early_and_leaves_the_larger_traces() -> None:
    whole, early = (order_of(pruned("llama", smallest=s)) for s in (1e-4, 0.3))
    count = math.ceil(0.3 * len(whole))
    assert early[count:] == whole[count:]
    assert early[:count] != whole[:count]
    steps = [pruned("llama", smallest=s).metadata["passes"]["forward"] for s in (1e-4, 0.3, 1.0)]
    assert steps[0] > steps[1] > steps[2] == 1


@pytest.mark.parametrize("name", ["llama", "gptj"])
def test_a_seed_gives_the_same_trace_and_another_one_another(name: str) -> None:
    first, same, other = (order_of(pruned(name, factor=0.5, seed=s)) for s in (7, 7, 8))
    assert first == same
    assert first != other


def test_says_how_it_was_made_and_what_it_cost() -> None:
    seen: list[tuple[int, int, str]] = []
    options = {"probes": 2, "factor": 0.6, "decay": 0.25, "smallest": 0.01, "seed": 5}
    trace = pruned("llama", target=UNIFORM, progress=lambda *said: seen.append(said), **options)
    most = prune_steps(0.6, 0.01)
    assert seen == [(step, most, "pruning") for step in range(1, len(seen) + 1)]
    assert 0 < len(seen) <= most
    assert trace.metadata["passes"] == {"forward": len(seen), "backward": 2 * len(seen)}
    assert options.items() <= trace.metadata.items()
    assert (trace.metadata["importance"], trace.metadata["order"]) == ("fisher", "pruned")
    assert (trace.metadata["target"], trace.metadata["start"]) == ("given", None)
    assert "pruned by fisher" in repr(trace)


def test_towards_tokens_each_step_takes_one_backward_pass() -> None:
    trace = pruned("llama", target=("Rome", "Paris"), probes=4)
    passes = trace.metadata["passes"]
    assert passes["forward"] == passes["backward"] > 1
    assert str(trace.target) == "'Rome' against 'Paris'"
    assert order_of(trace) == order_of(pruned("llama", target=("Rome", "Paris"), seed=9))
    assert order_of(trace) != order_of(pruned("llama", target="Rome"))


@pytest.mark.parametrize(("factor", "smallest"), [(0.7, 1e-4), (0.9, 0.05), (0.3, 1e-3)])
def test_there_are_no_more_steps_than_announced(factor: float, smallest: float) -> None:
    trace = pruned("llama", factor=factor, smallest=smallest)
    assert 1 <= trace.metadata["passes"]["forward"] <= prune_steps(factor, smallest)


def test_the_memory_budget_changes_no_more_than_rounding_does() -> None:
    row = bytes_per_gradient_row(architecture("llama"), len(TOKENS))
    wide, narrow = (pruned("llama", memory_budget=b) for b in (GRADIENT_BUDGET, row))
    ranks = torch.stack(
        [t.ranks.flat()[t.shape.reachable().flat()].double() for t in (wide, narrow)]
    )
    assert torch.corrcoef(ranks)[0, 1] > 0.999


def test_another_target_makes_another_trace() -> None:
    own = cases.full_logits("llama", TOKENS).softmax(-1)
    first = order_of(pruned("llama", factor=0.5))
    assert order_of(pruned("llama", factor=0.5, target=own)) == first
    assert order_of(pruned("llama", factor=0.5, target=UNIFORM)) != first


def test_half_precision_is_pruned_from_single_scores() -> None:
    half = cases.fresh_bridge("llama", torch.bfloat16)
    trace = sl.prune(half, sl.token_graph(half, TOKENS), factor=0.5)
    order_of(trace)
    reachable = trace.shape.reachable().flat()
    both = [t.ranks.flat()[reachable].double() for t in (trace, pruned("llama", factor=0.5))]
    assert torch.corrcoef(torch.stack(both))[0, 1] > 0.5


def test_edges_that_carry_nothing_go_first() -> None:
    """A circuit made by hand: one head and one MLP a layer write, the others write zeros."""
    model = cases.fresh_bridge("gpt2")
    live = [2, 0, 3]
    for layer, head in enumerate(live):
        attention = model.blocks[layer].attn.o.original_component.weight
        attention.view(4, 8, 32)[[h for h in range(4) if h != head]] = 0
    graph = sl.token_graph(model, TOKENS)
    trace = sl.prune(model, graph, factor=0.5)
    dead = [e.kind == "attention" and e.index[1] != live[e.index[0]] for e in order_of(trace)]
    assert all(dead[dead.index(True) :])
    assert 0 < dead.index(True) < len(dead) / 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"factor": 0.0}, r"factor must lie in \(0, 1\).*; got 0.0"),
        ({"factor": 1.0}, r"factor must lie in \(0, 1\).*; got 1.0"),
        ({"factor": float("nan")}, "factor .* got nan"),
        ({"decay": -0.1}, r"decay must lie in \[0, 1\); got -0.1"),
        ({"decay": 1.0}, r"decay must lie in \[0, 1\); got 1.0"),
        ({"decay": float("nan")}, "decay .* got nan"),
        ({"smallest": 0.0}, r"sizes must lie in \(0, 1\]; got 0.0"),
        ({"smallest": 1.5}, r"sizes must lie in \(0, 1\]; got 1.5"),
        ({"probes": 0}, "probes must be at least 1; got 0"),
    ],
)
def test_options_out_of_their_range_are_refused(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pruned("llama", **options)
