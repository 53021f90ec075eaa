"""Learned rankings: one step against a slow rewriting, then what steps do and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch

import strace_lens as sl
from strace_lens.ablation import ZERO
from strace_lens.measures import jensen_shannon
from strace_lens.token_graph.edges import UNREACHABLE, is_complete
from strace_lens.token_graph.fit import fit_to
from strace_lens.token_graph.gradients import fixed_weights, gradients, weighted_log_probs
from strace_lens.token_graph.learn import ROWS, WIDTH, _company, learn
from strace_lens.token_graph.schedule import schedule
from tests import tiny
from tests.cases import fresh_bridge, model_of

SIZES = (0.05, 0.5)
PROMPT = "the capital of France is"


def started(name: str = "llama", prompt: str = PROMPT):
    model = model_of(name)
    graph = sl.token_graph(model, prompt)
    return model, graph, sl.extract(graph, "l2", order="scheduled")


def flat(trace: sl.Trace) -> list[int]:
    return trace.ranks.flat().tolist()


def mean_divergence(model, graph, trace) -> float:
    """Mean divergence of the trace from the model over many sizes of the range."""
    fit = fit_to(model, graph, None, ZERO, 2**30)
    counts = [int(graph.shape.edges * s) for s in torch.logspace(-1.3, -0.3, 20).tolist()]
    with torch.no_grad():
        log_q = weighted_log_probs(model, graph.architecture, fit.rows(trace.ranks, counts))
    return float(jensen_shannon(fit.target.log()[None], log_q).mean())


def slow_step(model, graph, start, rate: float, seed: int) -> list[int]:
    """The ranks after one step, edge by edge in plain Python; gradients one row at a time."""
    shape = graph.shape
    fit = fit_to(model, graph, None, ZERO, 2**30)
    generator = torch.Generator().manual_seed(seed)
    share = ((torch.arange(ROWS) + torch.rand(ROWS, generator=generator)) / ROWS).tolist()
    low, high = (s * shape.edges for s in SIZES)
    counts = [int(low * (high / low) ** x) for x in share]

    residual = shape.full(0, torch.int32)
    residual = residual._replace(residual=residual.residual + 1).flat().tolist()
    old = [0.0 if r == UNREACHABLE else -math.log(r + 1) for r in flat(start)]
    candidates = [i for i, r in enumerate(flat(start)) if r != UNREACHABLE and not residual[i]]
    scores = torch.tensor([math.exp(p) for p in old])
    ranks = schedule(shape.split(scores), shape, 3.0)
    position = ranks.flat().tolist()

    direction = [0.0] * len(old)
    for count in counts:
        with fixed_weights(model):
            rows = fit.rows(ranks, [count])
            log_q = weighted_log_probs(model, graph.architecture, rows)[0]
            p, q = fit.target, log_q.exp()
            mean = ((p + q) / 2).log()
            divergence = ((p * (p.log() - mean)).sum() + (q * (log_q - mean)).sum()) / 2
            found = gradients(divergence, rows).map(lambda g: g[0]).flat().tolist()
        moved = {}
        for i in candidates:
            s = 1 / (1 + math.exp(-(math.log(count) - math.log(position[i] + 1)) / WIDTH))
            moved[i] = found[i] * 4 * s * (1 - s)
        scale = math.sqrt(sum(g * g for g in moved.values()) / len(moved))
        for i, g in moved.items():
            direction[i] += g / scale / len(counts)
    # Adam's first step: the mean is the gradient, and so is the root of the mean square.
    new = [p - rate * g / (abs(g) + 0.3) for p, g in zip(old, direction, strict=True)]
    return schedule(shape.split(torch.tensor(new).exp()), shape, 3.0).flat().tolist()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj", "gemma2"])
def test_one_step_equals_the_slow_rewriting(name):
    model, graph, start = started(name)
    learned = learn(model, graph, start=start, steps=1, rate=0.7, sizes=SIZES, seed=3)
    slow = slow_step(model, graph, start, rate=0.7, seed=3)
    # Two parameters that differ by a rounding error may change places.
    differ = sum(a != b for a, b in zip(flat(learned), slow, strict=True))
    assert differ <= 4, f"{differ} of {len(slow)} ranks differ"
    assert flat(learned) != flat(start)


@pytest.mark.parametrize("options", [{}, {"reach": 0.5, "company": 0.3}])
def test_steps_bring_the_traces_nearer(options):
    model, graph, start = started("llama", tiny.PROMPT)
    learned = learn(model, graph, start=start, steps=30, rate=0.05, sizes=SIZES, **options)
    assert is_complete(learned.ranks, graph.shape)
    assert mean_divergence(model, graph, learned) < 0.95 * mean_divergence(model, graph, start)


def test_a_seed_gives_the_same_ranking_and_another_seed_another():
    model, graph, start = started("llama", tiny.PROMPT)
    one, again, other = (
        flat(learn(model, graph, start=start, steps=3, sizes=SIZES, company=0.3, seed=s))
        for s in (0, 0, 1)
    )
    assert one == again
    assert one != other


def test_a_saved_ranking_is_gone_on_with_as_if_never_saved(tmp_path):
    model, graph, start = started()
    first = learn(model, graph, start=start, steps=2, sizes=SIZES)
    sl.save_trace(first, tmp_path / "first.safetensors")
    read = sl.load_trace(tmp_path / "first.safetensors")
    ways = [flat(learn(model, graph, start=s, steps=2, sizes=SIZES)) for s in (first, read)]
    assert ways[0] == ways[1]


def test_a_small_budget_runs_row_by_row_to_the_same_ranking():
    model, graph, start = started()
    same = {"start": start, "steps": 3, "sizes": SIZES, "company": 0.3}
    whole = flat(learn(model, graph, **same))
    parts = flat(learn(model, graph, memory_budget=1, **same))
    assert sum(a != b for a, b in zip(whole, parts, strict=True)) <= 4


def test_reach_holds_every_edge_near_its_start():
    """With no reach to speak of nothing moves; so the start's own schedule comes back."""
    model, graph, start = started()
    held = learn(model, graph, start=start, steps=5, sizes=SIZES, reach=1e-9)
    scores = (-(start.ranks.flat().clamp(max=graph.shape.edges).double() + 1).log()).exp().float()
    assert flat(held) == schedule(graph.shape.split(scores), graph.shape, 3.0).flat().tolist()


def test_company_is_a_random_share_for_every_second_row():
    _, graph, _ = started("llama", tiny.PROMPT)
    rows = _company(graph.shape, 0.3, torch.Generator().manual_seed(0))
    shares = [float(r.attention.float().mean()) for r in rows]
    assert shares == pytest.approx([0, 0.3, 0, 0.3], abs=0.05)
    assert [bool(r.residual.all()) for r in rows] == [False, True, False, True]
    assert not torch.equal(rows[1].attention, rows[3].attention)
    assert _company(graph.shape, 0.0, torch.Generator()) == []


@pytest.mark.parametrize("kind", ["mean", "resample"])
def test_other_replacements(kind):
    model, graph, start = started("gpt2")
    replacement = sl.replacement(
        model,
        graph.prompt,
        kind,
        corrupted="the capital of Japan is" if kind == "resample" else None,
        references=[" ".join([tiny.PROMPT] * 6)] if kind == "mean" else None,
    )
    learned = learn(model, graph, start=start, steps=2, sizes=SIZES, replacement=replacement)
    assert is_complete(learned.ranks, graph.shape)
    assert learned.made["ablation"] == kind


def test_half_precision_weights_learn_in_single_precision():
    model = fresh_bridge("llama", torch.bfloat16)
    graph = sl.token_graph(model, PROMPT)
    start = sl.extract(graph, "l2", order="scheduled")
    learned = learn(model, graph, start=start, steps=2, sizes=SIZES)
    assert is_complete(learned.ranks, graph.shape)
    assert flat(learned) != flat(start)


def test_the_cost_counts_the_start():
    model, graph, _ = started()
    pruned = sl.prune(model, graph)
    learned = learn(model, graph, start=pruned, steps=3, sizes=SIZES)
    spent = pruned.made["passes"]
    assert learned.made["passes"] == {
        "forward": spent["forward"] + 12,
        "backward": spent["backward"] + 12,
    }


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"reach": 0.0}, "reach must be positive; got 0.0"),
        ({"company": 1.0}, r"company is a share of the other edges, in \[0, 1\); got 1.0"),
        ({"sizes": (0.2, 0.1)}, "sizes must rise"),
        ({"sizes": (1e-6, 0.1)}, "hold an edge at least"),
        ({"target": torch.zeros(3)}, "probability of each of"),
    ],
)
def test_what_is_refused(options, reason):
    model, graph, start = started()
    with pytest.raises(ValueError, match=reason):
        learn(model, graph, start=start, **{"sizes": SIZES, **options})


def test_a_start_of_another_prompt_is_refused():
    model, graph, _ = started()
    _, _, other = started(prompt="the capital of Japan is")
    with pytest.raises(ValueError, match="another prompt or model"):
        learn(model, graph, start=other, sizes=SIZES)
