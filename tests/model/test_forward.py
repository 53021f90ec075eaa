"""Hooked passes: last-position logits, activations, and how rows are cut into passes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from strace_lens.model.checks import architecture_of
from strace_lens.model.forward import (
    all_logits,
    byte_budget,
    bytes_per_row,
    even_chunks,
    last_logits,
    read_activations,
    rows_per_pass,
)
from strace_lens.utils.choices import DEVICE_BUDGET, MEMORY_BUDGET
from tests import oracle, tiny
from tests.cases import NAMES, architecture, as_tensor, model_of, relative_error
from tests.families import family, hf_family

TOKENS = tiny.token_ids(9)


@pytest.mark.parametrize("name", NAMES)
def test_last_logits_are_the_models_at_the_last_token_of_each_row(name: str) -> None:
    model, rows = model_of(name), torch.tensor([TOKENS, tiny.token_ids(9, seed=1)])
    with torch.no_grad():
        full = model(rows)
    lengths = torch.tensor([9, 4])
    assert relative_error(last_logits(model, architecture(name), rows), full[:, -1]) < 1e-6
    ours = last_logits(model, architecture(name), rows, lengths)
    assert relative_error(ours, torch.stack([full[0, 8], full[1, 3]])) < 1e-6


def test_padding_does_not_move_a_row_across_a_switch_of_its_positions() -> None:
    """LongRoPE looks at the last position of a batch, which may be padding."""
    model, hf = family("phi3_longrope"), hf_family("phi3_longrope")
    arch = architecture_of(model)
    rows, lengths = torch.tensor([TOKENS, tiny.token_ids(9, seed=1)]), torch.tensor([6, 4])
    with torch.no_grad():
        truth = torch.stack(
            [hf(row[None, :n]).logits[0, -1] for row, n in zip(rows, lengths.tolist(), strict=True)]
        )
        shared = torch.stack([hf(rows).logits[0, 5], hf(rows).logits[1, 3]])
    assert relative_error(last_logits(model, arch, rows, lengths), truth) < 1e-5
    assert relative_error(shared, truth) > 1e-2
    long = torch.tensor([9, 9])
    with torch.no_grad():
        beyond = hf(rows).logits[:, -1]
    assert relative_error(last_logits(model, arch, rows, long), beyond) < 1e-5


def test_rows_that_would_change_each_other_are_refused() -> None:
    model = family("phi3_longrope")
    rows, lengths = torch.tensor([TOKENS, TOKENS]), torch.tensor([9, 4])
    with pytest.raises(ValueError, match=r"4 and of 9 tokens, but .*change beyond 8 tokens"):
        last_logits(model, architecture_of(model), rows, lengths)
    unaware = dataclasses.replace(architecture_of(model), padding_is_exact=False)
    with pytest.raises(ValueError, match=r"of 3 and of 4 tokens, but .*padding is read"):
        last_logits(model, unaware, rows[:, :4], torch.tensor([4, 3]))


@pytest.mark.parametrize("name", NAMES)
def test_activations_are_the_residual_stream_and_its_parts(name: str) -> None:
    read = read_activations(model_of(name), architecture(name), as_tensor(TOKENS))
    truth = oracle.edge_vectors(name, TOKENS)
    assert relative_error(read.nodes[0], truth[0].residual) < 1e-5
    for node, slow in zip(read.nodes[1:], truth, strict=True):
        assert relative_error(node, slow.node) < 1e-5
    mlps = [edges.mlp[0] for edges in truth if len(edges.mlp)]
    assert len(read.mlp) == len(mlps)
    for ours, slow in zip(read.mlp, mlps, strict=True):
        assert relative_error(ours, slow) < 1e-5
    arch = architecture(name)
    assert read.pattern.shape == (arch.layers, arch.heads, 9, 9)
    assert read.value.shape == (arch.layers, 9, arch.kv_heads, arch.d_head)
    assert (read.attention_scale == 1).all() != arch.post_norm


def test_only_the_last_position_is_unembedded() -> None:
    seen: list[torch.Size] = []

    def users(value: Tensor, hook: Any) -> None:
        seen.append(value.shape)

    model = model_of("llama")
    point = model.hook_dict["unembed.hook_out"]
    point.add_hook(users)
    try:
        last_logits(model, architecture("llama"), as_tensor(TOKENS)[None])
    finally:
        point.remove_hooks("fwd")
    assert seen == [(1, 1, tiny.VOCABULARY)]


@pytest.mark.parametrize("name", NAMES)
def test_all_logits_are_the_models_at_every_position(name: str) -> None:
    model, rows = model_of(name), torch.tensor([TOKENS, tiny.token_ids(9, seed=1)])
    with torch.no_grad():
        full = model(rows)
    ours = all_logits(model, architecture(name), rows)
    assert relative_error(ours, full) < 1e-6
    assert not ours.requires_grad
    turned = ("blocks.1.hook_resid_post", lambda value, hook: value.flip(-1))
    assert relative_error(all_logits(model, architecture(name), rows, [turned]), full) > 1e-3
    assert torch.equal(all_logits(model, architecture(name), rows), ours)


def test_a_gradient_is_kept_where_it_is_asked_for() -> None:
    weight = torch.ones((), requires_grad=True)
    hook = ("blocks.0.hook_resid_post", lambda value, hook: value * weight)
    options = (model_of("llama"), architecture("llama"), as_tensor(TOKENS)[None], [hook])
    assert not all_logits(*options).requires_grad
    assert all_logits(*options, gradient=True).requires_grad
    last = last_logits(*options[:3], hooks=[hook], gradient=True)
    (gradient,) = torch.autograd.grad(last.square().sum(), weight)
    assert float(gradient.abs()) > 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error(bad: float) -> None:
    hook = ("blocks.1.hook_resid_post", lambda value, hook: value * bad)
    with pytest.raises(FloatingPointError, match="tiny-llama gave NaN or infinite logits"):
        last_logits(model_of("llama"), architecture("llama"), as_tensor(TOKENS)[None], hooks=[hook])


@given(count=st.integers(0, 500), largest=st.integers(1, 60))
def test_even_chunks_cover_all_rows_in_few_even_parts(count: int, largest: int) -> None:
    chunks = list(even_chunks(count, largest))
    covered = [i for chunk in chunks for i in range(count)[chunk]]
    assert covered == list(range(count))
    assert len(chunks) == -(-count // largest)
    sizes = [chunk.stop - chunk.start for chunk in chunks]
    assert all(1 <= size <= largest for size in sizes)
    assert not sizes or max(sizes) - min(sizes) <= 1


def test_rows_per_pass_fill_the_budget() -> None:
    arch = architecture("llama")
    one = bytes_per_row(arch, 20)
    assert rows_per_pass(arch, 20, one) == 1
    assert rows_per_pass(arch, 20, 7 * one + one // 2) == 7
    assert rows_per_pass(arch, 20, 1) == 1
    assert bytes_per_row(arch, 40) > 2 * one
    wider = dataclasses.replace(arch, d_vocab=2 * arch.d_vocab)
    assert bytes_per_row(wider, 20) > one


def test_the_byte_budget_is_by_the_kind_of_device_unless_given() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert byte_budget(None, cpu) == MEMORY_BUDGET
    assert byte_budget(None, gpu) == byte_budget(None, torch.device("cuda:1")) == DEVICE_BUDGET
    assert byte_budget(None, torch.device("mps")) == DEVICE_BUDGET > 8 * MEMORY_BUDGET
    assert byte_budget(7, cpu) == byte_budget(7, gpu) == 7
    for budget in (0, -5):
        with pytest.raises(ValueError, match=f"positive; got {budget} bytes"):
            byte_budget(budget, gpu)
