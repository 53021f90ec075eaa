"""The plan of a curve: against what torch counts, holds and runs."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import strace_lens as sl
from strace_lens.density import cost
from strace_lens.density.cost import (
    as_text,
    graph_bytes,
    multiply_adds,
    random_bytes,
    random_edges,
    trace_bytes,
)
from strace_lens.model.architecture import Architecture
from strace_lens.model.checks import architecture_of
from strace_lens.model.forward import bytes_per_row
from strace_lens.traces import masked_run
from strace_lens.traces.ablation import ZERO, Replacement
from strace_lens.traces.curve_rows import curve_rows
from strace_lens.traces.graph import token_graph
from strace_lens.traces.masked_run import masked_logits
from strace_lens.traces.rows import MaskedRows, SubsetRows
from strace_lens.utils.choices import MEMORY_BUDGET
from tests import cases, tiny
from tests.cases import NAMES, architecture, fresh_bridge, model_of
from tests.families import family
from tests.live_bytes import LiveBytes
from tests.tiny import _BASE, _GPT, _GROUPED, _LAYER_TYPES, Build, _maker

LONG = 200
_LONG = {**_GROUPED, "max_position_embeddings": 512}
LONG_MODELS: dict[str, Build] = {
    "llama": _maker(tf.LlamaForCausalLM, tf.LlamaConfig, **_LONG, attention_bias=True),
    "gpt2": _maker(tf.GPT2LMHeadModel, tf.GPT2Config, **{**_GPT, "n_positions": 512}),
    "gpt_neox": _maker(
        tf.GPTNeoXForCausalLM, tf.GPTNeoXConfig, **{**_BASE, "max_position_embeddings": 512}
    ),
    "gptj": _maker(tf.GPTJForCausalLM, tf.GPTJConfig, **{**_GPT, "n_positions": 512}, rotary_dim=4),
    "gpt_oss": _maker(
        tf.GptOssForCausalLM,
        tf.GptOssConfig,
        **{**_LONG, **_LAYER_TYPES, "head_dim": 8, "sliding_window": 100},
        num_local_experts=4,
        num_experts_per_tok=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    ),
}
"""Models whose context is long enough for patterns to outweigh everything else."""


def long_model(name: str) -> Any:
    return tiny.bridge_of(LONG_MODELS[name](), name)


def full_masks(model: Any, ids: list[int], rows: int, replacement: Replacement) -> MaskedRows:
    shape = token_graph(model, ids).shape
    return MaskedRows(
        tokens=torch.tensor(ids),
        shape=shape,
        ranks=shape.full(0, torch.int32),
        start=torch.zeros(rows, dtype=torch.int32),
        stop=torch.ones(rows, dtype=torch.int32),
        replacement=replacement,
    )


@pytest.mark.parametrize("tokens", [5, 60])
@pytest.mark.parametrize("name", NAMES)
def test_multiply_adds_are_those_that_torch_counts(name: str, tokens: int) -> None:
    model = model_of(name)
    rows = full_masks(model, tiny.token_ids(tokens), 2, ZERO)
    if (
        architecture(name).experts > 1
    ):  # torch does not count the product of groups that experts are run by
        original = tiny.BRIDGES[name]()
        original.set_experts_implementation("eager")
        model = tiny.bridge_of(original, name)
    with cases.everywhere(model), FlopCounterMode(display=False) as counter:
        masked_logits(model, architecture(name), [rows])
    counted = counter.get_total_flops() / 2 / 2  # two rows, and two operations a multiply-add
    assert multiply_adds(architecture(name), tokens) == pytest.approx(counted, rel=0.02)


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor that a tree of dataclasses and tuples holds."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple):
        return [tensor for one in value for tensor in tensors_in(one)]
    if dataclasses.is_dataclass(value):
        return [x for f in dataclasses.fields(value) for x in tensors_in(getattr(value, f.name))]
    return []


def bytes_of_its_own(graph: sl.TokenGraph, model: Any) -> int:
    """Bytes of the tensors of a graph that are no views of the model's weights."""
    weights = {x.untyped_storage().data_ptr() for x in model.parameters()}
    held = (x for x in tensors_in(graph) if x.untyped_storage().data_ptr() not in weights)
    return sum(x.nbytes for x in held)


def vector_bytes(arch: Architecture, itemsize: int) -> int:
    """Bytes of a block's biases and gains, which may be the model's own or not."""
    return itemsize * arch.layers * (arch.heads * arch.d_head + 4 * arch.d_model)


@pytest.mark.parametrize("name", NAMES)
def test_bytes_of_graph_and_trace_are_those_of_their_tensors(name: str) -> None:
    model, arch = model_of(name), architecture(name)
    for tokens in (2, 23):
        graph = token_graph(model, tiny.token_ids(tokens))
        trace = sl.extract(graph)
        plan = sl.plan(model, tokens)
        assert plan.graph_bytes == graph_bytes(arch, tokens)
        own = bytes_of_its_own(graph, model)
        assert own <= plan.graph_bytes <= own + vector_bytes(arch, 4)
        assert plan.trace_bytes == trace_bytes(arch, tokens)
        assert plan.trace_bytes == sum(x.nbytes for x in tensors_in(trace))


@pytest.mark.parametrize("name", ["llama", "gptj"])
def test_random_controls_take_and_hold_what_is_planned(name: str) -> None:
    arch, sizes = architecture(name), (0.01, 0.2, 0.25, 0.7, 1.0)
    trace = sl.extract(token_graph(model_of(name), tiny.token_ids(23)))
    rows = curve_rows(arch, trace, sizes, controls=True, replacement=ZERO, seed=0)
    (held,) = (group.subsets for group in rows.groups if isinstance(group, SubsetRows))
    taken = [int(((held.flat() >> i) & 1).sum()) for i in range(len(sizes))]
    assert taken == [trace.edge_count(size) for size in sizes]
    assert random_edges(arch, 23, sizes) == sum(taken)
    assert random_bytes(arch, 23, len(sizes)) == sum(x.nbytes for x in held)


@pytest.mark.parametrize("name", LONG_MODELS)
def test_a_row_of_a_long_prompt_takes_no_more_bytes_than_planned(name: str) -> None:
    model, ids = long_model(name), tiny.token_ids(LONG)
    arch, prompt = architecture_of(model), sl.token_graph(model, ids).prompt
    other = tiny.token_ids(LONG, seed=1)
    swap = sl.replacement(model, prompt, "resample", corrupted=other)
    planned = bytes_per_row(arch, LONG)
    assert 4 * arch.heads * LONG**2 < planned
    for replacement in (ZERO, swap):
        for count in (1, 3):
            rows = full_masks(model, ids, count, replacement)
            with cases.everywhere(model), LiveBytes() as live:
                masked_logits(model, arch, [rows], memory_budget=2**40)
            # The fewer patterns a model holds at once, the more is left over.
            assert planned / 2.5 < live.most / count <= planned


@pytest.mark.parametrize("tokens", [60, LONG])
@pytest.mark.parametrize("name", LONG_MODELS)
def test_the_peak_is_not_below_what_a_trace_and_its_curve_hold(
    name: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masked_run, "WORTHWHILE", 0.0)  # so that every row runs in every layer
    model, sizes = long_model(name), (0.1, 1.0)
    plan = sl.plan(model, tokens, sizes=sizes, refine=0)
    with LiveBytes() as live:
        graph = sl.token_graph(model, tiny.token_ids(tokens))
        curve = sl.density_curve(model, sl.extract(graph), sizes=sizes, refine=0)
    assert graph.shape.edges == curve.trace.edges
    assert live.most <= plan.peak_bytes
    if tokens == LONG:
        assert plan.peak_bytes < 2 * live.most
    assert plan.peak_bytes > plan.graph_bytes + plan.trace_bytes + plan.row_bytes


@pytest.mark.extended
def test_the_peak_counts_the_random_controls_which_share_a_number_an_edge() -> None:
    model, ids = long_model("llama"), tiny.token_ids(LONG)
    given: Any = {"sizes": [i / 30 for i in range(1, 31)], "refine": 0, "memory_budget": 1}
    plan = sl.plan(model, LONG, **given)
    trace = sl.extract(sl.token_graph(model, ids))
    with LiveBytes() as live:
        sl.density_curve(model, trace, **given)
    assert live.most <= plan.peak_bytes < 2 * (live.most + plan.graph_bytes + plan.trace_bytes)
    one, most, more = (random_bytes(architecture_of(model), LONG, n) for n in (1, 31, 32))
    assert live.most > one == most
    assert more == 2 * most


def test_a_row_that_does_not_fit_the_budget_is_named() -> None:
    model = long_model("llama")
    fits = sl.plan(model, LONG)
    assert fits.over_budget is None
    assert fits.memory_budget == MEMORY_BUDGET
    tight = sl.plan(model, LONG, memory_budget=2**20)
    assert tight.over_budget == (
        f"one row of 200 tokens needs {as_text(tight.row_bytes)}, more than --memory "
        "(memory_budget) 1.0 MiB; it runs alone"
    )
    assert tight.passes == tight.rows
    assert tight.bytes == tight.row_bytes == bytes_per_row(architecture_of(model), LONG)
    exact = sl.plan(model, LONG, memory_budget=tight.row_bytes)
    assert exact.over_budget is None


def test_bytes_are_told_in_units_that_can_be_read() -> None:
    assert as_text(1_500_000) == "1.4 MiB"
    assert as_text(128 * 2**20) == "128 MiB"
    assert as_text(3 * 2**30 + 2**27) == "3.1 GiB"


def test_seconds_follow_the_square_of_a_long_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    model = long_model("llama")
    monkeypatch.setattr(cost, "_seconds_of", lambda work: 1.0)  # a machine of known speed
    # An entry costs less the more of them a pattern has: of one row alone there are so many.
    whole = [sl.plan(model, n, sizes=[1.0], controls=False, refine=0) for n in (250, 500)]
    arch = architecture_of(model)
    for tokens, plan in zip((250, 500), whole, strict=True):
        patterns = 2 * 16 * 4 * tokens**2
        streams = 2 * tokens * (12 * arch.d_model + 4 * arch.d_mlp)
        a_touch = 1 / max(4 * tokens * tokens, 2**16 // tokens * tokens)
        products = 2 * plan.multiply_adds / 512**3
        python = 2 * cost.LAYER_SECONDS
        assert plan.rows == plan.passes == 1
        work = products + (patterns + streams) * a_touch
        assert plan.seconds == pytest.approx(cost.LIVE_SHARE * work + python)
    assert whole[1].multiply_adds > 3 * whole[0].multiply_adds


@pytest.mark.extended
def test_a_switch_of_positions_adds_no_pass_to_one_prompt() -> None:
    model = family("phi3_longrope")
    for tokens in (8, 9):
        seen: list[int] = []
        trace = sl.extract(sl.token_graph(model, tiny.token_ids(tokens)))
        options: Any = {"sizes": (0.1, 0.3, 1.0), "memory_budget": 100_000}
        sl.density_curve(
            model, trace, **options, progress=lambda *said, seen=seen: seen.append(said[0])
        )
        plan = sl.plan(model, tokens, **options)
        assert 1 < len(seen) <= plan.passes
        assert seen[-1] <= plan.rows


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        (1, {}, r"2 \.\. 64, the context of tiny-llama; got 1"),
        (65, {}, r"2 \.\. 64, the context of tiny-llama; got 65"),
        (5, {"refine": -1}, "refine must be at least 0; got -1"),
        (5, {"memory_budget": 0}, "memory_budget must be positive; got 0 bytes"),
    ],
)
def test_what_could_not_be_run_is_not_planned(
    tokens: int, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sl.plan(tiny.bridge("llama"), tokens, **options)


def test_half_precision_halves_the_graph() -> None:
    model = fresh_bridge("llama", torch.bfloat16)
    graph = token_graph(model, tiny.token_ids(9))
    planned = sl.plan(model, 9).graph_bytes
    assert planned == graph_bytes(architecture_of(model), 9) // 2
    own = bytes_of_its_own(graph, model)
    assert own <= planned <= own + vector_bytes(architecture_of(model), 2)
