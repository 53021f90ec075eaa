"""Rows that run as one for as long as their masks agree: the same outputs, with less work."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strace_lens.model.checks import rows_can_branch
from strace_lens.traces import masked_run
from strace_lens.traces.edges import EdgeTensors, GraphShape
from strace_lens.traces.row_tree import row_tree, some_rows
from strace_lens.traces.rows import MaskedRows, MaskRows, SubsetRows
from tests import cases, oracle, tiny
from tests.cases import NAMES, architecture, model_of, relative_error

TOKENS = tiny.token_ids(5)
ROWS = 6


def alike(shape: GraphShape, seed: int, layers: int) -> list[EdgeTensors]:
    """Random masks, each of which agrees with one before it in its first layers."""
    draw = torch.Generator().manual_seed(seed)
    masks = [cases.random_mask(shape, 0.7, seed=seed)]
    for row in range(1, ROWS):
        other = masks[int(torch.randint(row, (), generator=draw))]
        first = int(torch.randint(layers + 1, (), generator=draw))
        fresh = cases.random_mask(shape, 0.7, seed=seed + 100 * row)
        masks.append(
            EdgeTensors(
                *(torch.cat([a[:first], b[first:]]) for a, b in zip(other, fresh, strict=True))
            )
        )
    return masks


def groups_of(shape: GraphShape, masks: list[EdgeTensors]) -> list[MaskRows]:
    """The masks as ranks of 0 and 1, one group each, and as the bits of subsets."""
    tokens, half = torch.tensor(TOKENS), len(masks) // 2
    one = torch.ones(1, dtype=torch.int32)
    ranks = [mask.map(lambda kept: (~kept).to(torch.int8)) for mask in masks[:half]]
    bits = 1 << torch.arange(len(masks) - half, dtype=torch.int32)
    pairs = [m.map(lambda kept, b=bit: kept * b) for m, bit in zip(masks[half:], bits, strict=True)]
    subsets = EdgeTensors(*(torch.stack(kind).sum(0).int() for kind in zip(*pairs, strict=True)))
    return [
        *(MaskedRows(tokens, shape, each, start=None, stop=one) for each in ranks),
        SubsetRows(tokens, shape, subsets, bits, bits),
    ]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), layers=st.integers(1, 5), parallel=st.booleans())
def test_rows_run_together_exactly_where_all_their_masks_so_far_agree(
    seed: int, layers: int, parallel: bool
) -> None:
    shape = GraphShape(layers=layers, heads=2, tokens=5, mlp=True, parallel=parallel)
    masks = alike(shape, seed, layers)
    tree = row_tree(groups_of(shape, masks))

    def agree(one: int, other: int, layer: int) -> bool:
        pairs = zip(masks[one], masks[other], strict=True)
        return all(torch.equal(a[: layer + 1], b[: layer + 1]) for a, b in pairs)

    for layer in range(layers):
        firsts = [r for r in range(ROWS) if not any(agree(r, q, layer) for q in range(r))]
        assert tree.rows[layer].tolist() == firsts
        below = tree.rows[layer - 1].tolist() if layer else []
        for row, parent in zip(firsts, tree.parents[layer].tolist(), strict=True):
            assert parent == 0 if layer == 0 else agree(row, below[parent], layer - 1)
        places = tree.places[layer].tolist()
        assert all(agree(row, firsts[place], layer) for row, place in enumerate(places))
    assert tree.share == pytest.approx(sum(map(len, tree.rows)) / layers / ROWS)


def test_rows_with_other_replacements_never_run_as_one() -> None:
    shape = GraphShape(layers=2, heads=2, tokens=5, mlp=True, parallel=False)
    mask = cases.random_mask(shape, 0.7, seed=0)
    (one, *_) = groups_of(shape, [mask, mask])
    other = replace(one, replacement=replace(one.replacement))
    tree = row_tree([one, one, other])
    assert [places.tolist() for places in tree.places] == [[0, 0, 1]] * 2
    assert [len(group) for group in some_rows([one, other, one], torch.tensor([0, 2]))] == [1, 1]


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_tree_have_the_outputs_of_the_slow_forward(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, arch = model_of(name), architecture(name)
    shape = cases.shape(name, len(TOKENS))
    masks = [*alike(shape, 1, arch.layers), shape.full(1.0, torch.bool)]
    groups = groups_of(shape, masks)
    running: list[int] = []
    real = masked_run.last_logits

    def noting(*arguments: Any, **options: Any) -> Any:
        running.append(len(arguments[2]))
        return real(*arguments, **options)

    monkeypatch.setattr(masked_run, "last_logits", noting)
    monkeypatch.setattr(masked_run, "WORTHWHILE", 1.1)
    ours = masked_run.masked_logits(model, arch, groups)
    truth = torch.stack([oracle.masked_logits(name, TOKENS, keep) for keep in masks])
    assert relative_error(ours, truth) < 2e-5
    assert running == ([1] if arch.rows_can_branch else [len(masks)])
    # Where someone looks on, or where little is shared, every row runs.
    monkeypatch.setattr(masked_run, "WORTHWHILE", 0.0)
    assert relative_error(masked_run.masked_logits(model, arch, groups), ours) < 1e-5
    masked_run.masked_logits(
        model, arch, groups, watch=lambda batch: ([], torch.zeros(len(masks), dtype=torch.bool))
    )
    assert running[1:] == [len(masks)] * 2


def test_that_rows_can_branch_is_found_by_running_it() -> None:
    assert architecture("llama").rows_can_branch
    assert architecture("gpt2").rows_can_branch
    model, tokens = cases.fresh_bridge("llama"), torch.tensor(TOKENS)
    original: Any = model.original_model
    scales: list[torch.Tensor] = []

    def draw(module: Any, given: Any, output: torch.Tensor) -> None:
        scales[:] = [torch.arange(1.0, len(output) + 1)[:, None, None]]

    original.model.embed_tokens.register_forward_hook(draw)
    assert rows_can_branch(model, architecture("llama"), tokens)
    # A number for each row that comes in: it is another for rows that are made on the way.
    original.model.norm.register_forward_hook(lambda module, given, output: output * scales[0])
    assert not rows_can_branch(model, architecture("llama"), tokens)
