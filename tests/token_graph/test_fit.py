"""What fitted estimators share: the target, the checks, and what a fitted trace says of itself."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import Tensor

import strace_lens as sl
from strace_lens.model.prompts import cut
from strace_lens.token_graph.controls import random_ranks
from strace_lens.token_graph.fit import Fit, fit_to, fitted_trace
from strace_lens.token_graph.gradients import weighted_log_probs
from strace_lens.token_graph.masked_run import masked_logits
from strace_lens.token_graph.rows import MaskedRows
from tests import cases, tiny
from tests.cases import model_of, relative_error
from tests.token_graph.test_schedule import in_order
from tests.weighted import TOKENS, graph_of, replacement_of, shape_of

UNIFORM = torch.full((tiny.VOCABULARY,), 1 / tiny.VOCABULARY)


def fit(target: Tensor | None = None, start: sl.Trace | None = None) -> Fit:
    return fit_to(model_of("llama"), graph_of("llama"), target, replacement_of("llama", "zero"), 1)


def estimators(graph: sl.TokenGraph, start: sl.Trace, **options):
    """A call for each fitted estimator, by its name."""
    model = model_of("llama")
    return {
        "fisher": lambda: sl.fisher(model, graph, **options),
        "prune": lambda: sl.prune(model, graph, **options),
        "learn": lambda: sl.learn(model, graph, start=start, sizes=(0.1, 0.5), steps=2, **options),
    }


ESTIMATORS = ["fisher", "prune", "learn"]


def changed(at: int, by: float) -> Tensor:
    target = UNIFORM.clone()
    target[at] += by
    return target


KEEPS = [("attention",), ("mlp",), ("residual",), ("residual", "mlp")]


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("name", ["llama", "gptj", "gemma2"])
def test_every_row_that_is_fitted_holds_the_kinds_kept(name: str, keep: tuple[str, ...]) -> None:
    model, graph = model_of(name), graph_of(name)
    fitted = fit_to(model, graph, None, replacement_of(name, "zero"), 1, keep=keep)
    trace = sl.extract(graph)
    counts = [trace.edge_count(size) for size in (0.1, 0.5)]
    rows = fitted.rows(trace.ranks, counts)
    stop = torch.tensor(counts, dtype=torch.int32)
    masks = MaskedRows(trace.prompt.tensor, trace.shape, trace.ranks, stop * 0, stop, keep)
    kept = [x.float() for x in (masks.keep_residual_edges(), masks.keep_mlp_edges())]
    for ours, theirs in zip((rows.residual, rows.mlp), kept, strict=True):
        assert torch.equal(ours, theirs)
    for layer, weights in enumerate(rows.attention):
        assert torch.equal(weights, masks.keep_attention_edges(layer).float())
    truth = masked_logits(model, graph.architecture, [masks]).log_softmax(-1)
    ours = weighted_log_probs(model, graph.architecture, rows)
    assert relative_error(ours, truth) < 1e-5
    kinds = trace.shape.reachable()._asdict()
    assert fitted.ablatable == sum(int(x.sum()) for kind, x in kinds.items() if kind not in keep)


@pytest.mark.parametrize("keep", [("attention",), ("mlp",), ("residual", "attention")])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_fitted_trace_ranks_what_is_kept_last_and_says_so(
    name: str, keep: tuple[str, ...]
) -> None:
    graph = graph_of("llama")
    trace = estimators(graph, sl.extract(graph), keep=keep)[name]()
    behind = [edge.kind in keep for edge in in_order(trace.ranks, trace.shape)]
    assert behind == sorted(behind)
    assert any(behind)
    assert not all(behind)
    assert trace.made["keep"] == list(keep)
    assert estimators(graph, sl.extract(graph))[name]().made["keep"] == []


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        (("attention", "mlp"), "with attention and MLP edges kept there is nothing to fit"),
        (("residual", "attention", "mlp"), "nothing to fit; keep one of them"),
        ("attention", "keep takes a sequence of kinds, as .*; got the string 'attention'"),
        (("head",), "unknown kind of edge 'head'; choose from residual, attention, mlp"),
    ],
)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_kinds_that_leave_nothing_to_fit_or_are_none_are_refused(
    name: str, keep: tuple[str, ...], words: str
) -> None:
    graph = graph_of("llama")
    with pytest.raises(ValueError, match=words):
        estimators(graph, sl.extract(graph), keep=keep)[name]()


def test_the_target_is_the_models_own_output_unless_another_is_given() -> None:
    own = fit()
    assert own.own
    assert relative_error(own.target, cases.full_logits("llama", TOKENS).softmax(-1)) < 1e-6
    given = fit(UNIFORM.double())
    assert not given.own
    assert given.target.dtype == torch.float32
    torch.testing.assert_close(given.target, UNIFORM)


def test_a_target_leaves_its_gradients_behind() -> None:
    """As one that comes of a plain run of the model does."""
    logits = torch.zeros(tiny.VOCABULARY, requires_grad=True)
    target = fit(logits.softmax(-1)).target
    assert not target.requires_grad
    torch.testing.assert_close(target, UNIFORM)


def test_a_target_of_almost_mass_one_is_made_a_distribution() -> None:
    target = fit(UNIFORM * (1 + 9e-4)).target
    torch.testing.assert_close(target, UNIFORM)
    assert abs(float(target.double().sum()) - 1) < 1e-6
    with pytest.raises(ValueError, match=rf"got shape \(1, {tiny.VOCABULARY}\)"):
        fit(UNIFORM[None])


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (changed(3, -0.1), "a least of -0.09"),
        (changed(3, 2e-3), "a sum of 1"),
        (UNIFORM * 0, "a least of 0 and a sum of 0"),
        (torch.randn(tiny.VOCABULARY), "Pass logits.softmax"),
        (changed(3, float("nan")), "a sum of nan"),
        (changed(3, float("inf")), "a sum of inf"),
        (UNIFORM[1:], rf"each of {tiny.VOCABULARY} tokens; got shape \({tiny.VOCABULARY - 1},\)"),
    ],
)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_target_that_is_no_distribution_is_refused(name: str, target: Tensor, words: str) -> None:
    graph = graph_of("llama")
    with pytest.raises(ValueError, match=words):
        estimators(graph, sl.extract(graph), target=target)[name]()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_graph_of_one_token_is_refused(name: str) -> None:
    whole, shape = graph_of("llama"), cases.shape("llama", 1)
    one = dataclasses.replace(whole, shape=shape, prompt=cut(model_of("llama"), whole.prompt, 1))
    start = sl.Trace(shape, one.prompt, random_ranks(shape, seed=0))
    with pytest.raises(ValueError, match="a graph of one token"):
        estimators(one, start)[name]()


@pytest.mark.parametrize("name", ["prune", "learn"])
def test_a_start_of_another_prompt_or_shape_is_refused(name: str) -> None:
    graph, model = graph_of("llama"), model_of("llama")
    other = sl.extract(sl.token_graph(model, tiny.token_ids(len(TOKENS), seed=5)))
    longer = sl.extract(sl.token_graph(model, tiny.token_ids(len(TOKENS) + 1)))
    for start in (other, longer, sl.extract(graph_of("gptj"))):
        calls = {
            "prune": lambda start=start: sl.prune(model, graph, start=start),
            "learn": lambda start=start: sl.learn(model, graph, start=start, sizes=(0.1, 0.5)),
        }
        with pytest.raises(ValueError, match="is of another prompt or model than"):
            calls[name]()


def test_a_replacement_of_another_length_is_refused() -> None:
    model, graph = model_of("llama"), graph_of("llama")
    short = sl.token_graph(model, TOKENS[:4]).prompt
    instead = sl.replacement(model, short, "resample", corrupted=tiny.token_ids(4, seed=1))
    for call in estimators(graph, sl.extract(graph), replacement=instead).values():
        with pytest.raises(ValueError, match="resample replacement has 4 tokens, the prompt 5"):
            call()


def test_rows_are_the_traces_of_so_many_edges() -> None:
    ranks = sl.extract(graph_of("llama")).ranks
    rows = fit().rows(ranks, [3, 0, 30])
    assert rows.tokens.tolist() == TOKENS
    for i, count in enumerate((3, 0, 30)):
        assert torch.equal(rows.mlp[i], (ranks.mlp < count).float())
        assert torch.equal(rows.residual[i], (ranks.residual < count).float())
        for layer in range(shape_of("llama").layers):
            assert torch.equal(rows.attention[layer][i], (ranks.attention[layer] < count).float())


def test_a_fitted_trace_says_how_it_was_made_and_what_it_cost_in_all() -> None:
    graph = graph_of("llama")
    plain = sl.extract(graph)
    first = fitted_trace(fit(), graph, plain.ranks, None, (3, 5), {"order": "one"})
    assert first.made["passes"] == {"forward": 3, "backward": 5}
    assert first.made["start"] is None
    assert (first.made["target"], first.made["ablation"]) == ("own", "zero")
    assert first.made["model"] == plain.made["model"] == "tiny-llama"
    assert first.made["versions"] == plain.made["versions"]

    second = fitted_trace(fit(UNIFORM), graph, plain.ranks, first, (10, 20), {"order": "two"})
    assert second.made["passes"] == {"forward": 13, "backward": 25}
    assert second.made["start"] == first.made
    assert (second.made["target"], second.made["order"]) == ("given", "two")
    # A start without gradients cost none.
    third = fitted_trace(fit(), graph, plain.ranks, plain, (1, 1), {})
    assert third.made["passes"] == {"forward": 1, "backward": 1}
    assert json.loads(json.dumps(second.made)) == second.made
