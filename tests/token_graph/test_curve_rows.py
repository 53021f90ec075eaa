"""Which masks a curve runs: one for each different output, and the right one for each size."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch

import strace_lens as sl
from strace_lens.model.checks import architecture_of
from strace_lens.token_graph.ablation import ZERO
from strace_lens.token_graph.controls import random_ranks
from strace_lens.token_graph.curve_rows import curve_rows, most_rows, with_sizes
from strace_lens.token_graph.edges import KINDS, EdgeTensors
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
            kept = EdgeTensors(
                **{kind: one.kept(kind, r)[0] for kind, r in one.ranks._asdict().items()}
            )
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
    assert rows.random_inverse is not None
    for i, size in enumerate(SIZES):
        k = trace.edge_count(size)
        own = run[rows.trace[i]]
        # A silent model's trace that reaches no embedding is the empty one; see below.
        assert torch.equal(own, ranks < k) or (architecture.silent_without_input and not own.any())
        assert torch.equal(run[rows.inverse[i]], (ranks >= k) | always)
        grown = random_ranks(trace.shape, 2, k).flat()[reachable.flat()] < k
        assert torch.equal(run[rows.random[i]], grown | always)
        assert torch.equal(run[rows.random_inverse[i]], ~grown | always)


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


KEEPS = [keep for n in range(1, 4) for keep in itertools.combinations(KINDS, n)]


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("name", ["llama", "mistral", "gptj"])
def test_kinds_that_are_kept_are_in_every_mask(name: str, keep: tuple[str, ...]) -> None:
    model = tiny.bridge(name)
    architecture = architecture_of(model)
    trace = sl.extract(sl.token_graph(model, tiny.token_ids(6)))
    options = {"replacement": ZERO, "seed": 2, "keep": keep}
    rows = curve_rows(architecture, trace, SIZES, controls=True, **options)
    run = masks(rows.groups)
    assert len(run) == len(rows)
    reachable = trace.shape.reachable()
    there = reachable.flat()

    def of(kinds: Sequence[str]) -> torch.Tensor:
        whole = {kind: torch.full_like(x, kind in kinds) for kind, x in reachable._asdict().items()}
        return EdgeTensors(**whole).flat()[there]

    always, beside = of(keep), of((*keep, "residual"))
    ranks = trace.ranks.flat()[there]
    assert run[rows.full].all()
    assert {tuple(mask.tolist()) for mask in run[: len(rows.groups[0])]} == {
        tuple(((ranks < trace.edge_count(size)) | always).tolist()) for size in (*SIZES, 1.0)
    }
    for i, size in enumerate(SIZES):
        k = trace.edge_count(size)
        own = (ranks < k) | always
        assert torch.equal(run[rows.trace[i]], own)
        assert int(rows.ablatable[i]) == int((own & ~always).sum())
        grown = random_ranks(trace.shape, 2, k).flat()[there] < k
        assert torch.equal(run[rows.inverse[i]], (ranks >= k) | beside)
        assert torch.equal(run[rows.random[i]], grown | beside)
        assert torch.equal(run[rows.random_inverse[i]], ~grown | beside)


@pytest.mark.parametrize("keep", [(), ("attention",), ("residual", "mlp")])
def test_sizes_are_added_without_a_mask_run_twice(keep: tuple[str, ...]) -> None:
    model = tiny.bridge("llama")
    architecture = architecture_of(model)
    trace = sl.extract(sl.token_graph(model, tiny.token_ids(6)))
    options = {"replacement": ZERO, "seed": 2, "keep": keep, "controls": False}
    coarse, added = SIZES[::3], [s for s in SIZES if s not in SIZES[::3]]
    grown = with_sizes(
        curve_rows(architecture, trace, coarse, **options), architecture, trace, added
    )
    at_once = curve_rows(architecture, trace, SIZES, **options)
    assert len(grown) == len(at_once)
    ours, theirs = masks(grown.groups), masks(at_once.groups)
    for mine, whole in zip(grown.trace.tolist(), at_once.trace.tolist(), strict=True):
        assert torch.equal(ours[mine], theirs[whole])
    assert torch.equal(grown.ablatable, at_once.ablatable)


def test_an_unknown_kind_is_refused() -> None:
    model = tiny.bridge("llama")
    trace = sl.extract(sl.token_graph(model, tiny.token_ids(6)))
    with pytest.raises(ValueError, match="unknown kind of edge 'heads'; choose from residual"):
        sl.density_curve(model, trace, keep=("heads",))
    with pytest.raises(ValueError, match="keep takes a sequence of kinds"):
        sl.density_curve(model, trace, keep="attention")
