"""Weighted rows: masks where weights are 0 and 1, the slow forward pass where they lie between."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from strace_lens import ablation
from strace_lens.ablation import ZERO, Replacement
from strace_lens.run import last_logits
from strace_lens.token_graph.edges import EdgeTensors, GraphShape
from strace_lens.token_graph.masked_run import masked_logits
from strace_lens.token_graph.masks import mask_hooks
from strace_lens.token_graph.rows import MaskedRows, Rows, WeightedRows, weighted_rows
from tests import cases, tiny
from tests.cases import NAMES, architecture, as_tensor, model_of, relative_error
from tests.oracle_weighted import weighted_logits

TOKENS = tiny.token_ids(6)
REFERENCES = {
    "zero": [],
    "resample": [tiny.token_ids(6, seed=1)],
    "mean": [tiny.token_ids(6, seed=1), tiny.token_ids(6, seed=2)],
}
CPU = torch.device("cpu")


def replacement_of(name: str, kind: str) -> Replacement:
    model, arch = model_of(name), architecture(name)
    references = [as_tensor(r) for r in REFERENCES[kind]]
    if kind == "zero":
        return ZERO
    if kind == "resample":
        return ablation.resample(model, arch, references[0])
    return ablation.mean(model, arch, references)


def logits(name: str, groups: list[Rows]) -> Tensor:
    """One pass over rows of one length, masked or weighted."""
    tokens = torch.cat([g.tokens.expand(len(g), -1) for g in groups])
    hooks = mask_hooks(model_of(name), architecture(name), groups)
    return last_logits(model_of(name), architecture(name), tokens, hooks=hooks)


def random_ranks(shape: GraphShape, seed: int) -> EdgeTensors:
    """Every reachable edge once, in no order at all: no prefix hangs from anything."""
    ranks, _ = cases.ranks_that_keep(shape.full(True, torch.bool), shape)
    shuffled = torch.randperm(shape.edges, generator=torch.Generator().manual_seed(seed)).int()
    flat = ranks.flat()
    flat[shape.reachable().flat()] = shuffled
    return shape.split(flat)


def random_weights(shape: GraphShape, rows: int, seed: int) -> list[EdgeTensors]:
    """Weights from 0 to 1, one in four of attention and MLP edges exactly at either end.

    Residual edges keep a third at least, so that no stream is small beside the epsilon of a norm.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(x: Tensor) -> Tensor:
        return (torch.rand(x.shape, generator=generator) * 2 - 0.5).clamp(0, 1)

    drawn = [shape.full(0.0, torch.float32).map(draw) for _ in range(rows)]
    return [w._replace(residual=(1 + 2 * w.residual) / 3) for w in drawn]


def rows_of(weights: list[EdgeTensors], shape: GraphShape, instead: Replacement) -> WeightedRows:
    attention, residual, mlp = (torch.stack(w) for w in zip(*weights, strict=True))
    return WeightedRows(
        tokens=as_tensor(TOKENS),
        shape=shape,
        attention=tuple(attention.unbind(1)),
        residual=residual,
        mlp=mlp,
        replacement=instead,
    )


@pytest.mark.parametrize("kind", REFERENCES)
@pytest.mark.parametrize("name", NAMES)
def test_weights_of_zero_and_one_are_the_masked_run(name: str, kind: str) -> None:
    instead, shape = replacement_of(name, kind), cases.shape(name, len(TOKENS))
    ranks = random_ranks(shape, seed=0)
    counts = torch.tensor([0, 1, shape.edges // 3, shape.edges - 5, shape.edges])
    masked = MaskedRows(
        as_tensor(TOKENS), shape, ranks, torch.zeros_like(counts), counts, replacement=instead
    )
    weighted = weighted_rows(as_tensor(TOKENS), shape, ranks, counts, instead, CPU)
    truth = masked_logits(model_of(name), architecture(name), [masked])
    assert relative_error(logits(name, [weighted]), truth) < 1e-6
    assert relative_error(logits(name, [masked, weighted]), truth.repeat(2, 1)) < 1e-5


@pytest.mark.parametrize("kind", REFERENCES)
@pytest.mark.parametrize("name", NAMES)
def test_fractional_weights_equal_the_slow_forward(name: str, kind: str) -> None:
    shape = cases.shape(name, len(TOKENS))
    weights = random_weights(shape, rows=3, seed=0)
    ours = logits(name, [rows_of(weights, shape, replacement_of(name, kind))])
    truth = [
        weighted_logits(name, TOKENS, w.map(Tensor.double), REFERENCES[kind]) for w in weights
    ]
    assert relative_error(ours, torch.stack(truth)) < 2e-5
    assert relative_error(ours[0], truth[1]) > 1e-2


def test_only_weights_of_attention_and_mlp_edges_ask_for_gradients() -> None:
    shape = cases.shape("llama", len(TOKENS))
    ranks = random_ranks(shape, seed=0)
    counts = torch.tensor([4, 40], dtype=torch.int32)
    rows = weighted_rows(as_tensor(TOKENS), shape, ranks, counts, ZERO, CPU)
    assert len(rows) == 2
    leaves = [*rows.attention, rows.mlp]
    assert all(x.is_leaf and x.requires_grad and x.dtype == torch.float32 for x in leaves)
    assert not rows.residual.requires_grad
    attention = torch.stack(rows.attention, 1)
    for row, count in enumerate(counts.tolist()):
        kept = EdgeTensors(attention[row], rows.residual[row], rows.mlp[row]).flat()
        assert torch.equal(kept, (ranks.flat() < count).float())


def test_weighted_rows_whose_parts_do_not_fit_each_other_are_refused() -> None:
    shape = cases.shape("llama", 5)
    weights = random_weights(shape, rows=1, seed=0)
    with pytest.raises(ValueError, match="the prompt has 6 tokens, its graph 5"):
        rows_of(weights, shape, ZERO)
    shape = cases.shape("llama", 6)
    other = ablation.resample(model_of("llama"), architecture("llama"), torch.tensor([7, 8, 9]))
    with pytest.raises(ValueError, match="resample replacement has 3 tokens, the prompt 6"):
        rows_of(random_weights(shape, rows=1, seed=0), shape, other)
