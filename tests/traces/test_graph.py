"""In-edges against the oracle's, edge by edge, on every architecture."""

from __future__ import annotations

import pytest
import torch

from strace_lens.model import architecture
from strace_lens.model.architecture import UnsupportedModelError
from strace_lens.model.prompts import PromptError
from strace_lens.traces.graph import InEdges, shape_of, token_graph
from tests import cases, oracle, tiny
from tests.cases import NAMES, model_of, relative_error

TOKENS = tiny.token_ids(9)


def vectors(edges: InEdges) -> torch.Tensor:
    """Attention edges as vectors, [head, query, key, d_model]."""
    assert edges.coefficient is not None
    assert edges.written is not None
    return torch.einsum("hqk,khd->hqkd", edges.coefficient, edges.written)


@pytest.mark.parametrize("name", NAMES)
def test_in_edges_and_bias_sum_to_every_node(name: str) -> None:
    graph = token_graph(model_of(name), TOKENS)
    sublayers = list(graph.in_edges())
    assert len(sublayers) == graph.shape.levels - 1
    for edges in sublayers:
        total = edges.residual.double() + edges.bias
        if edges.mlp is not None:
            total = total + edges.mlp
        if edges.coefficient is not None:
            total = total + vectors(edges).sum((0, 2))
        error = (total - edges.node).norm(dim=-1) / edges.node.norm(dim=-1)
        assert error.max() < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_every_in_edge_equals_the_slow_one(name: str) -> None:
    graph = token_graph(model_of(name), TOKENS)
    assert graph.shape == oracle.graph_shape(name, len(TOKENS))
    truth = oracle.edge_vectors(name, TOKENS)
    for level, (edges, slow) in enumerate(zip(graph.in_edges(), truth, strict=True)):
        assert (edges.layer, edges.sublayer) == divmod(level, graph.shape.sublayers)
        assert relative_error(edges.node, slow.node) < 1e-5
        assert relative_error(edges.residual, slow.residual) < 1e-5
        assert relative_error(edges.bias, slow.bias) < 1e-5
        assert (edges.mlp is None) == (len(slow.mlp) == 0)
        assert (edges.coefficient is None) == (len(slow.attention) == 0)
        if edges.mlp is not None:
            assert relative_error(edges.mlp, slow.mlp[0]) < 1e-5
        if edges.coefficient is not None:
            assert edges.coefficient.min() >= 0
            assert relative_error(vectors(edges), slow.attention) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_the_graph_keeps_the_models_logits(name: str) -> None:
    graph = token_graph(model_of(name), TOKENS)
    assert relative_error(graph.activations.logits, cases.full_logits(name, TOKENS)) < 1e-6


@pytest.mark.parametrize("name", [n for n in tiny.BRIDGES if n != "olmo2"])
def test_half_precision_edges_are_read_in_float32(name: str) -> None:
    graph = token_graph(cases.fresh_bridge(name, torch.bfloat16), TOKENS)
    for edges, slow in zip(graph.in_edges(), oracle.edge_vectors(name, TOKENS), strict=True):
        assert edges.residual.dtype == edges.bias.dtype == edges.node.dtype == torch.float32
        assert relative_error(edges.node, slow.node) < 0.1
        if edges.coefficient is not None:
            assert vectors(edges).dtype == torch.float32
            assert relative_error(vectors(edges), slow.attention) < 0.1


@pytest.mark.parametrize(("position", "length"), [(None, 9), (-1, 9), (8, 9), (4, 5), (-3, 7)])
def test_the_graph_at_a_position_is_that_of_the_prefix(position: int | None, length: int) -> None:
    graph = token_graph(model_of("llama"), TOKENS, position=position)
    alone = token_graph(model_of("llama"), TOKENS[:length])
    assert graph.prompt.ids == alone.prompt.ids
    assert graph.shape.tokens == length
    torch.testing.assert_close(graph.activations.logits, alone.activations.logits)


def test_a_position_outside_the_prompt_is_refused() -> None:
    with pytest.raises(PromptError, match="two"):
        token_graph(model_of("llama"), TOKENS, position=0)
    for position in (9, -10):
        with pytest.raises(PromptError, match=f"{position}"):
            token_graph(model_of("llama"), TOKENS, position=position)


def test_text_and_its_token_ids_give_the_same_graph() -> None:
    by_text = token_graph(model_of("gpt2"), tiny.PROMPT)
    by_ids = token_graph(model_of("gpt2"), by_text.prompt.ids)
    by_prompt = token_graph(model_of("gpt2"), by_text.prompt)
    assert by_text.shape.tokens == 12
    assert by_ids.prompt.ids == by_text.prompt.ids == by_prompt.prompt.ids
    with_bos = token_graph(model_of("gpt2"), tiny.PROMPT, bos=True)
    assert with_bos.prompt.ids == (1, *by_text.prompt.ids)


def test_what_cannot_be_traced_is_refused() -> None:
    with pytest.raises(UnsupportedModelError):
        token_graph(torch.nn.Linear(2, 2), TOKENS)  # pyright: ignore[reportArgumentType]
    with pytest.raises(PromptError):
        token_graph(model_of("llama"), "")


def test_a_graph_prints_its_size() -> None:
    graph = token_graph(model_of("llama"), tiny.PROMPT)
    assert repr(graph) == "TokenGraph(tiny-llama: 12 tokens, 3 layers, 4 heads, 747 edges)"
    assert "'Paris'" in graph._repr_html_()
    assert shape_of(graph.architecture, 12) == graph.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("name", "point", "node"),
    [
        ("llama", "hook_attn_out", "hook_resid_mid"),
        ("granite", "hook_mlp_out", "hook_resid_post"),
        ("gpt_neox", "hook_attn_out", "hook_resid_post"),
    ],
)
def test_a_node_that_its_in_edges_miss_is_named(
    name: str, point: str, node: str, dtype: torch.dtype
) -> None:
    """The fault shows at the sixth token alone, which the probe of the model does not reach."""
    model = cases.fresh_bridge(name, dtype)

    def fault(tensor: torch.Tensor, *, hook: object) -> torch.Tensor:
        tensor = tensor.clone()
        tensor[:, 5:6] *= 1.5
        return tensor

    # What is written there is not what was read there, as our readers run first.
    graph = token_graph(model, TOKENS)
    model.hook_dict[f"blocks.1.{point}"].add_hook(fault)
    model.hook_dict[f"blocks.1.{node}"].add_hook(fault)
    assert token_graph(model, TOKENS[:5]).shape.tokens == 5
    message = rf"tiny-{name} cannot be traced on this prompt: .*blocks\.1\.{node} at token 5 \('"
    with pytest.raises(UnsupportedModelError, match=message):
        token_graph(model, TOKENS)
    model.reset_hooks()
    assert torch.equal(token_graph(model, TOKENS).activations.nodes, graph.activations.nodes)


def test_a_clip_that_the_model_does_not_tell_of_is_found_on_the_prompt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The values of its three probe tokens lie within the clip, those of some prompts do not."""
    monkeypatch.setattr(architecture, "_value_clip", lambda model: None)
    model = cases.bridge_of(tiny.olmo_with_clip(4.6))
    assert token_graph(model, tiny.token_ids(9, seed=1)).shape.tokens == 9
    with pytest.raises(UnsupportedModelError, match=r"on this prompt: .* do not add up"):
        token_graph(model, tiny.token_ids(9, seed=3))
