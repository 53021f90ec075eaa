"""How closely two sums of a dtype must agree."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from strace_lens.model.architecture import UnsupportedModelError, attention_output, describe
from strace_lens.model.checks import architecture_of, at_least_single, check, tolerance
from tests import cases, tiny
from tests.cases import NAMES, architecture, fresh_bridge, model_of
from tests.families import family


def test_the_tolerance_lies_above_rounding_and_rises_as_the_dtype_narrows() -> None:
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
    found = [tolerance(dtype) for dtype in dtypes]
    assert found == sorted(found)
    for dtype, allowed in zip(dtypes, found, strict=True):
        assert allowed > 2 * torch.finfo(dtype).eps


def test_products_in_a_lower_precision_are_not_held_to_single_precision() -> None:
    before = torch.get_float32_matmul_precision()
    assert tolerance(torch.float32) < 1e-3
    try:
        torch.set_float32_matmul_precision("high")
        assert tolerance(torch.float32) == tolerance(torch.bfloat16)
        assert tolerance(torch.float64) < 1e-5
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_becomes_single_and_nothing_becomes_narrower(dtype: torch.dtype) -> None:
    x = torch.tensor([1.0, 0.5], dtype=dtype)
    wide = at_least_single(x)
    assert wide.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(wide.to(dtype), x)


TOKENS = torch.tensor([tiny.token_ids(6)])


@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_passes(name: str) -> None:
    found = architecture_of(model_of(name))
    assert found.pattern_is_live == (name not in cases.DEAD_PATTERN)
    assert architecture_of(model_of(name)) is found  # proven once


@pytest.mark.skipif(not tiny.HAS_HOOKED_TRANSFORMER, reason="its bridge is whole since 4.0")
def test_the_olmo2_bridge_of_3_9_lacks_a_norm_and_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"tiny-olmo2 cannot be traced: at blocks\.0"):
        architecture_of(tiny.bridge("olmo2"))


# Models of another kind

_SIZES = {"vocab_size": tiny.VOCABULARY, "d_model": 32}
OTHER_KINDS: dict[str, tuple[Callable[[], tf.PreTrainedModel], str]] = {
    "T5": (
        lambda: tf.T5ForConditionalGeneration(
            tf.T5Config(
                **_SIZES, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
            )
        ),
        "an encoder-decoder",
    ),
    "Bart": (
        lambda: tf.BartForConditionalGeneration(
            tf.BartConfig(
                **_SIZES,
                encoder_layers=1,
                decoder_layers=1,
                encoder_attention_heads=4,
                decoder_attention_heads=4,
                encoder_ffn_dim=48,
                decoder_ffn_dim=48,
            )
        ),
        "an encoder-decoder",
    ),
    "Mamba": (
        lambda: tf.MambaForCausalLM(
            tf.MambaConfig(
                vocab_size=tiny.VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4
            )
        ),
        "a state-space model",
    ),
    "Bert": (
        lambda: tf.BertForMaskedLM(
            tf.BertConfig(
                vocab_size=tiny.VOCABULARY,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=48,
                attn_implementation="eager",
            )
        ),
        "not causal|do not add up",  # the bridge of 3.9 calls it causal
    ),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_models_of_another_kind_are_refused_by_name(kind: str) -> None:
    build, reason = OTHER_KINDS[kind]
    hf = build().eval()
    hf.config.architectures = [type(hf).__name__]
    made = TransformerBridge.boot_transformers(
        f"tiny-{kind}", hf_model=hf, tokenizer=tiny.tokenizer()
    )
    made.enable_compatibility_mode(no_processing=True)
    with pytest.raises(UnsupportedModelError, match=f"tiny-{kind}.* cannot be traced: .*{reason}"):
        architecture_of(made)


@pytest.mark.parametrize(
    ("options", "attributes", "reason"),
    [
        ({"is_stateful": True}, {"blocks": []}, "a state-space model"),
        ({"attention_dir": "bidirectional"}, {"blocks": []}, "not causal"),
        ({}, {"blocks": [], "decoder_blocks": []}, "an encoder-decoder"),
        ({}, {}, "without transformer blocks"),
    ],
)
def test_a_config_says_what_cannot_be_traced(
    options: dict[str, Any], attributes: dict[str, Any], reason: str
) -> None:
    cfg = types.SimpleNamespace(n_layers=1, n_heads=1, model_name="odd", **options)
    model: Any = types.SimpleNamespace(cfg=cfg, run_with_hooks=print, hook_dict={}, **attributes)
    with pytest.raises(UnsupportedModelError, match=f"odd .*cannot be traced: it is {reason}"):
        describe(model)


def test_a_plain_module_is_told_how_to_be_wrapped() -> None:
    for model in (torch.nn.Linear(2, 2), tiny.hf_model("llama")):
        with pytest.raises(UnsupportedModelError, match="boot_transformers"):
            architecture_of(model)


# Damaged models


def deaden(point: Any) -> None:
    """From now on hooks at this point are called, and what they return is dropped."""
    register = point.register_forward_hook

    def register_reader(hook: Callable[..., Any], **options: Any) -> Any:
        def reader(*args: Any) -> None:
            hook(*args)

        return register(reader, **options)

    point.register_forward_hook = register_reader


DEAD = [
    ("llama", "blocks.0.hook_resid_post"),
    ("llama", "blocks.2.hook_resid_post"),
    ("llama", "blocks.1.hook_resid_mid"),
    ("llama", "blocks.1.attn.hook_pattern"),  # of one layer only
    ("gpt_neox", "blocks.1.hook_resid_post"),
    ("gpt2", "blocks.1.attn.hook_z"),  # written where there is a value bias
    ("llama", "unembed.hook_in"),
]


@pytest.mark.parametrize(("name", "point"), DEAD)
def test_a_model_with_a_dead_hook_is_refused_by_its_name(name: str, point: str) -> None:
    model = fresh_bridge(name)
    deaden(model.hook_dict[point])
    with pytest.raises(UnsupportedModelError, match=f"tiny-{name} cannot be traced: .*{point}"):
        architecture_of(model)


def test_patterns_dead_in_every_layer_are_recomputed_instead() -> None:
    model = fresh_bridge("llama")
    for layer in range(3):
        deaden(model.hook_dict[f"blocks.{layer}.attn.hook_pattern"])
    assert not architecture_of(model).pattern_is_live


def test_dead_patterns_with_a_norm_after_attention_are_refused() -> None:
    """That norm would be forgotten where attention is recomputed."""
    model = fresh_bridge("gemma2")
    for layer in range(2):
        deaden(model.hook_dict[f"blocks.{layer}.attn.hook_pattern"])
    with pytest.raises(UnsupportedModelError, match="hook_pattern"):
        architecture_of(model)


@pytest.mark.parametrize("part", ["attn.o", "attn.v", "mlp.out", "ln1"])
def test_weights_with_nan_are_refused(part: str) -> None:
    model = fresh_bridge("llama")
    module = model.blocks[1].get_submodule(part)
    with torch.no_grad():
        next(module.parameters()).view(-1)[3] = float("nan")
    with pytest.raises(UnsupportedModelError, match=r"blocks.1 .*gap nan"):
        architecture_of(model)


def test_a_block_that_adds_something_else_is_refused() -> None:
    model = fresh_bridge("llama")
    add = model.hook_dict["blocks.1.hook_out"].add_hook
    add(lambda value, hook: value + 1.0)
    with pytest.raises(UnsupportedModelError, match=r"blocks.1 the parts of hook_resid_post"):
        architecture_of(model)


def test_a_model_in_training_mode_is_proven_in_evaluation_mode() -> None:
    model = fresh_bridge("gpt2")
    model.train()
    assert architecture_of(model) == architecture_of(fresh_bridge("gpt2"))


def test_a_model_that_draws_at_random_is_refused() -> None:
    """Two of its runs could not be compared."""
    model, generator = fresh_bridge("gpt2"), torch.Generator().manual_seed(0)

    def add_noise(value: torch.Tensor, hook: Any) -> torch.Tensor:
        return value + torch.randn(value.shape, generator=generator)

    model.hook_dict["hook_embed"].add_hook(add_noise)
    with pytest.raises(UnsupportedModelError, match=r"tiny-gpt2 .*drawn at random"):
        architecture_of(model)


def test_the_proof_leaves_no_hook_behind() -> None:
    model = fresh_bridge("llama")
    before = {name: len(point.fwd_hooks) for name, point in model.hook_dict.items()}
    architecture_of(model)
    assert {n: len(p.fwd_hooks) for n, p in model.hook_dict.items()} == before
    deaden(model.hook_dict["blocks.0.hook_resid_post"])
    with pytest.raises(UnsupportedModelError):
        check(model, architecture("llama"))
    assert {n: len(p.fwd_hooks) for n, p in model.hook_dict.items()} == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parts_that_miss_their_sum_by_a_thousandth_are_refused(dtype: torch.dtype) -> None:
    model = fresh_bridge("llama", dtype)
    architecture_of(model)
    damaged = fresh_bridge("llama", dtype)
    damaged.hook_dict["blocks.1.attn.hook_pattern"].add_hook(lambda value, hook: value * 1.001)
    damaged.hook_dict["blocks.1.attn.hook_z"].add_hook(lambda value, hook: value * 1.001)
    with pytest.raises(UnsupportedModelError, match=r"at blocks\.1 the parts of hook_attn_out"):
        architecture_of(damaged)


# Facts about TransformerLens that masked runs lean on (shared/transformerlens.md)


def around_a_write(name: str, point: str, watched: str) -> tuple[Tensor, Tensor]:
    """The values at one hook point before and after the sign of another's is turned."""

    def read(value: Tensor, hook: Any) -> None:
        seen.append(value.clone())

    def write(value: Tensor, hook: Any) -> Tensor:
        return -value

    seen: list[Tensor] = []
    with torch.no_grad():
        for hooks in ([], [(point, write)]):
            model_of(name).run_with_hooks(TOKENS, fwd_hooks=[*hooks, (watched, read)])
    before, after = seen
    return before, after


@pytest.mark.parametrize("name", [n for n in tiny.BRIDGES if n not in cases.PARALLEL])
def test_on_a_bridge_a_write_at_resid_mid_reaches_the_mlp_alone(name: str) -> None:
    mid = "blocks.0.hook_resid_mid"
    mlp, mlp_after = around_a_write(name, mid, "blocks.0.hook_mlp_out")
    post, post_after = around_a_write(name, mid, "blocks.0.hook_resid_post")
    assert not torch.allclose(mlp, mlp_after, atol=1e-2)
    torch.testing.assert_close(post_after - post, mlp_after - mlp, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_write_at_resid_post_is_what_the_next_block_reads(name: str) -> None:
    before, after = around_a_write(name, "blocks.0.hook_resid_post", "blocks.1.hook_resid_pre")
    torch.testing.assert_close(after, -before)


@pytest.mark.parametrize("name", NAMES)
def test_attention_writes_reach_its_output_where_the_contract_says_so(name: str) -> None:
    out = "blocks.0.hook_attn_out"
    before, after = around_a_write(name, "blocks.0.attn.hook_z", out)
    assert not torch.allclose(before, after, atol=1e-2)
    before, after = around_a_write(name, "blocks.0.attn.hook_pattern", out)
    assert torch.equal(before, after) == (name in cases.DEAD_PATTERN)


@pytest.mark.parametrize("name", NAMES)
def test_hook_points_fire_once_and_before_the_one_that_needs_them(name: str) -> None:
    arch, order = architecture(name), []
    names = ["hook_resid_pre", "attn.hook_v", "attn.hook_pattern", "attn.hook_z", "hook_attn_out"]
    names += ["hook_mlp_out"] * arch.mlp + ["hook_resid_mid"] * (arch.mlp and not arch.parallel)
    names.append("hook_resid_post")
    hooks = [
        (f"blocks.0.{n}", lambda value, hook, n=n: order.append(n))  # returns None
        for n in names
    ]
    with torch.no_grad():
        model_of(name).run_with_hooks(TOKENS, fwd_hooks=hooks)
    assert sorted(order) == sorted(names)
    pairs = [("hook_resid_pre", "hook_attn_out"), ("hook_attn_out", "hook_resid_post")]
    pairs += [("attn.hook_v", "hook_resid_post"), ("attn.hook_pattern", "hook_resid_post")]
    if arch.pattern_is_live:
        pairs += [("attn.hook_pattern", "attn.hook_z"), ("attn.hook_v", "attn.hook_z")]
    if arch.mlp:
        pairs.append(("hook_mlp_out", "hook_resid_post"))
        if not arch.parallel:
            pairs += [("hook_attn_out", "hook_resid_mid"), ("hook_resid_mid", "hook_mlp_out")]
            pairs.append(("attn.hook_pattern", "hook_resid_mid"))
    for earlier, later in pairs:
        assert order.index(earlier) < order.index(later), (earlier, later)


@pytest.mark.parametrize("name", NAMES)
def test_values_have_the_key_value_heads_and_w_o_the_query_heads(name: str) -> None:
    arch = architecture(name)
    with torch.no_grad():
        _, cache = model_of(name).run_with_cache(TOKENS)
    assert cache["blocks.0.attn.hook_v"].shape == (1, 6, arch.kv_heads, arch.d_head)
    assert cache["blocks.0.attn.hook_pattern"].shape == (1, arch.heads, 6, 6)
    weight = attention_output(model_of(name), arch, 0).weight
    assert weight.shape == (arch.heads, arch.d_head, arch.d_model)


# Padding


@pytest.mark.parametrize("name", NAMES)
def test_right_padding_is_harmless_in_every_architecture(name: str) -> None:
    assert architecture(name).padding_is_exact


def test_a_model_that_padding_changes_is_found_by_running_it() -> None:
    """LongRoPE, with the length at which its positions change left out of what is known."""
    model = family("phi3_longrope")
    assert architecture_of(model).padding_is_exact
    unaware = dataclasses.replace(describe(model), position_switches=())
    assert not check(model, unaware).padding_is_exact
