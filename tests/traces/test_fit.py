"""Gradients in the weights of edges against those of the slow forward pass, and against its slopes.

The slow pass is differentiated by torch in float64, edge by edge; its central differences along
random directions say that this is right.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch import Tensor

import strace_lens as sl
from strace_lens.model.architecture import UnsupportedModelError
from strace_lens.model.checks import architecture_of
from strace_lens.model.forward import bytes_per_row
from strace_lens.model.hold import fixed_weights
from strace_lens.model.prompts import cut
from strace_lens.traces.edges import EdgeTensors, GraphShape
from strace_lens.traces.fit import (
    Fit,
    bytes_per_gradient_row,
    fit_to,
    fitted_trace,
    gradients,
    weighted_log_probs,
)
from strace_lens.traces.masked_run import masked_logits
from strace_lens.traces.rows import MaskedRows
from tests import cases, tiny
from tests.cases import NAMES, architecture, model_of, random_ranks, relative_error
from tests.oracle_weighted import weighted_logits
from tests.traces.test_schedule import in_order
from tests.weighted import (
    EVERY_MODEL,
    REFERENCES,
    TOKENS,
    graph_of,
    random_weights,
    replacement_of,
    rows_of,
    shape_of,
)


def trace_and_weights(shape: GraphShape) -> list[EdgeTensors]:
    """A trace of two edges in three with all residual edges, and weights from 0 to 1."""
    trace = cases.random_mask(shape, 0.67, seed=0).map(Tensor.float)
    return [trace._replace(residual=torch.ones_like(trace.residual)), *random_weights(shape, 1)]


def functional(rows: int) -> Tensor:
    """A direction of log-probabilities for each row."""
    return torch.randn(rows, tiny.VOCABULARY, generator=torch.Generator().manual_seed(2))


def row(found: EdgeTensors, index: int) -> EdgeTensors:
    return found.map(lambda x: x[index])


@pytest.mark.parametrize(("name", "kind"), EVERY_MODEL)
def test_every_gradient_is_that_of_the_slow_forward(name: str, kind: str) -> None:
    shape, direction = shape_of(name), functional(2)
    weights = trace_and_weights(shape)
    rows = rows_of(weights, shape, replacement_of(name, kind))
    log_probs = weighted_log_probs(model_of(name), architecture(name), rows)
    ours = gradients((direction * log_probs).sum(), rows)
    for i, w in enumerate(weights):
        slow = EdgeTensors(*(x.double().requires_grad_() for x in w))
        truth = weighted_logits(name, TOKENS, slow, REFERENCES[kind]).log_softmax(-1)
        assert relative_error(log_probs[i].detach(), truth.detach()) < 1e-5
        (truth @ direction[i].double()).backward()
        assert slow.attention.grad is not None
        assert relative_error(ours.attention[i], slow.attention.grad) < 1e-4
        if shape.mlp:
            assert slow.mlp.grad is not None
            assert relative_error(ours.mlp[i], slow.mlp.grad) < 1e-4
        assert not ours.residual[i].any()
        # Edges of weight 0 have gradients too, those that cannot reach the output none.
        reachable = shape.reachable().attention
        assert not ours.attention[i][~reachable].any()
        assert ours.attention[i][(w.attention == 0) & reachable].any()
    assert [x.shape for x in ours] == [(2, *s) for s in shape.tensor_shapes]


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_slopes_of_the_slow_forward(name: str) -> None:
    # Mixtral's router works in single precision even here: a smaller step would show its rounding.
    shape, direction, step = shape_of(name), functional(2), 1e-4
    weights = trace_and_weights(shape)
    rows = rows_of(weights, shape)
    log_probs = weighted_log_probs(model_of(name), architecture(name), rows)
    found = gradients((direction * log_probs).sum(), rows)
    for i, w in enumerate(weights):
        generator = torch.Generator().manual_seed(3 + i)
        way = w.map(lambda x, g=generator: torch.randn(x.shape, generator=g, dtype=torch.float64))
        way.residual.zero_()
        ahead, behind = (
            weighted_logits(name, TOKENS, shape.split(w.flat() + sign * step * way.flat()))
            for sign in (1, -1)
        )
        slope = (ahead.log_softmax(-1) - behind.log_softmax(-1)) @ direction[i].double()
        slope, ours = float(slope / (2 * step)), row(found, i).flat().double()
        tolerance = 1e-4 * float(ours.norm() * way.flat().norm())
        assert abs(float(ours @ way.flat()) - slope) < tolerance
        assert abs(slope) > 2 * tolerance


@pytest.mark.parametrize("name", NAMES)
def test_batched_directions_give_the_gradient_of_each(name: str) -> None:
    shape = shape_of(name)
    rows = rows_of(trace_and_weights(shape), shape)
    log_probs = weighted_log_probs(model_of(name), architecture(name), rows)
    directions = functional(6).view(3, 2, -1)
    batched = gradients(
        log_probs, rows, grad_outputs=directions, is_grads_batched=True, retain_graph=True
    )
    assert [x.shape for x in batched] == [(3, 2, *s) for s in shape.tensor_shapes]
    for i, direction in enumerate(directions):
        alone = gradients(log_probs, rows, grad_outputs=direction, retain_graph=True)
        assert relative_error(row(batched, i).flat(), alone.flat()) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "gptj", "opt"])
def test_half_precision_gives_single_gradients_near_those_of_single(name: str) -> None:
    half, shape, direction = cases.fresh_bridge(name, torch.bfloat16), shape_of(name), functional(2)
    prompt, (corrupted,) = sl.token_graph(half, TOKENS).prompt, REFERENCES["resample"]
    other = sl.replacement(half, prompt, "resample", corrupted=corrupted)
    found = []
    both = ((half, other), (model_of(name), replacement_of(name, "resample")))
    for model, instead in both:
        rows = rows_of(trace_and_weights(shape), shape, instead)
        log_probs = weighted_log_probs(model, architecture_of(model), rows)
        found.append(gradients((direction * log_probs).sum(), rows))
        assert log_probs.dtype == torch.float32
        assert all(x.dtype == torch.float32 for x in found[-1])
    for i in range(2):
        ours, single = (row(f, i).flat() for f in found)
        assert torch.cosine_similarity(ours, single, dim=0) > 0.98


@pytest.mark.parametrize("fails", [False, True])
def test_the_models_weights_are_fixed_inside_and_as_they_were_afterwards(fails: bool) -> None:
    model, shape = cases.fresh_bridge("gpt2"), shape_of("gpt2")
    model.requires_grad_(True)
    next(model.parameters()).requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    assert set(before.values()) == {False, True}
    rows = rows_of(trace_and_weights(shape), shape)

    def fit() -> None:
        with fixed_weights(model):
            assert not any(p.requires_grad for p in model.parameters())
            weighted_log_probs(model, architecture_of(model), rows).sum().backward()
            if fails:
                raise KeyboardInterrupt

    if fails:
        with pytest.raises(KeyboardInterrupt):
            fit()
    else:
        fit()
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert all(p.grad is None for p in model.parameters())
    assert all(x.grad is not None for x in (*rows.attention, rows.mlp))


def test_the_run_leaves_no_hook_behind() -> None:
    model, shape = model_of("llama"), shape_of("llama")
    before = {name: len(point.fwd_hooks) for name, point in model.hook_dict.items()}
    rows = rows_of(trace_and_weights(shape), shape)
    weighted_log_probs(model, architecture("llama"), rows).sum().backward()
    assert {name: len(point.fwd_hooks) for name, point in model.hook_dict.items()} == before


def quantised_by_torch(model: Any) -> Any:
    return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)


def quantised_as_bitsandbytes_does(model: Any) -> Any:
    """Eight-bit weights held as parameters of whole numbers, their scales elsewhere."""
    weight = model.blocks[1].mlp.out.original_component.weight
    weight.requires_grad_(False)
    weight.data = (weight / weight.abs().max() * 127).to(torch.int8)
    return model


# Both the quantisation of torch itself and the types of tensor that it makes are on their way out.
@pytest.mark.extended
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per")
@pytest.mark.parametrize(
    ("quantised", "words"),
    [
        (quantised_by_torch, r"unembed is quantised \(torch.qint8\)"),
        (quantised_as_bitsandbytes_does, r"mlp.*weight is quantised \(torch.int8\)"),
    ],
)
def test_quantised_weights_are_refused_in_one_line(quantised: Any, words: str) -> None:
    whole = cases.fresh_bridge("gpt2")
    graph = sl.token_graph(whole, TOKENS)
    start = sl.extract(graph)
    whole.requires_grad_(True)
    model = quantised(whole)
    asked = {name for name, p in model.named_parameters() if p.requires_grad}
    fits = (
        lambda: sl.fisher(model, graph),
        lambda: sl.prune(model, graph),
        lambda: sl.learn(model, graph, start=start, sizes=(0.1, 0.5)),
    )
    for fit in fits:
        with pytest.raises(UnsupportedModelError, match=words) as caught:
            fit()
        assert "\n" not in str(caught.value)
        assert "load the model in float32 or bfloat16" in str(caught.value)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == asked != set()


def test_a_gradient_needs_the_bytes_of_every_layer() -> None:
    for name in ("llama", "gptj"):
        arch = architecture(name)
        assert bytes_per_gradient_row(arch, 9) == arch.layers * bytes_per_row(arch, 9)


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
    masks = MaskedRows(trace.prompt.tensor, trace.shape, trace.ranks, stop * 0, stop, keep=keep)
    kept = [x.float() for x in (masks.kept("residual"), masks.kept("mlp"))]
    for ours, theirs in zip((rows.residual, rows.mlp), kept, strict=True):
        assert torch.equal(ours, theirs)
    for layer, weights in enumerate(rows.attention):
        assert torch.equal(weights, masks.kept("attention", layer).float())
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
    assert trace.metadata["keep"] == list(keep)
    assert estimators(graph, sl.extract(graph))[name]().metadata["keep"] == []


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


def test_a_start_of_another_prompt_or_shape_is_refused() -> None:
    graph, model = graph_of("llama"), model_of("llama")
    other = sl.extract(sl.token_graph(model, tiny.token_ids(len(TOKENS), seed=5)))
    longer = sl.extract(sl.token_graph(model, tiny.token_ids(len(TOKENS) + 1)))
    for start in (other, longer, sl.extract(graph_of("gptj"))):
        with pytest.raises(ValueError, match="is of another prompt or model than"):
            sl.learn(model, graph, start=start, sizes=(0.1, 0.5))


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
    first = fitted_trace(fit(), plain.ranks, (3, 5), {"order": "one"})
    assert first.metadata["passes"] == {"forward": 3, "backward": 5}
    assert first.metadata["start"] is None
    assert (first.metadata["target"], first.metadata["ablation"]) == ("own", "zero")
    assert first.metadata["model"] == plain.metadata["model"] == "tiny-llama"
    assert first.metadata["versions"] == plain.metadata["versions"]

    second = fitted_trace(fit(UNIFORM), plain.ranks, (10, 20), {"order": "two"}, start=first)
    assert second.metadata["passes"] == {"forward": 13, "backward": 25}
    assert second.metadata["start"] == first.metadata
    assert (second.metadata["target"], second.metadata["order"]) == ("given", "two")
    # A start without gradients cost none.
    third = fitted_trace(fit(), plain.ranks, (1, 1), {}, start=plain)
    assert third.metadata["passes"] == {"forward": 1, "backward": 1}
    assert json.loads(json.dumps(second.metadata)) == second.metadata
