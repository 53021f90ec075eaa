"""Learned rankings against their steps written out over the slow forward pass in float64."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor

import strace_lens as sl
from strace_lens.measures.distributions import jensen_shannon
from strace_lens.traces.edges import EdgeTensors, GraphShape
from strace_lens.traces.fit import bytes_per_gradient_row, fit_to
from strace_lens.traces.masked_run import masked_logits
from strace_lens.traces.rows import MaskedRows
from strace_lens.traces.schedule import FREE, kept_last, schedule
from strace_lens.utils.choices import GRADIENT_BUDGET
from tests import cases, tiny
from tests.cases import architecture, model_of
from tests.oracle_weighted import weighted_logits
from tests.traces.test_prune import UNIFORM, order_of
from tests.traces.test_schedule import in_order
from tests.weighted import FEW, REFERENCES, TOKENS, graph_of, replacement_of, shape_of

SIZES = (0.05, 0.6)
Pair = tuple[int, int]


@functools.cache
def start_of(name: str) -> sl.Trace:
    return sl.extract(graph_of(name), "l2", order="scheduled")


def learned(name: str = "llama", **options) -> sl.Trace:
    given = {"start": start_of(name), "sizes": SIZES, "steps": 4, **options}
    return sl.learn(model_of(name), graph_of(name), **given)


# The recipe of shared/estimators.md, "learned ranking", and its two ties.


def slow_learn(
    name: str,
    kind: str = "zero",
    *,
    steps: int,
    rate: float,
    max_shift: float = math.inf,
    context_fraction: float = 0.0,
    seed: int = 0,
    keep: tuple[str, ...] = (),
    pair: Pair | None = None,
) -> EdgeTensors:
    """Ranks after so many steps of four rows from `start_of` on."""
    shape = shape_of(name)
    target = pair or graph_of(name).activations.logits.double().softmax(-1)
    generator = torch.Generator().manual_seed(seed)
    candidates = shape.reachable()
    candidates.residual[:] = False
    candidates = candidates.flat()
    start = torch.full(candidates.shape, -math.inf, dtype=torch.float64)
    flat = start_of(name).ranks.flat()
    start[candidates] = -(flat[candidates].double() + 1).log()
    now, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    whole = EdgeTensors(
        **{k: torch.full_like(x, k in keep) for k, x in shape.reachable()._asdict().items()}
    )
    edges = shape.edges - int((whole.flat() & shape.reachable().flat()).sum())
    low, high = (s * edges for s in SIZES)
    for step in range(steps):
        ranks = by_parameters(now, shape, keep)
        chances = torch.rand(4, generator=generator)
        counts = [int(low * (high / low) ** ((i + float(c)) / 4)) for i, c in enumerate(chances)]
        besides = [
            random_edges(shape, context_fraction * (i % 2), generator)
            for i in range(4)
            if context_fraction
        ]
        direction = torch.zeros_like(start)
        for i, count in enumerate(counts):
            there = ranks.map(lambda r, count=count: r < count)
            for more in [whole, *besides[i : i + 1]]:
                there = EdgeTensors(*map(torch.logical_or, there, more))
            slope = slow_slope(name, kind, there, target)
            place = torch.zeros_like(start)
            place[candidates] = (ranks.flat()[candidates].double() + 1).log()
            near = torch.sigmoid((math.log(count) - place) / 0.5)
            slope = torch.where(candidates, slope * 4 * near * (1 - near), 0.0)
            direction += slope / slope[candidates].square().mean().sqrt() / 4
        first = 0.9 * first + 0.1 * direction
        second = 0.98 * second + 0.02 * direction**2
        size = rate * (1 - 0.95 * step / steps)
        moved = first / (1 - 0.9 ** (step + 1))
        spread = (second / (1 - 0.98 ** (step + 1))).sqrt() + 0.3
        now = now - size * moved / spread
        now = torch.where(candidates, now.clamp(start - max_shift, start + max_shift), start)
    return by_parameters(now, shape, keep)


def by_parameters(parameters: Tensor, shape: GraphShape, keep: tuple[str, ...] = ()) -> EdgeTensors:
    """The schedule, those kinds last that are kept."""
    cost = FREE if "residual" in keep else 3.0
    return kept_last(schedule(shape.split(parameters.exp().float()), shape, cost), shape, keep)


def random_edges(shape: GraphShape, chance: float, generator: torch.Generator) -> EdgeTensors:
    """Each edge with the same chance, and every residual edge if there is any."""
    attention, residual, mlp = (torch.rand(s, generator=generator) for s in shape.tensor_shapes)
    always = torch.full(residual.shape, chance > 0)
    return EdgeTensors(attention < chance, always, mlp < chance)


def slow_slope(name: str, kind: str, keep: EdgeTensors, target: Tensor | Pair) -> Tensor:
    """Slope of the divergence in the weight of every edge, in or out of the mask.

    That is the Jensen-Shannon divergence from a distribution or, for a pair of tokens, the squared
    error of the logit difference.
    """
    weights = EdgeTensors(*(k.double().requires_grad_() for k in keep))
    logits = weighted_logits(name, TOKENS, weights, REFERENCES[kind])
    if isinstance(target, tuple):
        own = graph_of(name).activations.logits.double()
        first, second = target
        divergence = (logits[first] - logits[second] - own[first] + own[second]) ** 2
    else:
        output = logits.softmax(-1)
        mixed = (output + target) / 2
        divergence = sum((p * (p / mixed).log()).sum() / 2 for p in (output, target))
    found = torch.autograd.grad(divergence, list(weights), materialize_grads=True)
    return EdgeTensors(*found).flat()


@pytest.mark.extended
@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("llama", "zero", {"steps": 1, "rate": 0.3}),
        ("llama", "mean", {"steps": 4, "rate": 0.2, "max_shift": 0.25, "seed": 1}),
        ("gemma2", "resample", {"steps": 3, "rate": 0.4, "context_fraction": 0.3}),
        (
            "gptj",
            "zero",
            {"steps": 3, "rate": 0.5, "context_fraction": 0.1, "max_shift": 0.5, "seed": 2},
        ),
        ("opt", "mean", {"steps": 2, "rate": 0.3}),
        pytest.param(
            *("attention_only", "zero", {"steps": 3, "rate": 0.3}),
            marks=tiny.needs_hooked_transformer,
        ),
    ],
)
def test_steps_are_those_of_the_slow_forward(name: str, kind: str, options: dict) -> None:
    instead, shape = replacement_of(name, kind), shape_of(name)
    ours = learned(name, replacement=instead, **options)
    truth = slow_learn(name, kind, **options)
    assert order_of(ours) == in_order(truth, shape)
    assert order_of(ours) != in_order(by_parameters(-log_rank(name), shape), shape)


@pytest.mark.parametrize(
    ("name", "keep", "options"),
    [
        ("llama", ("attention",), {"steps": 2, "rate": 0.3}),
        ("gemma2", ("mlp",), {"steps": 2, "rate": 0.4, "context_fraction": 0.3}),
        ("gptj", ("residual",), {"steps": 2, "rate": 0.5, "seed": 2}),
    ],
)
def test_steps_of_what_can_be_ablated_are_those_of_the_slow_forward(
    name: str, keep: tuple[str, ...], options: dict
) -> None:
    ours = learned(name, keep=keep, **options)
    assert in_order(ours.ranks, ours.shape) == in_order(
        slow_learn(name, keep=keep, **options), ours.shape
    )


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_steps_towards_a_logit_difference_are_those_of_the_slow_forward(name: str) -> None:
    options = {"steps": 2, "rate": 0.3}
    ours = learned(name, target=(17, 8), **options)
    assert order_of(ours) == in_order(slow_learn(name, pair=(17, 8), **options), ours.shape)
    assert ours.metadata["importance"] == "squared difference"


def log_rank(name: str) -> Tensor:
    return (start_of(name).ranks.flat().double() + 1).log()


@pytest.mark.parametrize("name", FEW)
def test_a_little_reach_leaves_the_start_rescheduled(name: str) -> None:
    shape = shape_of(name)
    scores = (-log_rank(name)).masked_fill(~shape.reachable().flat(), -math.inf)
    held = learned(name, steps=2, max_shift=1e-6)
    assert order_of(held) == in_order(by_parameters(scores, shape), shape)
    assert order_of(held) != order_of(learned(name, steps=2))


def divergence(name: str, trace: sl.Trace) -> float:
    """Mean Jensen-Shannon divergence from the model's output over sizes evenly in the logarithm."""
    counts = torch.logspace(*(math.log10(s * trace.edges) for s in SIZES), 25).int()
    rows = MaskedRows(trace.prompt.tensor, trace.shape, trace.ranks, counts * 0, counts)
    logits = masked_logits(model_of(name), architecture(name), [rows])
    full = graph_of(name).activations.logits[None]
    return float(jensen_shannon(full.log_softmax(-1), logits.log_softmax(-1)).mean())


@pytest.mark.extended
@pytest.mark.parametrize("name", [name for name in FEW if name != "gptj"])
def test_learning_brings_the_traces_nearer_to_the_output(name: str) -> None:
    # GPT-J is left out, whose start is so near already that steps only move about; and without the
    # bound on the shift not every model comes nearer in twelve steps.
    before = divergence(name, start_of(name))
    after = divergence(name, learned(name, steps=12, max_shift=0.5, context_fraction=0.3))
    assert after < before


@pytest.mark.extended
def test_a_seed_gives_the_same_trace_and_another_one_another() -> None:
    for options in ({}, {"context_fraction": 0.3}):
        first, same, other = (order_of(learned(seed=s, **options)) for s in (3, 3, 4))
        assert first == same
        assert first != other


def test_learning_goes_on_from_a_file_as_from_the_trace_itself(tmp_path) -> None:
    start = learned()
    sl.save(start, tmp_path / "learned")
    one, two = (learned(start=s, seed=1) for s in (start, sl.load(tmp_path / "learned")))
    assert order_of(one) == order_of(two) != order_of(start)
    assert one.metadata == two.metadata
    assert one.metadata["start"] == start.metadata
    assert one.metadata["passes"] == {"forward": 32, "backward": 32}


def test_says_how_it_was_made_and_what_it_cost() -> None:
    seen: list[tuple[int, int, str]] = []
    options = {"target": UNIFORM, "steps": 3, "seed": 5, "context_fraction": 0.2}
    trace = learned(**options, progress=lambda *said: seen.append(said))
    assert seen == [(step, 3, "learning") for step in (1, 2, 3)]
    assert trace.metadata["passes"] == {"forward": 12, "backward": 12}
    facts = {
        "seed": 5,
        "steps": 3,
        "context_fraction": 0.2,
        "max_shift": None,
        "sizes": list(SIZES),
    }
    assert facts.items() <= trace.metadata.items()
    assert (trace.metadata["importance"], trace.metadata["order"]) == ("jensen-shannon", "learned")
    assert (trace.metadata["target"], trace.metadata["start"]) == (
        "given",
        start_of("llama").metadata,
    )
    assert learned(steps=1, max_shift=0.5).metadata["max_shift"] == 0.5


def test_the_memory_budget_changes_no_more_than_rounding_does() -> None:
    row = bytes_per_gradient_row(architecture("llama"), len(TOKENS))
    reachable = shape_of("llama").reachable().flat()
    budgets = (1, 3 * row, GRADIENT_BUDGET)
    found = [learned(memory_budget=b, context_fraction=0.3, steps=3).ranks.flat() for b in budgets]
    assert torch.corrcoef(torch.stack([f[reachable].double() for f in found])).min() > 0.999


def test_another_target_makes_another_trace() -> None:
    own = cases.full_logits("llama", TOKENS).softmax(-1)
    assert order_of(learned(target=own)) == order_of(learned())
    assert order_of(learned(target=UNIFORM)) != order_of(learned())
    certain = torch.zeros(tiny.VOCABULARY)  # a target of zeros but one has no infinite slope
    certain[7] = 1
    assert order_of(learned(target=certain)) != order_of(learned(target=UNIFORM))


def test_half_precision_learns_from_single_gradients() -> None:
    half = cases.fresh_bridge("llama", torch.bfloat16)
    graph = sl.token_graph(half, TOKENS)
    own = fit_to(half, graph, None, replacement_of("llama", "zero"), 1).target
    assert own.dtype == torch.float32
    options = {"start": start_of("llama"), "steps": 4, "sizes": SIZES}
    trace = sl.learn(half, graph, **options, allow_other_model=True)
    order_of(trace)
    reachable = trace.shape.reachable().flat()
    both = [t.ranks.flat()[reachable].double() for t in (trace, learned())]
    assert torch.corrcoef(torch.stack(both))[0, 1] > 0.8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"max_shift": 0.0}, "max_shift must be positive; got 0.0"),
        ({"max_shift": float("nan")}, "max_shift must be positive; got nan"),
        ({"context_fraction": -0.1}, r"context_fraction must lie in \[0, 1\).*; got -0.1"),
        ({"context_fraction": 1.0}, r"context_fraction must lie in \[0, 1\).*; got 1.0"),
        ({"context_fraction": float("nan")}, "context_fraction .* got nan"),
        ({"sizes": (0.5, 0.1)}, r"sizes must rise within \(0, 1\].*; got \(0.5, 0.1\)"),
        ({"sizes": (0.1, 0.1)}, "sizes must rise"),
        ({"sizes": (0.1, 1.5)}, "sizes must rise"),
        ({"sizes": (1e-4, 0.5)}, "which is 0.0173 to 86.5 of 173 edges"),
        ({"sizes": (float("nan"), 0.5)}, "sizes must rise"),
    ],
)
def test_options_out_of_their_range_are_refused(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        learned(**options)
