"""Weighted rows: masks where weights are 0 and 1, the slow forward pass where they lie between."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from strace_lens.model.forward import last_logits
from strace_lens.traces import ablation
from strace_lens.traces.ablation import ZERO
from strace_lens.traces.edges import EdgeTensors, GraphShape
from strace_lens.traces.masked_run import masked_logits
from strace_lens.traces.masks import mask_hooks
from strace_lens.traces.rows import MaskedRows, Rows, weighted_rows
from tests import cases
from tests.cases import architecture, model_of, relative_error
from tests.oracle_weighted import weighted_logits
from tests.weighted import (
    EVERY_MODEL,
    REFERENCES,
    TOKENS,
    random_weights,
    replacement_of,
    rows_of,
    shape_of,
)

CPU = torch.device("cpu")


def logits(name: str, groups: list[Rows]) -> Tensor:
    """One pass over rows of one length, masked or weighted."""
    tokens = torch.cat([g.tokens.expand(len(g), -1) for g in groups])
    hooks = mask_hooks(model_of(name), architecture(name), groups)
    return last_logits(model_of(name), architecture(name), tokens, hooks=hooks)


def random_ranks(shape: GraphShape) -> EdgeTensors:
    """Every reachable edge once, in no order at all: no prefix hangs from anything."""
    flat = shape.full(2**31 - 1, torch.int32).flat()
    order = torch.randperm(shape.edges, generator=torch.Generator().manual_seed(0)).int()
    flat[shape.reachable().flat()] = order
    return shape.split(flat)


@pytest.mark.extended
@pytest.mark.parametrize(("name", "kind"), EVERY_MODEL)
def test_weights_of_zero_and_one_are_the_masked_run(name: str, kind: str) -> None:
    instead, shape = replacement_of(name, kind), shape_of(name)
    ranks, tokens = random_ranks(shape), torch.tensor(TOKENS)
    counts = torch.tensor([0, 1, shape.edges // 3, shape.edges - 5, shape.edges])
    masked = MaskedRows(tokens, shape, ranks, counts * 0, counts, replacement=instead)
    weighted = weighted_rows(tokens, shape, ranks, counts, instead, CPU)
    truth = masked_logits(model_of(name), architecture(name), [masked])
    assert relative_error(logits(name, [weighted]), truth) < 1e-6
    assert relative_error(logits(name, [masked, weighted]), truth.repeat(2, 1)) < 1e-5


@pytest.mark.parametrize(("name", "kind"), EVERY_MODEL)
def test_fractional_weights_equal_the_slow_forward(name: str, kind: str) -> None:
    shape = shape_of(name)
    weights = random_weights(shape, rows=3)
    ours = logits(name, [rows_of(weights, shape, replacement_of(name, kind))])
    truth = [weighted_logits(name, TOKENS, w.map(Tensor.double), REFERENCES[kind]) for w in weights]
    assert relative_error(ours, torch.stack(truth)) < 2e-5
    assert relative_error(ours[0], truth[1]) > 1e-2


def test_only_weights_of_attention_and_mlp_edges_ask_for_gradients() -> None:
    shape = shape_of("llama")
    ranks, counts = random_ranks(shape), torch.tensor([4, 40], dtype=torch.int32)
    rows = weighted_rows(torch.tensor(TOKENS), shape, ranks, counts, ZERO, CPU)
    assert len(rows) == 2
    leaves = [*rows.attention, rows.mlp]
    assert all(x.is_leaf and x.requires_grad and x.dtype == torch.float32 for x in leaves)
    assert not rows.residual.requires_grad
    attention = torch.stack(rows.attention, 1)
    for row, count in enumerate(counts.tolist()):
        kept = EdgeTensors(attention[row], rows.residual[row], rows.mlp[row]).flat()
        assert torch.equal(kept, (ranks.flat() < count).float())


def test_weighted_rows_keep_what_stands_beside_the_trace() -> None:
    shape = shape_of("llama")
    ranks, counts = random_ranks(shape), torch.tensor([4, 40, 0], dtype=torch.int32)
    besides = [cases.random_mask(shape, density, seed=1) for density in (0.0, 0.3, 0.7)]
    rows = weighted_rows(torch.tensor(TOKENS), shape, ranks, counts, ZERO, CPU, besides)
    attention = torch.stack(rows.attention, 1)
    for row, (count, beside) in enumerate(zip(counts.tolist(), besides, strict=True)):
        kept = EdgeTensors(attention[row], rows.residual[row], rows.mlp[row]).flat()
        assert torch.equal(kept, ((ranks.flat() < count) | beside.flat()).float())
    assert all(x.is_leaf and x.requires_grad for x in (*rows.attention, rows.mlp))


def test_weighted_rows_whose_parts_do_not_fit_each_other_are_refused() -> None:
    shape = shape_of("llama")
    weights = random_weights(shape, rows=1)
    with pytest.raises(ValueError, match="the prompt has 5 tokens, its graph 6"):
        rows_of(weights, cases.shape("llama", 6))
    other = ablation.resample(model_of("llama"), architecture("llama"), torch.tensor([7, 8, 9]))
    with pytest.raises(ValueError, match="resample replacement has 3 tokens, the prompt 5"):
        rows_of(weights, shape, other)
