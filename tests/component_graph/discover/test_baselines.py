"""The baselines against the weights of the Hugging Face models, which know nothing of ours."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from strace_lens.component_graph.discover.baselines import random, weight_magnitude
from strace_lens.component_graph.experiment import prepare
from strace_lens.model.architecture import UnsupportedModelError
from tests import cases, tiny
from tests.component_graph.made import tiny_task, uneven_task


def magnitude(name: str) -> tuple[Tensor, object]:
    problem = prepare(cases.model_of(name), tiny_task())
    return weight_magnitude(problem), problem.graph


def test_random_is_uniform_and_seeded() -> None:
    problem = prepare(cases.model_of("llama"), tiny_task())
    exists = problem.graph.exists
    first, again, other = (random(problem, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not first[~exists].any()
    assert 0.4 < float(first[exists].mean()) < 0.6
    assert problem.passes.forward_rows == 0
    by_position = random(problem, positions=True)
    assert by_position.shape == (*exists.shape, 6)
    assert by_position[exists].unique().numel() > 0.99 * 6 * problem.graph.edges


def test_random_positions_need_one_length() -> None:
    problem = prepare(cases.model_of("llama"), uneven_task())
    with pytest.raises(ValueError, match="one length"):
        random(problem, positions=True)


def test_magnitudes_of_layernorm() -> None:
    values, graph = magnitude("gpt2")
    hf = tiny.hf_model("gpt2").transformer
    block, width = hf.h[1], 32

    def read(gain: Tensor, weight: Tensor) -> Tensor:  # behind a LayerNorm, [d_model, out]
        folded = gain[:, None] * weight
        return (folded - folded.mean(0)).norm()

    attention = block.attn.c_attn.weight.view(width, 3, 4, 8)  # q, k, v; four heads of eight
    readers = {
        f"a1.h2<{kind}>": read(block.ln_1.weight, attention[:, i, 2])
        for i, kind in enumerate("qkv")
    }
    readers["m1"] = read(block.ln_2.weight, block.mlp.c_fc.weight)
    readers["logits"] = read(hf.ln_f.weight, tiny.hf_model("gpt2").lm_head.weight.T)
    writers = {
        "embed": (hf.wte.weight.square().sum() + hf.wpe.weight.square().sum()).sqrt(),
        "a0.h3": hf.h[0].attn.c_proj.weight[24:32].norm(),
        "m0": hf.h[0].mlp.c_proj.weight.norm(),
    }
    for destination, reader in readers.items():
        for source, writer in writers.items():
            edge = graph.parse_edge(f"{source}->{destination}")
            torch.testing.assert_close(values[edge], reader * writer)
    assert not values[~graph.exists].any()
    assert bool((values[graph.exists] > 0).all())


def test_magnitudes_of_grouped_and_gated_weights() -> None:
    values, graph = magnitude("llama")
    hf = tiny.hf_model("llama").model
    layer = hf.layers[1]
    gain = layer.input_layernorm.weight
    key = (gain * layer.self_attn.k_proj.weight.view(2, 8, 32)[1]).norm()
    after = layer.post_attention_layernorm.weight
    gated = torch.cat([after * layer.mlp.up_proj.weight, after * layer.mlp.gate_proj.weight])
    head = hf.layers[0].self_attn.o_proj.weight[:, 16:24].norm()
    for destination, reader in (("a1.kv1<k>", key), ("m1", gated.norm())):
        edge = graph.parse_edge(f"a0.h2->{destination}")
        torch.testing.assert_close(values[edge], reader * head)


def test_norms_after_a_block_belong_to_what_is_written() -> None:
    values, graph = magnitude("gemma2")
    hf = tiny.hf_model("gemma2").model
    first, second = hf.layers
    gain = 1 + first.post_feedforward_layernorm.weight  # Gemma stores it less one
    written = (gain[:, None] * first.mlp.down_proj.weight).norm()
    query = second.self_attn.q_proj.weight.view(4, 8, 32)[0]
    read = ((1 + second.input_layernorm.weight) * query).norm()
    edge = graph.parse_edge("m0->a1.h0<q>")
    torch.testing.assert_close(values[edge], written * read, atol=1e-4, rtol=1e-4)


def test_a_mixture_of_experts_is_refused() -> None:
    problem = prepare(cases.model_of("mixtral"), tiny_task())
    with pytest.raises(UnsupportedModelError, match="mixture of experts"):
        weight_magnitude(problem)
