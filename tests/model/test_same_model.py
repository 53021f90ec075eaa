"""A bridge held against the Hugging Face model that it was made of."""

from __future__ import annotations

import math

import pytest
import torch
import transformers as tf

from strace_lens.model.architecture import UnsupportedModelError
from strace_lens.model.same_model import PROBE_TOKENS, check_model, reference_of
from tests import cases, tiny
from tests.families import FAMILIES


@pytest.mark.parametrize("name", tiny.BRIDGES)
def test_a_bridge_equals_its_own_original_and_an_untouched_copy(name: str) -> None:
    model = tiny.bridge(name)
    assert check_model(model) < 1e-5
    assert check_model(model, tiny.hf_model(name)) < 1e-5


def test_the_original_is_compared_without_the_modules_that_the_bridge_put_into_it() -> None:
    """Run with the bridge's modules, it would agree with the bridge whatever that computes."""
    model = cases.fresh_bridge("llama")
    tokens, truth = reference_of(tiny.hf_model("llama"))
    model.original_model.model.norm.register_forward_hook(lambda module, given, out: 1.1 * out)
    with pytest.raises(UnsupportedModelError, match="the bridge is not the model"):
        check_model(model)
    with torch.no_grad():
        inside = model.original_model(tokens[None]).logits[0]
    assert cases.relative_error(inside, truth) > 1e-2


def test_hooks_of_the_users_are_no_part_of_the_original() -> None:
    model = cases.fresh_bridge("gpt2")
    model.add_hook("blocks.0.hook_resid_post", lambda value, hook: 2 * value)
    with pytest.raises(UnsupportedModelError, match="the bridge is not the model"):
        check_model(model)
    model.reset_hooks()
    assert check_model(model) < 1e-5


def test_the_gap_and_its_position_are_named() -> None:
    other = tiny.BRIDGES["llama"]()
    with torch.no_grad():
        other.model.embed_tokens.weight[reference_of(other)[0][10]] += 0.1
    tokens, reference = reference_of(other)
    message = r"tiny-llama \(LlamaForCausalLM\) .* total variation of (\S+) at position (\d+) of a"
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        check_model(tiny.bridge("llama"), other)
    with torch.no_grad():
        ours = tiny.hf_model("llama")(tokens[None]).logits[0].softmax(-1)
    gaps = (ours - reference.softmax(-1)).abs().sum(-1) / 2
    assert f"{float(gaps.max()):.1e} at position {int(gaps.argmax())} " in str(caught.value)


def test_processed_weights_need_an_untouched_model_to_compare_with() -> None:
    folded = cases.bridge_of(tiny.BRIDGES["gpt2"](), processed=True)
    with pytest.raises(ValueError, match=r"weights of this bridge were processed.*against="):
        check_model(folded)
    assert check_model(folded, tiny.hf_model("gpt2")) < 1e-5


def test_processing_that_changes_a_model_is_found() -> None:
    """A trap of TransformerLens: folding the norms of GPT-OSS gives another model."""
    make = FAMILIES["gpt_oss"]
    with pytest.raises(UnsupportedModelError, match=r"mine \(GptOss.* not the model"):
        check_model(cases.bridge_of(make(), processed=True), make())
    assert check_model(cases.bridge_of(make()), make()) < 1e-5


@pytest.mark.parametrize("name", ["cohere", "cohere2", "hunyuan"])
def test_families_that_an_old_bridge_computes_wrongly_are_found(name: str) -> None:
    """A trap of TransformerLens 3.9, gone in 4: rotary embeddings and norms of queries."""
    model = cases.bridge_of(FAMILIES[name]())
    if not tiny.HAS_HOOKED_TRANSFORMER:
        assert check_model(model) < 1e-5
        return
    for against in (None, FAMILIES[name]()):
        with pytest.raises(UnsupportedModelError, match="the bridge is not the model"):
            check_model(model, against)


def test_a_model_of_another_vocabulary_is_no_original() -> None:
    other = tf.LlamaForCausalLM(tf.LlamaConfig(**{**tiny._GROUPED, "vocab_size": 50}))
    with pytest.raises(UnsupportedModelError, match=r"it gives 108 logits and the .* model 50"):
        check_model(tiny.bridge("llama"), other.eval())


@tiny.needs_hooked_transformer
def test_a_hooked_transformer_needs_a_model_to_compare_with() -> None:
    with pytest.raises(ValueError, match=r"a HookedTransformer does not hold .* against="):
        check_model(tiny.hooked("layernorm"))


def test_the_probe_is_no_longer_than_the_context() -> None:
    config = tf.GPT2Config(**{**tiny._GPT, "n_positions": 7})
    assert len(reference_of(tf.GPT2LMHeadModel(config).eval())[0]) == 7
    assert len(reference_of(tiny.hf_model("gpt2"))[0]) == PROBE_TOKENS


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_compared_within_its_rounding(dtype: torch.dtype) -> None:
    """Against float32 weights, whose difference is that rounding, and against another model."""
    model = cases.fresh_bridge("mixtral", dtype)
    assert check_model(model) < 1e-2
    assert 1e-4 < check_model(model, tiny.hf_model("mixtral")) < 0.2
    with pytest.raises(UnsupportedModelError, match="the bridge is not the model"):
        check_model(model, tiny.hf_model("llama"))


def test_logits_that_are_no_numbers_are_no_agreement() -> None:
    broken = tiny.BRIDGES["llama"]()
    broken.model.norm.weight.fill_(math.nan)
    for model, against in ((cases.bridge_of(broken), None), (tiny.bridge("llama"), broken)):
        with pytest.raises(FloatingPointError, match="NaN or infinite logits"):
            check_model(model, against)


def test_the_modes_of_the_caller_change_nothing() -> None:
    """GPT-2 has dropout, which training mode switches on."""
    model, other = cases.fresh_bridge("gpt2"), tiny.BRIDGES["gpt2"]()
    plain = check_model(model), check_model(model, other)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(False):
        assert (check_model(model), check_model(model, other)) == plain
    model.train()
    other.train()
    assert (check_model(model), check_model(model, other)) == plain
    assert model.training
    assert other.training
