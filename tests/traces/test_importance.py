"""Importances against plain formulas on the oracle's explicit edge vectors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from strace_lens.traces.edges import EdgeTensors
from strace_lens.traces.graph import InEdges, TokenGraph, token_graph
from strace_lens.traces.importance import (
    IMPORTANCES,
    Options,
    edge_importance,
    importance_function,
)
from tests import cases, oracle, tiny
from tests.cases import NAMES, model_of

TOKENS = tiny.token_ids(7)
KNOWING = ["l1", "l2", "normf", "proximity", "ifr", "cosine", "leverage", "leverage(3)"]

Formula = Callable[[Float[Tensor, "edge d_model"], Float[Tensor, " d_model"]], Tensor]


def _share(x: Tensor) -> Tensor:
    return x / x.sum()


def _cosine(edges: Tensor, node: Tensor) -> Tensor:
    alive = edges.norm(dim=-1) > 0
    return torch.where(alive, (1 + torch.cosine_similarity(edges, node[None], dim=-1)) / 2, 0.0)


def _leverage(k: int) -> Formula:
    def formula(edges: Tensor, node: Tensor) -> Tensor:
        left, values, _ = torch.linalg.svd(edges, full_matrices=False)
        return _share((left[:, :k] ** 2 * (values[:k] > 1e-6 * values[0])).sum(-1))

    return formula


def _nearness(edges: Tensor, node: Tensor) -> Tensor:
    return node.abs().sum() - (node - edges).abs().sum(-1)


def _shifted(edges: Tensor, node: Tensor) -> Tensor:
    near = _nearness(edges, node)
    return _share(near + near.min().abs())


FORMULAS: dict[str, Formula] = {
    "l1": lambda e, n: _share(e.abs().sum(-1)),
    "l2": lambda e, n: _share(e.square().sum(-1).sqrt()),
    "normf": lambda e, n: e.abs().sum(-1) / n.abs().sum(),
    "proximity": lambda e, n: _share(_nearness(e, n).clamp_min(0)),
    "ifr": _shifted,
    "cosine": _cosine,
    "leverage": _leverage(1),
    "leverage(3)": _leverage(3),
}


def by_formula(name: str, formula: Formula) -> EdgeTensors:
    """The importance of every edge, node by node, from the oracle's vectors."""
    shape = oracle.graph_shape(name, len(TOKENS))
    result = shape.full(0.0, torch.float64)
    for level, edges in enumerate(oracle.edge_vectors(name, TOKENS)):
        layer, sublayer = divmod(level, shape.sublayers)
        heads, has_mlp = len(edges.attention), len(edges.mlp)
        for t in range(len(TOKENS)):
            attention = edges.attention[:, t, : t + 1]
            parts = [edges.residual[t, None], edges.mlp[:, t], attention.flatten(0, 1)]
            scores = formula(torch.cat(parts), edges.node[t])
            result.residual[layer, sublayer, t] = scores[0]
            if has_mlp:
                result.mlp[layer, t] = scores[1]
            if heads:
                result.attention[layer, :, t, : t + 1] = scores[1 + has_mlp :].view(heads, -1)
    return result


def graph_of(name: str) -> TokenGraph:
    return token_graph(model_of(name), TOKENS)


@pytest.mark.parametrize("importance", KNOWING)
@pytest.mark.parametrize("name", NAMES)
def test_importances_follow_their_formulas(name: str, importance: str) -> None:
    ours = edge_importance(graph_of(name), importance)
    truth = by_formula(name, FORMULAS[importance])
    for part, slow in zip(ours, truth, strict=True):
        assert part.dtype == torch.float32
        torch.testing.assert_close(part.double(), slow, atol=2e-5, rtol=1e-4)


def sums_by_node(scores: EdgeTensors, sublayer: int) -> Tensor:
    """The sum over the in-edges of every node of one sublayer, [layer, pos]."""
    total = scores.residual[:, sublayer]
    if sublayer == 0:
        total = total + scores.attention.sum((1, 3))
    if sublayer == scores.residual.shape[1] - 1 and len(scores.mlp):
        total = total + scores.mlp
    return total


@pytest.mark.parametrize("name", ["llama", "gptj", "olmo2", "mistral"])
def test_shares_sum_to_one(name: str) -> None:
    graph = graph_of(name)
    for importance in ("l1", "l2", "proximity", "ifr", "leverage", "leverage(50)"):
        scores = edge_importance(graph, importance)
        for sublayer in range(graph.shape.sublayers):
            total = sums_by_node(scores, sublayer)
            torch.testing.assert_close(total, torch.ones_like(total), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["mistral", "gptj", "olmo2"])
@pytest.mark.parametrize("importance", ["proximity", "ifr"])
def test_a_tiny_memory_budget_changes_nothing(name: str, importance: str) -> None:
    graph = graph_of(name)
    large = edge_importance(graph, importance)
    for budget in (1, 20_000):
        small = edge_importance(graph, importance, memory_budget=budget)
        for a, b in zip(small, large, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


@pytest.mark.parametrize("importance", KNOWING)
def test_acausal_pairs_have_no_importance(importance: str) -> None:
    scores = edge_importance(graph_of("llama"), importance)
    assert (scores.attention * torch.ones(7, 7).triu(1)).abs().max() < 1e-6


def test_random_importance_comes_from_the_seed_alone() -> None:
    first, again, other = (
        edge_importance(graph_of(name), "random", seed=seed).flat()
        for name, seed in (("mistral", 3), ("qwen3", 3), ("mistral", 4))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first.unique()) > 0.99 * len(first)
    assert 0 <= first.min() < 0.05
    assert 0.95 < first.max() < 1
    assert abs(first.mean() - 0.5) < 0.05


@pytest.mark.parametrize("name", IMPORTANCES)
def test_a_node_that_receives_nothing_has_finite_importances(name: str) -> None:
    zeros = torch.zeros(2, 3)
    edges = InEdges(
        layer=0,
        sublayer=0,
        node=zeros,
        bias=zeros,
        residual=zeros,
        mlp=zeros,
        coefficient=torch.eye(2)[None],
        written=torch.zeros(2, 1, 3),
    )
    scores = importance_function(name)(edges, Options(1000, torch.Generator().manual_seed(0)))
    for part in scores:
        assert part is not None
        assert part.isfinite().all()
        assert name == "random" or part.abs().max() == 0


def test_worked_by_hand() -> None:
    """One token, one head: node (4, 3) = residual (3, 0) + MLP (0, 4) + attention 0.5 (2, -2)."""
    edges = InEdges(
        layer=0,
        sublayer=0,
        node=torch.tensor([[4.0, 3.0]]),
        bias=torch.zeros(1, 2),
        residual=torch.tensor([[3.0, 0.0]]),
        mlp=torch.tensor([[0.0, 4.0]]),
        coefficient=torch.tensor([[[0.5]]]),
        written=torch.tensor([[[2.0, -2.0]]]),
    )
    for name, residual, mlp, attention in (
        ("l1", 3 / 9, 4 / 9, 2 / 9),
        ("normf", 3 / 7, 4 / 7, 2 / 7),
        ("proximity", 3 / 5, 2 / 5, 0.0),  # near by 3, 2 and 0
        ("cosine", 0.9, 0.8, (1 + 1 / (5 * 2**0.5)) / 2),
    ):
        scores = importance_function(name)(edges, Options(1000, torch.Generator()))
        assert scores.residual.item() == pytest.approx(residual)
        assert scores.mlp is not None
        assert scores.attention is not None
        assert scores.mlp.item() == pytest.approx(mlp)
        assert scores.attention.item() == pytest.approx(attention, abs=1e-6)


def one_node(node: list[float], residual: list[float], mlp: list[float]) -> InEdges:
    """A node that only a residual and an MLP edge enter."""
    parts = [torch.tensor([part]) for part in (node, residual, mlp)]
    return InEdges(
        layer=0, sublayer=1, node=parts[0], bias=parts[0] * 0, residual=parts[1], mlp=parts[2]
    )


@pytest.mark.parametrize(
    ("edges", "shares"),
    [
        # Near by 2 and -4: shifted by 4.
        (one_node([2.0, 0.0], [1.0, 0.0], [-4.0, 0.0]), (1, 0)),
        # Near by 3 and 1: shifted by 1, upwards.
        (one_node([4.0, 0.0], [3.0, 0.0], [1.0, 0.0]), (4 / 6, 2 / 6)),
        # Equally near, by 2 each.
        (one_node([2.0, 2.0], [2.0, 0.0], [0.0, 2.0]), (0.5, 0.5)),
        # Equally far, by -2 each: both are shifted to 0.
        (one_node([2.0, 2.0], [-2.0, 0.0], [0.0, -2.0]), (0, 0)),
    ],
)
def test_ifr_shifts_by_the_size_of_the_smallest(
    edges: InEdges, shares: tuple[float, float]
) -> None:
    scores = importance_function("ifr")(edges, Options(1000, torch.Generator()))
    assert scores.mlp is not None
    assert (scores.residual.item(), scores.mlp.item()) == pytest.approx(shares)


def test_normf_of_a_node_that_cancels_to_zero_is_finite() -> None:
    edges = one_node([0.0, 0.0], [1.0, 2.0], [-1.0, -2.0])
    scores = importance_function("normf")(edges, Options(1000, torch.Generator()))
    assert scores.mlp is not None
    assert (scores.residual.item(), scores.mlp.item()) == (0, 0)


@pytest.mark.extended
@given(data=st.data(), tokens=st.integers(1, 4), heads=st.integers(1, 3), width=st.integers(1, 3))
def test_small_whole_numbers_follow_the_formulas_node_by_node(
    data: st.DataObject, tokens: int, heads: int, width: int
) -> None:
    """Nodes with zeros and ties, of unrelated edges: what real activations hardly ever are."""

    def drawn(*shape: int, low: int = -3) -> Tensor:
        size = math.prod(shape)
        values = data.draw(st.lists(st.integers(low, 3), min_size=size, max_size=size))
        return torch.tensor(values, dtype=torch.float32).view(shape)

    edges = InEdges(
        layer=0,
        sublayer=0,
        node=drawn(tokens, width),
        bias=torch.zeros(tokens, width),
        residual=drawn(tokens, width),
        mlp=drawn(tokens, width) if data.draw(st.booleans()) else None,
        coefficient=drawn(heads, tokens, tokens, low=0).tril(),
        written=drawn(tokens, heads, width),
    )
    budget = data.draw(st.sampled_from([1, 40, 10_000]))
    assert edges.coefficient is not None
    assert edges.written is not None
    for name in ("l1", "normf", "proximity", "ifr"):
        scores = importance_function(name)(edges, Options(budget, torch.Generator()))
        assert scores.attention is not None
        assert (scores.mlp is None) == (edges.mlp is None)
        assert not scores.attention.triu(1).any()
        for q in range(tokens):
            dense = [edges.residual[q], *([] if edges.mlp is None else [edges.mlp[q]])]
            read = [
                edges.coefficient[h, q, k] * edges.written[k, h]
                for k in range(q + 1)
                for h in range(heads)
            ]
            truth = FORMULAS[name](torch.stack([*dense, *read]), edges.node[q])
            truth = torch.where(truth.isfinite(), truth, 0.0)  # 0 / 0, and edges into a zero node
            found = [scores.residual[q], *([] if scores.mlp is None else [scores.mlp[q]])]
            found += [scores.attention[h, q, k] for k in range(q + 1) for h in range(heads)]
            torch.testing.assert_close(torch.stack(found), truth)


def test_leverage_stops_at_the_rank() -> None:
    """Two parallel edges span one direction, which they share as the squares of their lengths."""
    edges = one_node([9.0, 12.0, 0.0], [3.0, 4.0, 0.0], [6.0, 8.0, 0.0])
    for k in (1, 2, 3):
        function = importance_function(f"leverage({k})")
        scores = function(edges, Options(1000, torch.Generator()))
        assert scores.mlp is not None
        assert [scores.residual.item(), scores.mlp.item()] == pytest.approx([0.2, 0.8])


@pytest.mark.parametrize("name", ["L1", "", "leverage(0)", "leverage()", "leverage(x)", "l1(2)"])
def test_unknown_importances_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"unknown importance {name!r}; choose from l1")):
        edge_importance(graph_of("llama"), name)


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_that_is_not_positive_is_refused(budget: int) -> None:
    with pytest.raises(ValueError, match=f"positive; got {budget}"):
        edge_importance(graph_of("llama"), "proximity", memory_budget=budget)


def test_half_precision_models_are_scored() -> None:
    graph = token_graph(cases.fresh_bridge("llama", torch.bfloat16), TOKENS)
    for name in IMPORTANCES:
        scores = edge_importance(graph, name).flat()
        assert scores.dtype == torch.float32
        assert scores.isfinite().all()
