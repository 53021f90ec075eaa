"""Parts that run at some places alone, against runs in which every part runs everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from strace_lens.corpus.hidden import ActivationRecorder, stream_of
from strace_lens.model.sparse import PARTS
from strace_lens.traces.ablation import replacement
from strace_lens.traces.curve_rows import curve_rows
from strace_lens.traces.extract import extract
from strace_lens.traces.graph import token_graph
from strace_lens.traces.live import live_parts, places
from strace_lens.traces.masked_run import SHARED_ROWS, masked_logits
from strace_lens.traces.rows import MaskedRows
from tests import cases, tiny

SIZES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.85, 1.0)


TWO_PROMPTS, ONE = (5, 8), (8,)
"""Tokens of the prompts of a pass: where there is one, rows share their first layers too."""


def groups_of(
    name: str,
    kind: str = "zero",
    keep: tuple[str, ...] = (),
    lengths: Sequence[int] = TWO_PROMPTS,
) -> list[Any]:
    """The rows of curves of prompts, controls and all."""
    model, groups = cases.model_of(name), []
    for length in lengths:
        graph = token_graph(model, tiny.token_ids(length))
        plan = curve_rows(
            cases.architecture(name),
            extract(graph),
            SIZES,
            controls=True,
            replacement=replacement(
                model,
                graph.prompt,
                kind,
                references=["the capital of France is Paris and the capital of Japan is Tokyo"],
            ),
            seed=0,
            keep=keep,
        )
        groups += plan.groups
    return groups


@pytest.mark.parametrize("lengths", [TWO_PROMPTS, ONE])
@pytest.mark.parametrize("name", cases.NAMES)
def test_the_rows_of_curves_have_the_logits_of_whole_runs(
    name: str, lengths: Sequence[int]
) -> None:
    model, architecture = cases.model_of(name), cases.architecture(name)
    groups = groups_of(name, lengths=lengths)
    assert max(map(len, groups)) >= SHARED_ROWS
    with cases.everywhere(model):
        whole = masked_logits(model, architecture, groups)
    assert cases.relative_error(masked_logits(model, architecture, groups), whole) < 2e-5


@pytest.mark.parametrize("keep", [(), ("attention",), ("mlp",), ("residual",)])
@pytest.mark.parametrize("kind", ["zero", "mean"])
@pytest.mark.parametrize("name", ["mistral", "gpt2", "gptj"])
def test_replacements_and_kinds_that_are_kept(name: str, kind: str, keep: tuple[str, ...]) -> None:
    model, architecture = cases.model_of(name), cases.architecture(name)
    for lengths in (TWO_PROMPTS, ONE):
        groups = groups_of(name, kind, keep, lengths)
        with cases.everywhere(model):
            whole = masked_logits(model, architecture, groups)
        assert cases.relative_error(masked_logits(model, architecture, groups), whole) < 2e-5


@pytest.mark.parametrize("name", ["mistral", "gpt2"])
def test_the_streams_of_watched_rows_are_those_of_whole_runs(name: str) -> None:
    model, architecture, groups = cases.model_of(name), cases.architecture(name), groups_of(name)
    prompts = list(dict.fromkeys(tuple(group.tokens.tolist()) for group in groups))
    streams = [stream_of(token_graph(model, list(ids))) for ids in prompts]
    numbers = [prompts.index(tuple(g.tokens.tolist())) for g in groups for _ in range(len(g))]

    def geometry() -> list[Tensor]:
        recorder = ActivationRecorder(architecture, streams, numbers)
        masked_logits(model, architecture, groups, watch=recorder.hooks, memory_budget=2**20)
        return list(recorder.geometry())

    with cases.everywhere(model):
        whole = geometry()
    for ours, truth in zip(geometry(), whole, strict=True):
        torch.testing.assert_close(ours, truth, atol=2e-3, rtol=2e-3, equal_nan=True)


def test_a_trace_without_edges_runs_nothing() -> None:
    """By hand: the output node reads nothing, and no other node is read."""
    architecture, shape = cases.architecture("mistral"), cases.shape("mistral", 6)
    stop = torch.zeros(1, dtype=torch.int32)
    tokens = torch.tensor(tiny.token_ids(6))
    empty = MaskedRows(tokens, shape, shape.full(0, torch.int32), None, stop)
    live = live_parts(architecture, empty, torch.zeros(1, dtype=torch.bool), share_clean=False)
    assert not live.needed.any()
    assert all(len(where.run) == 0 for where in places([live], [None]).values())
    model = cases.model_of("mistral")
    with cases.everywhere(model):
        whole = masked_logits(model, architecture, [empty])
    torch.testing.assert_close(masked_logits(model, architecture, [empty]), whole)


def test_one_place_stands_for_all_that_read_zeros() -> None:
    """Every MLP edge is kept and no other, so each MLP reads zeros wherever it is needed."""
    architecture, shape = cases.architecture("mistral"), cases.shape("mistral", 6)
    ranks = shape.full(1, torch.int32)
    ranks.mlp[:] = 0
    stop = torch.ones(1, dtype=torch.int32)
    group = MaskedRows(torch.tensor(tiny.token_ids(6)), shape, ranks, None, stop)
    live = live_parts(architecture, group, torch.ones(1, dtype=torch.bool), share_clean=False)
    mlp = PARTS.index("mlp")
    assert live.needed[:, mlp].all()
    assert live.zero[:, mlp].all()  # of zeros comes nothing
    found = places([live], [None])
    assert [len(found[layer, "mlp"].run) for layer in range(shape.layers)] == [1] * shape.layers


def test_controls_run_where_they_differ_from_the_untouched_run() -> None:
    """One attention edge into the last token of the last layer is cut: only there is work left."""
    architecture, shape = cases.architecture("mistral"), cases.shape("mistral", 6)
    ranks = shape.full(1, torch.int32)
    ranks.attention[-1, 0, -1, 2] = 0
    tokens, rows = torch.tensor(tiny.token_ids(6)), SHARED_ROWS
    cut = MaskedRows(tokens, shape, ranks, torch.ones(rows, dtype=torch.int32), None)
    unread = torch.zeros(rows, dtype=torch.bool)
    live = live_parts(architecture, cut, unread, share_clean=True)
    own = live.needed & ~live.clean
    per_row = own.sum((0, 2, 3)) // rows
    assert dict(zip(PARTS, per_row.tolist(), strict=True)) == {
        **{"q": 0, "k": 0, "v": 0},
        **{"o": 1, "mlp": 1},
    }
    assert own[-1, PARTS.index("o"), :, -1].all()
