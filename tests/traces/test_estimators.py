"""Estimators by name against the functions they stand for, called by hand."""

from __future__ import annotations

import functools

import pytest
import torch

import strace_lens as sl
from strace_lens.traces.estimators import Estimator, steps
from tests import tiny

TOKENS = tiny.token_ids(10)
TARGET = torch.linspace(0, 1, tiny.VOCABULARY).softmax(0)


@pytest.fixture(scope="module")
def graph() -> sl.TokenGraph:
    return sl.token_graph(tiny.bridge("llama"), TOKENS)


@pytest.fixture
def brief(monkeypatch) -> str:
    """A learned ranking of three steps: a new estimator is one entry."""
    rank = functools.partial(sl.learn, steps=3)
    monkeypatch.setitem(sl.ESTIMATORS, "brief", Estimator(rank, steps=3, start="pruned"))
    return "brief"


def same_ranks(a: sl.Trace, b: sl.Trace) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.ranks, b.ranks, strict=True))


def by_hand(name: str, graph: sl.TokenGraph, **options) -> sl.Trace:
    model = tiny.bridge("llama")
    if name == "greedy":
        return sl.extract(graph, "l1")
    if name == "scheduled":
        return sl.extract(graph, "l2", order="scheduled")
    return (sl.fisher if name == "fisher" else sl.prune)(model, graph, **options)


@pytest.mark.extended
@pytest.mark.parametrize("name", ["greedy", "scheduled", "fisher", "pruned"])
def test_an_estimator_is_its_function(graph, name) -> None:
    told: list[tuple[int, int, str]] = []
    trace = sl.estimate(
        tiny.bridge("llama"), graph, name, seed=3, progress=lambda *said: told.append(said)
    )
    hand = by_hand(name, graph, seed=3)
    assert same_ranks(trace, hand)
    assert dict(trace.metadata) == {"estimator": name, **hand.metadata}
    done = [said[0] for said in told]
    assert done == list(range(1, len(told) + 1))
    assert {said[1] for said in told} == ({steps(name)} if done else set())
    assert bool(told) == (name in ("fisher", "pruned"))


@pytest.mark.extended
def test_the_learned_ranking_is_that_of_the_published_steps(graph) -> None:
    told: list[tuple[int, int, str]] = []
    trace = sl.estimate(
        tiny.bridge("llama"), graph, "learned", seed=2, progress=lambda *said: told.append(said)
    )
    assert trace.metadata["order"] == "learned"
    assert trace.metadata["steps"] == 60
    assert trace.metadata["start"]["estimator"] == trace.metadata["start"]["order"] == "pruned"
    assert trace.metadata["seed"] == trace.metadata["start"]["seed"] == 2
    assert 60 < len(told) <= steps("learned") == steps("pruned") + 60
    assert told[-1] == (60, 60, "learning")


@pytest.mark.extended
def test_a_start_is_made_first_unless_it_is_given(graph, brief) -> None:
    model = tiny.bridge("llama")
    start = sl.estimate(model, graph, "pruned", seed=7)
    by_hand = sl.learn(model, graph, start=start, steps=3, seed=7)
    told: list[tuple[int, int, str]] = []
    options = {"seed": 7, "progress": lambda *said: told.append(said)}
    trace = sl.estimate(model, graph, brief, start=start, **options)
    assert same_ranks(trace, by_hand)
    assert told == [(1, 3, "learning"), (2, 3, "learning"), (3, 3, "learning")]
    trace = sl.estimate(model, graph, brief, **options)
    assert same_ranks(trace, by_hand)
    assert trace.metadata["start"] == start.metadata
    assert 3 + 3 < len(told) <= 3 + steps(brief)
    assert {what for _, _, what in told} == {"pruning", "learning"}
    # What starts from nothing takes no notice of a start.
    assert same_ranks(sl.estimate(model, graph, "fisher", start=start), sl.fisher(model, graph))


@pytest.mark.extended
@pytest.mark.parametrize("name", ["fisher", "pruned", "brief"])
def test_kinds_to_keep_reach_the_fit_and_its_start(graph, brief, name) -> None:
    trace = sl.estimate(tiny.bridge("llama"), graph, name, keep=("mlp",), seed=3)
    if name == "brief":
        start = trace.metadata["start"]
        assert (start["estimator"], start["keep"]) == ("pruned", ["mlp"])
    else:
        assert same_ranks(trace, by_hand(name, graph, keep=("mlp",), seed=3))
    assert trace.metadata["keep"] == ["mlp"]
    others = [r[r < trace.edges] for r in (trace.ranks.attention, trace.ranks.residual)]
    kept = trace.ranks.mlp[trace.ranks.mlp < trace.edges]
    assert int(kept.min()) > max(int(r.max()) for r in others)


@pytest.mark.parametrize("name", ["greedy", "scheduled"])
def test_kinds_to_keep_have_no_effect_where_nothing_is_fitted(graph, name) -> None:
    model = tiny.bridge("llama")
    trace = sl.estimate(model, graph, name, keep=("attention",))
    assert same_ranks(trace, sl.estimate(model, graph, name))
    with pytest.raises(ValueError, match="keep takes a sequence of kinds"):
        sl.estimate(model, graph, name, keep="attention")


@pytest.mark.extended
@pytest.mark.parametrize("name", ["fisher", "pruned"])
def test_a_target_and_a_replacement_reach_the_fit(graph, name) -> None:
    model = tiny.bridge("llama")
    replaced = sl.replacement(model, graph.prompt, "resample", corrupted=tiny.token_ids(10, 1))
    aimed = sl.estimate(model, graph, name, target=TARGET, replacement=replaced)
    assert same_ranks(aimed, by_hand(name, graph, target=TARGET, replacement=replaced))
    assert not same_ranks(aimed, sl.estimate(model, graph, name))


@pytest.mark.parametrize("name", ["greedy", "scheduled"])
def test_a_target_has_no_effect_where_nothing_is_fitted(graph, name) -> None:
    model = tiny.bridge("llama")
    aimed = sl.estimate(model, graph, name, target=TARGET, seed=5)
    assert same_ranks(aimed, sl.estimate(model, graph, name))
    assert steps(name) == 0


@pytest.mark.extended
def test_an_earlier_name_is_the_estimator_that_it_was_given_to(graph) -> None:
    earlier, now = (
        sl.estimate(tiny.bridge("llama"), graph, name) for name in ("anchored", "regularized")
    )
    assert earlier.metadata == now.metadata
    assert torch.equal(earlier.ranks.flat(), now.ranks.flat())


def test_an_unknown_estimator_is_refused_with_the_choices(graph) -> None:
    with pytest.raises(ValueError, match="unknown estimator 'best'; choose from greedy, scheduled"):
        sl.estimate(tiny.bridge("llama"), graph, "best")
    with pytest.raises(ValueError, match="unknown estimator 'best'"):
        steps("best")
