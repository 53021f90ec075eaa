"""A trace is measured on the weights that it was made with, or on others by request alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import strace_lens as sl
from strace_lens.model.weights import weights_hash
from strace_lens.traces.ablation import Replacement
from strace_lens.traces.exchange import trace_from_pandas
from strace_lens.traces.masked_run import masked_logits
from strace_lens.traces.rows import MaskedRows
from tests import cases, tiny

REFUSED = r"made with other weights \(.*allow_other_model=True"


def model_of_other_weights(name: str) -> Any:
    """A model of the same shape, name and dtype."""
    model = cases.fresh_bridge(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    return model


def trace_of(model: Any, **options: Any) -> sl.Trace:
    return sl.extract(sl.token_graph(model, tiny.PROMPT), **options)


def test_every_estimator_says_which_weights_it_used() -> None:
    model = tiny.bridge("mistral")
    graph = sl.token_graph(model, tiny.PROMPT)
    trace = sl.extract(graph)
    few = {"start": trace, "steps": 1, "sizes": (0.05, 0.2)}
    traces = [
        trace,
        sl.fisher(model, graph, probes=1),
        sl.prune(model, graph, probes=1, factor=0.1, smallest=0.5),
        sl.learn(model, graph, **few),
        trace_from_pandas(trace.to_pandas(), graph),
        trace_from_pandas(trace.to_pandas(), trace),
    ]
    expected = weights_hash(model)
    assert graph.weights == expected
    assert [made.metadata["weights"] for made in traces] == [expected] * len(traces)
    assert trace.subgraph(0.1).metadata["weights"] == expected


def start_from(verb: Callable[..., sl.Trace], **options: Any) -> Callable[..., object]:
    def run(model: Any, trace: sl.Trace, **allowed: bool) -> object:
        return verb(model, sl.token_graph(model, tiny.PROMPT), start=trace, **options, **allowed)

    return run


TAKE_TRACES: dict[str, Callable[..., object]] = {
    "density_curve": sl.density_curve,
    "density_curves": lambda model, trace, **allowed: sl.density_curves(model, [trace], **allowed),
    "hooks": lambda model, trace, **allowed: trace.hooks(0.1, model, **allowed),
    "learn": start_from(sl.learn, steps=1, sizes=(0.05, 0.2)),
}


@pytest.mark.parametrize("verb", TAKE_TRACES)
def test_a_trace_of_other_weights_is_refused_unless_asked_for(verb: str) -> None:
    model, other = tiny.bridge("mistral"), model_of_other_weights("mistral")
    trace, run = trace_of(model), TAKE_TRACES[verb]
    with pytest.raises(ValueError, match=REFUSED):
        run(other, trace)
    run(other, trace, allow_other_model=True)
    run(model, trace)
    run(cases.fresh_bridge("mistral"), trace)  # equal weights in another object
    by_hand = dataclasses.replace(trace, metadata={})
    run(other, by_hand)


@pytest.mark.extended
def test_an_estimate_takes_a_start_of_other_weights_by_request() -> None:
    model, other = tiny.bridge("mistral"), model_of_other_weights("mistral")
    prompt = tiny.token_ids(20)
    graph, start = sl.token_graph(other, prompt), sl.extract(sl.token_graph(model, prompt))
    with pytest.raises(ValueError, match=REFUSED):
        sl.estimate(other, graph, "regularized", start=start)
    made = sl.estimate(other, graph, "regularized", start=start, allow_other_model=True)
    assert made.metadata["weights"] == weights_hash(other) != made.metadata["start"]["weights"]


def fitted(verb: Callable[..., sl.Trace], **options: Any) -> Callable[..., object]:
    def run(model: Any, swap: Replacement, **allowed: bool) -> object:
        graph = sl.token_graph(model, tiny.PROMPT)
        if verb is sl.learn:
            options["start"] = sl.extract(graph)
        return verb(model, graph, replacement=swap, **options, **allowed)

    return run


def ablated_phases(model: Any, swap: Replacement, **allowed: bool) -> object:
    curve = sl.density_curve(model, trace_of(model))
    return sl.phase_ablation(model, curve, replacement=swap, **allowed)


def masked(model: Any, swap: Replacement, **allowed: Any) -> object:
    trace = trace_of(model)
    one = MaskedRows(
        tokens=trace.prompt.tensor,
        shape=trace.shape,
        ranks=trace.ranks,
        start=torch.tensor([0]),
        stop=torch.tensor([9]),
        replacement=swap,
    )
    return masked_logits(model, cases.architecture_of(model), [one], **allowed)


TAKE_REPLACEMENTS: dict[str, Callable[..., object]] = {
    "density_curve": lambda model, swap, **allowed: sl.density_curve(
        model, trace_of(model), replacement=swap, **allowed
    ),
    "density_curves": lambda model, swap, **allowed: sl.density_curves(
        model, [trace_of(model)], replacements=[swap], **allowed
    ),
    "phase_ablation": ablated_phases,
    "hooks": lambda model, swap, **allowed: trace_of(model).hooks(
        0.1, model, replacement=swap, **allowed
    ),
    "masked_logits": masked,
    "fisher": fitted(sl.fisher, probes=1),
    "learn": fitted(sl.learn, steps=1, sizes=(0.05, 0.2)),
    "prune": fitted(sl.prune, probes=1, factor=0.1, smallest=0.5),
    "estimate": fitted(sl.estimate, estimator="fisher"),
}


@pytest.mark.extended
@pytest.mark.parametrize("verb", TAKE_REPLACEMENTS)
@pytest.mark.parametrize("kind", ["mean", "resample"])
def test_a_replacement_of_other_weights_is_refused_unless_asked_for(verb: str, kind: str) -> None:
    model, other = tiny.bridge("mistral"), model_of_other_weights("mistral")
    prompt = sl.token_graph(model, tiny.PROMPT).prompt
    corrupted = tiny.token_ids(len(prompt.ids), seed=1) if kind == "resample" else None
    swap = sl.replacement(model, prompt, kind, corrupted=corrupted)
    assert swap.weights == weights_hash(model)
    run = TAKE_REPLACEMENTS[verb]
    with pytest.raises(ValueError, match=f"the {kind} replacement was {REFUSED}"):
        run(other, swap)
    run(other, swap, allow_other_model=True)
    run(cases.fresh_bridge("mistral"), swap)  # equal weights in another object


@pytest.mark.extended
def test_zeros_are_the_replacement_of_any_model() -> None:
    model = tiny.bridge("mistral")
    swap = sl.replacement(model, sl.token_graph(model, tiny.PROMPT).prompt)
    assert swap.weights is None
    for run in TAKE_REPLACEMENTS.values():
        run(model_of_other_weights("mistral"), swap)


@pytest.mark.parametrize("verb", TAKE_TRACES)
def test_a_graph_of_another_shape_is_refused_in_any_case(verb: str) -> None:
    trace = trace_of(tiny.bridge("mistral"))
    with pytest.raises(ValueError, match=r"trace of tiny-mistral .* does not fit|of another"):
        TAKE_TRACES[verb](tiny.bridge("llama"), trace, allow_other_model=True)


def test_the_causal_check_is_made_on_the_weights_of_the_trace() -> None:
    model, other = tiny.bridge("mistral"), model_of_other_weights("mistral")
    curve = sl.density_curve(model, trace_of(model))
    with pytest.raises(ValueError, match=REFUSED):
        sl.phase_ablation(other, curve)
    sl.phase_ablation(other, curve, allow_other_model=True)
    sl.phase_ablation(model, curve)


@pytest.mark.parametrize("verb", ["fisher", "learn", "prune"])
def test_a_graph_read_before_the_weights_changed_is_not_fitted(verb: str) -> None:
    model = cases.fresh_bridge("mistral")
    graph = sl.token_graph(model, tiny.PROMPT)
    trace = sl.extract(graph)
    with torch.no_grad():
        model.blocks[0].ln1.original_component.weight.mul_(1.1)
    fit = {
        "fisher": lambda: sl.fisher(model, graph),
        "learn": lambda: sl.learn(model, graph, start=trace, sizes=(0.05, 0.2)),
        "prune": lambda: sl.prune(model, graph),
    }
    with pytest.raises(ValueError, match=r"have changed since .* read it anew with token_graph"):
        fit[verb]()


def test_a_saved_trace_keeps_its_weights(tmp_path: Path) -> None:
    model, other = tiny.bridge("mistral"), model_of_other_weights("mistral")
    sl.save(trace_of(model), tmp_path / "trace.safetensors")
    trace = sl.load(tmp_path / "trace.safetensors")
    sl.density_curve(model, trace)
    with pytest.raises(ValueError, match=REFUSED):
        sl.density_curve(other, trace)


def test_another_dtype_is_another_model() -> None:
    trace = trace_of(tiny.bridge("mistral"))
    model = cases.fresh_bridge("mistral").to(torch.bfloat16)
    with pytest.raises(ValueError, match="the dtype counts too"):
        sl.density_curve(model, trace)
    sl.density_curve(model, trace, allow_other_model=True)
