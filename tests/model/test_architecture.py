"""What is read off each model, against its configuration and its own modules."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import transformers as tf

from strace_lens.model.architecture import (
    UnsupportedModelError,
    attention_output,
    describe,
    hook_points,
    mlp_constant,
    per_query_head,
)
from tests import cases, oracle, tiny
from tests.cases import NAMES, POST_NORM, architecture, model_of, relative_error
from tests.families import FAMILIES, family

GROUPED = ("llama", "mistral", "mixtral", "qwen3", "olmo2", "gemma2", "gemma3", "no_positions")
GROUPED += ("gpt_oss", "olmo_clipped", "granite")


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_wiring_are_those_of_the_model(name: str) -> None:
    found = architecture(name)
    model = oracle.plain(name)
    assert found.layers == len(model.layers)
    assert (found.heads, found.d_model, found.d_head) == (4, 32, 8)
    assert found.kv_heads == (2 if name in (*GROUPED, "grouped_query") else 4)
    assert found.d_vocab == tiny.VOCABULARY
    assert found.parallel == (name in cases.PARALLEL)
    assert found.mlp == (name != "attention_only")
    assert found.post_norm == (name in POST_NORM)
    assert found.context == (2048 if name == "bloom" else 64)  # ALiBi knows no end
    assert found.name == (f"tiny-{name}" if name in tiny.BRIDGES else found.name)


@pytest.mark.parametrize("name", NAMES)
def test_heads_write_with_the_models_weights(name: str) -> None:
    for index, layer in enumerate(oracle.plain(name).layers):
        ours = attention_output(model_of(name), architecture(name), index)
        attention = layer.attention
        group = len(attention.W_O) // len(attention.value_bias)
        b_V = attention.value_bias.repeat_interleave(group, 0)
        torch.testing.assert_close(ours.weight.double(), attention.W_O)
        torch.testing.assert_close(ours.bias.double(), attention.b_O)
        torch.testing.assert_close(ours.value_bias.double(), b_V)
        assert not ours.weight.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_an_mlp_without_its_edge_leaves_its_bias(name: str) -> None:
    arch = architecture(name)
    for index, layer in enumerate(oracle.plain(name).layers):
        if layer.mlp is None:
            continue
        constant = torch.zeros(32, dtype=torch.float64)
        if layer.mlp_bias is not None:
            constant = layer.mlp_bias
        if layer.mlp_post is not None:
            constant = layer.mlp_post(constant)
        ours = mlp_constant(model_of(name), arch, index)
        assert not ours.requires_grad
        assert relative_error(ours, constant) < 1e-6


@pytest.mark.parametrize("name", POST_NORM)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_norm_after_attention_is_its_gain_over_its_scale(name: str, dtype: torch.dtype) -> None:
    model_of(name)  # skips
    if name in tiny.HOOKED and dtype != torch.float32:
        pytest.skip("made once, in float32")
    model = tiny.hooked(name) if name in tiny.HOOKED else cases.fresh_bridge(name, dtype)
    arch = cases.architecture_of(model)
    for layer in range(arch.layers):
        out = attention_output(model, arch, layer)
        norm = oracle.plain(name).layers[layer].attention_post
        x = torch.randn(5, 32, generator=torch.Generator().manual_seed(layer)).double()
        scale = (x.square().mean(-1) + norm.eps).sqrt()
        ours = out.linear_norm(x) / scale[:, None] + out.norm_bias
        assert relative_error(ours, norm(x)) < (1e-6 if dtype == torch.float32 else 1e-2)
        assert not out.centred


@pytest.mark.parametrize("name", ["llama", "gptj", "gemma2", *cases.HOOKED])
def test_every_hook_point_named_is_there_and_named_once(name: str) -> None:
    names = hook_points(architecture(name))
    assert len(names) == len(set(names))
    assert set(names) <= set(model_of(name).hook_dict)
    has_mid = any("hook_resid_mid" in n for n in names)
    assert has_mid == (name not in (*cases.PARALLEL, "attention_only"))


def test_a_model_without_a_hook_point_is_refused_by_its_name(monkeypatch) -> None:
    model = cases.fresh_bridge("gpt2")
    lacking = {k: v for k, v in model.hook_dict.items() if not k.endswith("hook_mlp_out")}
    monkeypatch.setattr(type(model), "hook_dict", property(lambda self: lacking))
    with pytest.raises(
        UnsupportedModelError, match=r"tiny-gpt2 .*no hook point blocks.0.hook_mlp_out \(nor 2"
    ):
        describe(model)


@pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v3"])
def test_latent_attention_is_refused_by_name(name: str) -> None:
    model = cases.bridge_of(FAMILIES[name]())
    with pytest.raises(UnsupportedModelError, match=r"^mine \(Deepseek.* \(MLA\)"):
        describe(model)


def test_a_decoder_whose_unembedding_is_called_decoder_is_no_encoder_decoder() -> None:
    model = cases.bridge_of(FAMILIES["modern_bert_decoder"]())
    assert hasattr(model, "decoder")
    assert describe(model).layers == 2


def test_an_encoder_decoder_is_refused() -> None:
    config = tf.T5Config(vocab_size=tiny.VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2)
    model = tf.T5ForConditionalGeneration(config)
    model.config.architectures = ["T5ForConditionalGeneration"]
    with pytest.raises(UnsupportedModelError, match="it is an encoder-decoder"):
        describe(cases.bridge_of(model))


def test_the_length_beyond_which_positions_change_is_read() -> None:
    arch = describe(family("phi3_longrope"))
    assert arch.position_switches == (8,)
    assert [arch.padding_class(n) for n in (1, 8, 9, 64)] == [0, 0, 1, 1]
    apart = dataclasses.replace(arch, padding_is_exact=False)
    assert [apart.padding_class(n) for n in (1, 8, 9)] == [1, 8, 9]
    for name in ("phi3", "llama_dynamic", "gpt_oss"):
        assert describe(family(name)).position_switches == ()


def test_dynamic_scaling_begins_beyond_the_longest_prompt() -> None:
    """A fact of transformers that `position_switches` leans on."""
    rotary, limit = FAMILIES["llama_dynamic"]().model.rotary_emb, 8
    assert describe(family("llama_dynamic")).context == limit
    frequencies = []
    for length in (limit, limit + 1):
        rotary(torch.zeros(1, length, 32), torch.arange(length)[None])
        frequencies.append(rotary.inv_freq.clone())
    assert torch.equal(frequencies[0], rotary.original_inv_freq)
    assert not torch.equal(*frequencies)


def test_query_heads_share_the_key_value_head_of_their_group() -> None:
    x = torch.arange(6).view(2, 3)
    assert per_query_head(x, 2, dim=0) is x
    assert per_query_head(x, 6, dim=0)[:, 0].tolist() == [0, 0, 0, 3, 3, 3]
    assert per_query_head(x, 6, dim=1)[0].tolist() == [0, 0, 1, 1, 2, 2]
