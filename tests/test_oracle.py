"""The oracle is itself held against the untouched models, and its two halves against each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from strace_lens.traces.edges import EdgeTensors, hook_name
from tests import oracle, tiny

HOOKED = [pytest.param(name, marks=tiny.needs_hooked_transformer) for name in tiny.HOOKED]
POST_NORM = {"olmo2", "gemma2", "gemma3", "norms_before_and_after"}
TOKENS = tiny.token_ids(9)  # more than twice the sliding window


def model_of(name: str) -> Any:
    return tiny.bridge(name) if name in tiny.BRIDGES else tiny.hooked(name)


def everything(name: str, tokens: list[int]) -> EdgeTensors:
    return oracle.graph_shape(name, len(tokens)).full(1.0, torch.bool)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("length", [1, 2, 9, 40])
@pytest.mark.parametrize("name", tiny.BRIDGES)
def test_full_mask_gives_the_hugging_face_logits(name: str, length: int) -> None:
    tokens = tiny.token_ids(length, seed=length)
    with torch.no_grad():
        theirs = tiny.hf_model(name)(torch.tensor([tokens])).logits[0, -1]
    ours = oracle.masked_logits(name, tokens, everything(name, tokens))
    assert ours.dtype == torch.float64
    assert relative_error(ours, theirs) < 1e-5


@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize("name", HOOKED)
def test_full_mask_gives_the_hooked_transformer_logits(name: str, length: int) -> None:
    tokens = tiny.token_ids(length, seed=length)
    with torch.no_grad():
        theirs = tiny.hooked(name)(torch.tensor([tokens]))[0, -1]
    ours = oracle.masked_logits(name, tokens, everything(name, tokens))
    assert relative_error(ours, theirs) < 1e-5


@pytest.mark.parametrize("name", [*tiny.BRIDGES, *HOOKED])
def test_in_edges_sum_to_the_nodes_that_transformer_lens_reads(name: str) -> None:
    shape = oracle.graph_shape(name, len(TOKENS))
    with torch.no_grad():
        _, cache = model_of(name).run_with_cache(torch.tensor([TOKENS]))
    levels = oracle.edge_vectors(name, TOKENS)
    assert len(levels) == shape.levels - 1
    for level, edges in enumerate(levels, start=1):
        node = edges.residual + edges.attention.sum((0, 2)) + edges.mlp.sum(0) + edges.bias
        source = cache[hook_name(shape, level - 1)][0]
        assert relative_error(node, cache[hook_name(shape, level)][0]) < 1e-5
        assert relative_error(edges.residual, source) < 1e-5


@pytest.mark.parametrize("name", [*tiny.BRIDGES, *HOOKED])
def test_dropping_an_edge_into_the_output_takes_its_vector_from_the_output(name: str) -> None:
    """The masked run and the edge vectors are two ways to the same number (no post-norm)."""
    full = oracle.masked_stream(name, TOKENS, everything(name, TOKENS))
    for what, keep, vector in _edges_into_output(name):
        if name in POST_NORM and what == "attention":
            continue  # its norm is recomputed, not linear
        dropped = oracle.masked_stream(name, TOKENS, keep)
        torch.testing.assert_close(full - dropped, vector, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", [*tiny.BRIDGES, *HOOKED])
def test_edges_that_cannot_reach_the_output_do_nothing_and_others_do(name: str) -> None:
    shape = oracle.graph_shape(name, len(TOKENS))
    full = oracle.masked_logits(name, TOKENS, everything(name, TOKENS))
    reached = oracle.masked_logits(name, TOKENS, shape.reachable())
    torch.testing.assert_close(reached, full, atol=1e-12, rtol=0)
    for kind in range(3):
        if shape.reachable()[kind].numel():
            keep = list(shape.reachable())
            keep[kind] = torch.zeros_like(keep[kind])
            emptied = oracle.masked_logits(name, TOKENS, EdgeTensors(*keep))
            assert relative_error(emptied, full) > 1e-2


@pytest.mark.parametrize("name", [*tiny.BRIDGES, *HOOKED])
def test_an_empty_mask_leaves_the_bias_of_the_last_node(name: str) -> None:
    shape = oracle.graph_shape(name, len(TOKENS))
    empty = oracle.masked_stream(name, TOKENS, shape.full(0.0, torch.bool))
    bias = oracle.edge_vectors(name, TOKENS)[-1].bias[-1]
    torch.testing.assert_close(empty, bias, atol=1e-12, rtol=0)


def test_positions_matter_except_where_they_are_switched_off() -> None:
    """Two tokens before the last, swapped: one layer of a model without positions cannot tell."""
    swapped = [TOKENS[1], TOKENS[0], *TOKENS[2:]]
    for name, order_matters in (("no_positions", False), ("mixtral", True)):
        ours, theirs = (
            oracle.edge_vectors(name, tokens)[0].node[-1] for tokens in (TOKENS, swapped)
        )
        assert torch.allclose(ours, theirs, atol=1e-9) is not order_matters


def _edges_into_output(name: str) -> Iterator[tuple[str, EdgeTensors, Tensor]]:
    """Every mask that drops one in-edge of the output node, with the vector of that edge."""
    last = oracle.edge_vectors(name, TOKENS)[-1]
    shape = oracle.graph_shape(name, len(TOKENS))

    def without(kind: int, *index: int) -> EdgeTensors:
        keep = shape.full(1.0, torch.bool)
        keep[kind][index] = False
        return keep

    for head, key in torch.cartesian_prod(*map(torch.arange, last.attention.shape[::2])).tolist():
        yield "attention", without(0, -1, head, -1, key), last.attention[head, -1, key]
    yield "residual", without(1, -1, -1, -1), last.residual[-1]
    if len(last.mlp):
        yield "mlp", without(2, -1, -1), last.mlp[0, -1]
