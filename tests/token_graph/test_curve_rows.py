"""Which masks a curve runs: one for each different output, and the right one for each size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import strace_lens as sl
from strace_lens.ablation import ZERO
from strace_lens.contract import architecture_of
from strace_lens.token_graph.curve_rows import curve_rows, most_rows
from strace_lens.token_graph.masked_run import masked_logits
from strace_lens.token_graph.rows import MaskedRows
from tests import tiny

SIZES = (0.004, *np.linspace(0.01, 1, 34).tolist())


def masks(groups: tuple[MaskedRows, ...]) -> list[torch.Tensor]:
    """The mask of every row as one flat boolean vector, residual edges of controls kept."""
    every = []
    for group in groups:
        for row in range(len(group)):
            one = group.rows(slice(row, row + 1))
            kept = one.ranks.map(lambda r, one=one: one.keep(r)[0])
            if one.keep_residual:
                kept = kept._replace(residual=torch.ones_like(kept.residual))
            every.append(kept.flat()[one.shape.reachable().flat()])
    return every


@pytest.mark.parametrize("name", ["llama", "mistral", "gptj"])
def test_each_size_finds_its_mask_and_no_mask_is_run_twice(name: str) -> None:
    model = tiny.bridge(name)
    architecture = architecture_of(model)
    trace = sl.extract(sl.token_graph(model, tiny.token_ids(6)))
    rows = curve_rows(architecture, trace, SIZES, controls=True, replacement=ZERO, seed=2)
    run = masks(rows.groups)
    assert len(run) == len(rows) < most_rows(SIZES, controls=True)
    assert len({tuple(mask.tolist()) for mask in run[: len(rows.groups[0])]}) == len(rows.groups[0])
    assert run[rows.full].all()
    reachable = trace.shape.reachable()
    residual = trace.shape.full(False, torch.bool)._replace(residual=reachable.residual)
    always = residual.flat()[reachable.flat()]
    ranks = trace.ranks.flat()[reachable.flat()]
    assert rows.inverse is not None
    assert rows.random is not None
    for i, size in enumerate(SIZES):
        k = trace.edge_count(size)
        own = run[rows.trace[i]]
        # A silent model's trace that reaches no embedding is the empty one; see below.
        assert torch.equal(own, ranks < k) or (architecture.silent_without_input and not own.any())
        assert torch.equal(run[rows.inverse[i]], (ranks >= k) | always)
        grown = run[rows.random[i]]
        assert torch.equal(grown & always, always)
        assert int((grown & ~always).sum()) <= k


@pytest.mark.parametrize(
    ("name", "silent"), [("mistral", True), ("mixtral", True), ("llama", False), ("gpt2", False)]
)
def test_only_models_without_biases_are_silent_without_input(name: str, silent: bool) -> None:
    model = tiny.bridge(name)
    architecture = architecture_of(model)
    assert architecture.silent_without_input == silent
    trace = sl.extract(sl.token_graph(model, tiny.token_ids(6)))
    shape, ranks = trace.shape, trace.ranks
    reads_embedding = min(int(ranks.attention[0].min()), int(ranks.residual[0, 0].min()))
    assert reads_embedding > 1
    stop = torch.tensor([0, 1, reads_embedding, reads_embedding + 1], dtype=torch.int32)
    rows = MaskedRows(trace.prompt.tensor, shape, ranks, torch.zeros_like(stop), stop)
    empty, one, last, first = masked_logits(model, architecture, [rows])
    assert torch.equal(empty, last) == silent
    if silent:
        assert torch.equal(empty, one)
    assert not torch.equal(last, first)
