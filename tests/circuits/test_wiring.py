"""How heads and MLPs read and write: against weights that no norm is folded into; refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers.pytorch_utils import Conv1D

from strace_lens.circuits.wiring import (
    INPUTS,
    component_graph,
    head_writer,
    input_projection,
    mlp_input_hooks,
    stream_point,
    wiring_of,
)
from strace_lens.model.architecture import UnsupportedModelError
from strace_lens.model.sparse import projection
from tests import cases, oracle, tiny
from tests.cases import fresh_bridge, model_of, relative_error
from tests.circuits.made import NAMES, hooks_on
from tests.model.test_checks import OTHER_KINDS, deaden

TOKENS = 5


def random_rows(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
def test_readers_are_the_norm_and_then_the_weights(name: str) -> None:
    """On a stream of our own, far from any that the model has seen."""
    model, plain = model_of(name), oracle.plain(name)
    wiring = wiring_of(model)
    stream = 3 * random_rows(0, TOKENS, wiring.architecture.d_model) + 0.5
    for index, layer in enumerate(plain.layers):
        x = stream.double()
        x = x if layer.attention_norm is None else layer.attention_norm(x)
        positions = layer.attention.positions
        placed = x if positions is None else x + positions[:TOKENS]
        truth = {
            "q": layer.attention.query(placed),
            "k": layer.attention.key(placed),
            "v": layer.attention.value(x),
        }
        norm = wiring.attention_norms[index]
        assert (norm is None) == (layer.attention_norm is None)
        centred = stream if norm is None else norm.centre(stream)
        scale = 1.0 if norm is None else norm.scale(centred)
        for kind in INPUTS:
            weight, offset = input_projection(model, wiring, index, kind, TOKENS)
            ours = torch.einsum("pm,hme->phe", centred / scale, weight) + offset
            assert relative_error(ours, truth[kind]) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_writers_are_w_o_and_the_norm_after_it(name: str) -> None:
    model, plain = model_of(name), oracle.plain(name)
    wiring = wiring_of(model)
    arch = wiring.architecture
    z = random_rows(1, arch.heads, TOKENS, arch.d_head)
    for index, layer in enumerate(plain.layers):
        out = z.double() @ layer.attention.W_O
        at = random_rows(2, TOKENS, arch.d_model).double()
        norm = layer.attention_post
        if norm is not None:
            centred = at - at.mean(-1, keepdim=True) if norm.centre else at
            scale = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
            out = norm.linearised(out, at=at) * scale
        assert relative_error(z @ head_writer(model, wiring, index), out) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_mlp_norms_are_there_where_the_input_lies_behind_them(name: str) -> None:
    wiring = wiring_of(model_of(name))
    for norm, layer in zip(wiring.mlp_norms, oracle.plain(name).layers, strict=True):
        if name in tiny.HOOKED or layer.mlp_norm is None:
            assert norm is None
        else:
            assert norm is not None
            x = random_rows(3, TOKENS, wiring.architecture.d_model)
            assert relative_error(norm(x), layer.mlp_norm(x.double())) < 1e-5
    mid = wiring.architecture.mlp and not wiring.architecture.parallel
    assert stream_point(wiring, 1) == f"blocks.1.hook_resid_{'mid' if mid else 'pre'}"


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_proven_once_and_left_as_it_was(name: str) -> None:
    model = model_of(name)
    before = hooks_on(model)
    assert wiring_of(model) is wiring_of(model)
    assert component_graph(model) is wiring_of(model).graph
    assert hooks_on(model) == before


@pytest.mark.parametrize("name", NAMES)
def test_heads_are_separate_where_no_norm_takes_them_together(name: str) -> None:
    assert wiring_of(model_of(name)).separate_heads is (name != "olmo2")


@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize("name", cases.HOOKED)
def test_the_flag_of_mlp_inputs_is_as_before_also_after_an_error(name: str, flag: bool) -> None:
    model = model_of(name)
    wiring = wiring_of(model)
    before = model.cfg.use_hook_mlp_in
    try:
        model.cfg.use_hook_mlp_in = flag
        with mlp_input_hooks(model, wiring):
            assert model.cfg.use_hook_mlp_in or not wiring.architecture.mlp
        assert model.cfg.use_hook_mlp_in == flag
        with pytest.raises(KeyError), mlp_input_hooks(model, wiring):
            raise KeyError
        assert model.cfg.use_hook_mlp_in == flag
    finally:
        model.cfg.use_hook_mlp_in = before


# What is refused


DEAD = [
    ("llama", "attn.hook_q"),
    ("llama", "attn.hook_k"),
    ("llama", "attn.hook_v"),
    ("llama", "mlp.hook_in"),
    ("gptj", "attn.hook_q"),
    ("gpt2", "attn.hook_k"),
    ("bloom", "attn.hook_v"),
    ("gemma2", "mlp.hook_in"),
    ("phi", "hook_resid_post"),
]


@pytest.mark.parametrize(("name", "point"), DEAD)
def test_a_model_with_a_dead_hook_is_refused_by_its_name(name: str, point: str) -> None:
    model = fresh_bridge(name)
    deaden(model.hook_dict[f"blocks.1.{point}"])
    before = hooks_on(model)
    message = rf"tiny-{name} cannot be patched: a write at blocks\.1\.{point} does not reach"
    with pytest.raises(UnsupportedModelError, match=message):
        component_graph(model)
    assert hooks_on(model) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gain_that_is_off_by_a_thousandth_is_refused(dtype: torch.dtype) -> None:
    model = fresh_bridge("llama", dtype)
    model.hook_dict["blocks.1.ln1.hook_out"].add_hook(lambda value, hook: value * 1.001)
    with pytest.raises(UnsupportedModelError, match=r"blocks\.1\.attn\.hook_q carries is not"):
        component_graph(model)


def test_heads_that_read_something_else_than_the_stream_are_refused() -> None:
    model = fresh_bridge("llama")
    model.hook_dict["blocks.1.ln1.hook_out"].add_hook(lambda value, hook: 2 * value)
    with pytest.raises(UnsupportedModelError, match=r"blocks\.1\.attn\.hook_q carries is not"):
        component_graph(model)


def test_an_mlp_that_reads_something_else_than_the_stream_is_refused() -> None:
    model = fresh_bridge("llama")
    model.hook_dict["blocks.1.ln2.hook_out"].add_hook(lambda value, hook: value + 1)
    with pytest.raises(UnsupportedModelError, match=r"blocks\.1\.mlp\.hook_in carries is not"):
        component_graph(model)


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_models_of_another_kind_are_refused_by_name(kind: str) -> None:
    """Granite scales what heads add; an encoder's stream is normed: sources do not sum to it."""
    build, _ = OTHER_KINDS[kind]
    hf: Any = build().eval()
    hf.config.architectures = [type(hf).__name__]
    made = TransformerBridge.boot_transformers(
        f"tiny-{kind}", hf_model=hf, tokenizer=tiny.tokenizer()
    )
    made.enable_compatibility_mode(no_processing=True)
    with pytest.raises(UnsupportedModelError, match=f"tiny-{kind}.* cannot be (traced|patched)"):
        component_graph(made)


def test_a_model_in_training_mode_is_proven_in_evaluation_mode() -> None:
    model = fresh_bridge("gpt2")
    model.train()
    assert component_graph(model) == component_graph(fresh_bridge("gpt2"))


@pytest.mark.parametrize("part", ["attn.q", "attn.v", "mlp.out", "ln2"])
def test_weights_with_nan_are_refused(part: str) -> None:
    model = fresh_bridge("llama")
    with torch.no_grad():
        next(model.blocks[1].get_submodule(part).parameters()).view(-1)[3] = float("nan")
    with pytest.raises(UnsupportedModelError, match=r"tiny-llama cannot be .*gap nan"):
        component_graph(model)


def test_what_is_no_model_of_transformer_lens_is_refused() -> None:
    for model in (torch.nn.Linear(2, 2), tiny.hf_model("llama")):
        with pytest.raises(UnsupportedModelError, match="boot_transformers"):
            component_graph(model)


@pytest.mark.skipif(not tiny.HAS_HOOKED_TRANSFORMER, reason="its bridge runs the hook since 4.0")
def test_the_opt_bridge_of_3_9_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"mlp\.hook_in never runs"):
        component_graph(tiny.bridge("opt"))


def test_projections_that_are_overwritten_need_not_run_where_some_are_of_gpt2s_kind() -> None:
    model = fresh_bridge("gpt2")
    assert isinstance(projection(model, 0, "o"), Conv1D)
    assert wiring_of(model).zero_projections
