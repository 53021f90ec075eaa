"""What a configuration tells of a model, against the loaded model."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import strace_lens as sl
import strace_lens.model.skeleton as module
from strace_lens.model.architecture import describe
from strace_lens.model.checks import architecture_of
from strace_lens.model.load import ModelNotFoundError
from strace_lens.model.skeleton import skeleton
from tests import tiny
from tests.cases import REFUSED, fresh_bridge
from tests.families import FAMILIES, family

FROM_A_RUN = ("silent_without_input", "pointwise_mlps", "padding_is_exact", "rows_can_branch")
"""Facts that only a run of the very weights can tell, and that set no cost."""
FUSED = ("phi3", "glm")
"""One matrix holds queries, keys and values: TransformerLens cuts it up when it wraps the model."""


def facts(architecture: sl.TokenGraph | Any) -> dict[str, Any]:
    left_out = ("name", "attention_scales", "mlp_scales", *FROM_A_RUN)
    told = dataclasses.asdict(architecture)
    return {name: value for name, value in told.items() if name not in left_out}


@pytest.mark.parametrize("name", tiny.BRIDGES)
def test_a_configuration_tells_what_the_loaded_model_does(name: str) -> None:
    original = tiny.hf_model(name)
    if name in REFUSED:
        with pytest.raises(sl.UnsupportedModelError, match="cannot be traced"):
            skeleton(original.config)
        return
    config = copy.deepcopy(original.config)
    config.architectures = None  # as of one that was never saved with a model
    told = skeleton(config)
    assert facts(told.architecture) == facts(architecture_of(tiny.bridge(name)))
    assert told.weights_bytes == sum(p.nbytes for p in original.parameters())
    assert told.dtype == torch.float32
    assert told.assumptions == ()


@pytest.mark.parametrize("name", FUSED)
def test_a_layer_whose_matrices_are_cut_up_is_read_from_one_without_values(name: str) -> None:
    model = FAMILIES[name]()
    told = skeleton(model.config, dtype="bfloat16")
    assert facts(told.architecture) == facts(architecture_of(family(name)))
    assert told.architecture.layers == 2
    assert 2 * told.weights_bytes == sum(p.nbytes for p in model.parameters())


def test_a_folder_is_read_without_its_weights(tmp_path: Path) -> None:
    tiny.hf_model("llama").config.save_pretrained(tmp_path / "made")
    tiny.tokenizer().save_pretrained(tmp_path / "made")
    told = skeleton(tmp_path / "made")
    assert told.name == told.architecture.name == "made"
    assert facts(told.architecture) == facts(architecture_of(tiny.bridge("llama")))
    assert told.tokenizer("the capital").input_ids == tiny.tokenizer()("the capital").input_ids


def test_a_folder_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    tiny.hf_model("qwen3").config.save_pretrained(tmp_path)
    assert skeleton(tmp_path).tokenizer is None


@pytest.mark.extended
def test_a_large_model_takes_no_memory() -> None:
    """Qwen2.5-72B, whose weights are larger than this machine's memory in single precision."""
    config = tf.Qwen2Config(
        hidden_size=8192,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        intermediate_size=29568,
        vocab_size=152064,
        tie_word_embeddings=False,
    )
    told = skeleton(config, dtype="bfloat16")
    assert told.weights_bytes == 2 * 72_706_203_648
    shape = ("layers", "heads", "kv_heads", "d_model", "d_head", "d_mlp", "d_vocab")
    found = tuple(getattr(told.architecture, name) for name in shape)
    assert found == (80, 64, 8, 8192, 128, 29568, 152064)
    assert told.architecture.pattern_is_live


def test_where_no_small_model_can_be_made_attention_is_taken_at_its_dearest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(module._NARROW, "vocab_size", -1)
    told = skeleton(tiny.hf_model("llama").config)
    assert not told.architecture.pattern_is_live
    assert told.assumptions == (
        "attention is taken to be computed twice: no small model could be made",
    )


@pytest.mark.extended
@pytest.mark.parametrize(
    ("config", "message"),
    [
        (tf.T5Config(), r"t5 cannot be traced: Unrecognized configuration class"),
        (FAMILIES["deepseek_v2"]().config, r"its attention is multi-head latent \(MLA\)"),
    ],
)
def test_what_cannot_be_traced_is_refused(config: Any, message: str) -> None:
    with pytest.raises(sl.UnsupportedModelError, match=message):
        skeleton(config)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="cannot read the configuration of"):
        skeleton(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="unknown dtype 'int8'; choose from float32"):
        skeleton(dtype="int8")


def test_a_skeleton_takes_no_part_in_the_random_numbers_of_the_caller() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    skeleton(tiny.hf_model("gpt2").config)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_model_whose_weights_are_elsewhere_has_its_width_all_the_same() -> None:
    for name in ("gpt2", "llama"):  # their matrices lie one way and the other
        model: Any = fresh_bridge(name)
        before = describe(model).d_mlp
        model.original_model.to("meta")
        assert describe(model).d_mlp == before == (128 if name == "gpt2" else 48)
