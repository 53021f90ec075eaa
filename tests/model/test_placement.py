"""Models in parts, some of them on the disk: everything is as it is with the model in one piece."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import strace_lens as sl
from strace_lens.cli import app
from strace_lens.model.architecture import (
    attention_output,
    device_of,
    device_of_layer,
    mlp_constant,
)
from strace_lens.model.checks import architecture_of
from strace_lens.model.placement import at_hand, is_away
from strace_lens.model.weights import fingerprint, weights_hash
from strace_lens.token_graph.ablation import ZERO
from tests import tiny

NAMES = ("llama", "gpt2", "gptj", "gemma2", "opt", "mixtral")
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


def results(model: Any) -> list[torch.Tensor]:
    """What reading, ranking with and without gradients, and measuring give."""
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
    return [
        graph.activations.logits,
        *greedy.ranks,
        *fisher.ranks,
        *(torch.tensor(curve.table[numbers].to_numpy()) for curve in curves),
    ]


@needs_disk
@pytest.mark.parametrize("placing", ["all on the disk", "every second part on the disk"])
@pytest.mark.parametrize("name", NAMES)
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
    for ours, truth in zip(results(parted), results(whole(folders(name))), strict=True):
        torch.testing.assert_close(ours, truth, rtol=0, atol=0, equal_nan=True)
    assert is_away(parted)  # nothing that was brought has stayed


@needs_disk
@pytest.mark.parametrize("name", NAMES)
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
        ({"offload_folder": "away"}, "an offload folder is of use with a device_map alone"),
    ],
)
def test_a_map_that_makes_no_sense_is_refused(
    options: dict[str, Any], message: str, folders: Any
) -> None:
    with pytest.raises(ValueError, match=message):
        sl.load_model(folders("llama"), **options)


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
