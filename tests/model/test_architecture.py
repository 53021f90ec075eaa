"""Models in parts, some of them on the disk: everything is as it is with the model in one piece."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from typer.testing import CliRunner

import strace_lens as sl
from strace_lens.cli import app
from strace_lens.model.architecture import (
    UnsupportedModelError,
    at_hand,
    attention_output,
    describe,
    device_of,
    device_of_layer,
    hook_points,
    is_away,
    mlp_constant,
    per_query_head,
)
from strace_lens.model.checks import architecture_of
from strace_lens.model.weights import fingerprint, weights_hash
from strace_lens.traces.ablation import ZERO
from tests import cases, oracle, tiny
from tests.cases import NAMES, POST_NORM, architecture, model_of, relative_error
from tests.families import FAMILIES, family

PLACED = ("llama", "gpt2", "gptj", "gemma2", "opt", "mixtral")
"""Masks written at the pattern and beside it, norms behind attention, biases, mixtures, ties."""

IDS = tiny.token_ids(9)
CPU = torch.device("cpu")

needs_disk = pytest.mark.skipif(
    tiny.HAS_HOOKED_TRANSFORMER, reason="TransformerLens 3.9 takes no part that is on the disk"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @functools.cache
    def folder(name: str) -> Path:
        path = tmp_path_factory.mktemp("models") / name
        tiny.hf_model(name).save_pretrained(path)
        tiny.tokenizer().save_pretrained(path)
        return path

    return folder


@functools.cache
def whole(folder: Path) -> Any:
    return sl.load_model(folder, device="cpu")


def alternating(name: str) -> dict[str, str]:
    """Every second module that holds tensors of its own on the disk, the others in memory."""
    holders = [
        path
        for path, module in tiny.hf_model(name).named_modules()
        if [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    ]
    return {path: "disk" if place % 2 else "cpu" for place, path in enumerate(holders)}


def results(model: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What reading and ranking with and without gradients give, and the numbers of curves."""
    graph = sl.token_graph(model, IDS)
    greedy, fisher = sl.extract(graph), sl.fisher(model, graph)
    other = tiny.token_ids(9, seed=1)
    swap = sl.replacement(model, graph.prompt, "resample", corrupted=other)
    curves = [
        sl.density_curve(model, trace, refine=2, replacement=replaced)
        for trace in (greedy, fisher)
        for replaced in (ZERO, swap)
    ]
    numbers = ["tv", "kl", "inverse_tv", "random_tv"]
    measured = [torch.tensor(curve.table[numbers].to_numpy()) for curve in curves]
    return [graph.activations.logits, *greedy.ranks, *fisher.ranks], measured


@pytest.mark.extended
@needs_disk
@pytest.mark.parametrize("placing", ["all on the disk", "every second part on the disk"])
@pytest.mark.parametrize("name", PLACED)
def test_a_model_on_the_disk_gives_what_the_whole_model_gives(
    name: str, placing: str, folders: Any, tmp_path: Path
) -> None:
    if placing == "all on the disk":
        device_map = {"": "disk"}
    elif tiny.hf_model(name).config.tie_word_embeddings or name == "gptj":
        pytest.skip("transformers refuses maps that part what is tied")
    else:
        device_map = alternating(name)
    parted = sl.load_model(folders(name), device_map=device_map, offload_folder=tmp_path)
    assert is_away(parted)
    assert device_of(parted) == device_of_layer(parted, 1) == CPU
    assert architecture_of(parted) == architecture_of(whole(folders(name)))
    (ours, ours_measured), (truth, truth_measured) = map(results, (parted, whole(folders(name))))
    torch.testing.assert_close(ours, truth, rtol=0, atol=0)
    # How a product of few rows is rounded depends on where in memory the weights lie.
    torch.testing.assert_close(ours_measured, truth_measured, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert is_away(parted)  # nothing that was brought has stayed


@needs_disk
@pytest.mark.parametrize("name", PLACED)
def test_weights_are_the_same_wherever_they_lie(name: str, folders: Any, tmp_path: Path) -> None:
    parted = sl.load_model(folders(name), device_map={"": "disk"}, offload_folder=tmp_path)
    one = whole(folders(name))
    assert weights_hash(parted) == weights_hash(one)
    assert fingerprint(parted) == fingerprint(parted)
    arch = architecture_of(one)
    for layer in range(arch.layers):
        ours, truth = (vars(attention_output(model, arch, layer)) for model in (parted, one))
        for fact, value in truth.items():
            assert (
                ours[fact].equal(value) if isinstance(value, torch.Tensor) else ours[fact] == value
            )
        assert mlp_constant(parted, arch, layer).equal(mlp_constant(one, arch, layer))


@needs_disk
def test_what_was_read_while_at_hand_stays(folders: Any) -> None:
    parted: Any = sl.load_model(folders("llama"), device_map={"": "disk"})
    norm = parted.original_model.get_submodule("model.norm").original_component
    with at_hand(norm):
        read = norm.weight.detach()
    assert norm.weight.is_meta
    assert read.equal(tiny.hf_model("llama").get_submodule("model.norm").weight)


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
def test_a_map_that_parts_nothing_changes_nothing(device_map: Any, folders: Any) -> None:
    model = sl.load_model(folders("llama"), device_map=device_map)
    assert (
        device_of(model).type
        == torch.device(
            torch.accelerator.current_accelerator() or "cpu" if device_map == "auto" else "cpu"
        ).type
    )
    graph = sl.token_graph(model, IDS)
    truth = sl.token_graph(whole(folders("llama")), IDS)
    torch.testing.assert_close(graph.activations.logits.cpu(), truth.activations.logits)


@pytest.mark.skipif(not tiny.HAS_HOOKED_TRANSFORMER, reason="TransformerLens 4 takes them")
def test_parts_on_the_disk_are_refused_where_they_cannot_be_traced(folders: Any) -> None:
    with pytest.raises(sl.UnsupportedModelError, match=r"cannot wrap it: .*offload targets.*disk"):
        sl.load_model(folders("llama"), device_map={"": "disk"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_map": "all"}, "unknown device_map 'all'; choose from auto, balanced"),
        ({"device_map": "auto", "device": "cpu"}, "device and device_map exclude each other"),
        ({"offload_folder": "away"}, "offload_folder can only be used with a device_map"),
    ],
)
def test_a_map_that_makes_no_sense_is_refused(
    options: dict[str, Any], message: str, folders: Any
) -> None:
    with pytest.raises(ValueError, match=message):
        sl.load_model(folders("llama"), **options)


@pytest.mark.extended
@needs_disk
def test_a_sweep_takes_a_map_from_a_file(folders: Any, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(json.dumps({"": "disk"}))
    (tmp_path / "prompts.txt").write_text("the capital of France is\nthe city by the river\n")
    given = ["sweep", str(tmp_path / "prompts.txt"), "--model", str(folders("llama"))]
    given += ["--sizes", "0.1,1", "--threads", "1", "--estimator", "fisher"]
    for out, more in (("parted", ["--device-map", str(tmp_path / "map.json")]), ("whole", [])):
        result = CliRunner().invoke(app, [*given, "--out", str(tmp_path / out), *more])
        assert result.exit_code == 0, result.output
    parted, one = (sl.read_run(tmp_path / out) for out in ("parted", "whole"))
    assert parted.sizes["tv"].equals(one.sizes["tv"])
    assert parted.manifest["weights"] == one.manifest["weights"]


@pytest.mark.parametrize("content", ["{}", '{"": 1.5}'])
def test_a_file_that_is_no_map_is_one_line(content: str, folders: Any, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(content)
    given = ["trace", "the king", "--model", str(folders("llama"))]
    result = CliRunner().invoke(app, [*given, "--device-map", str(tmp_path / "map.json")])
    assert result.exit_code == 2
    assert "must hold one object, with the device of each part by its name" in result.stderr


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
