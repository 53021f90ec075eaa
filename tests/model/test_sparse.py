"""MLPs on kept tokens alone: the same values there, the model left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformer_lens.hook_points import HookPoint

from strace_lens.model.checks import architecture_of
from strace_lens.model.forward import last_logits
from strace_lens.model.sparse import has_hooks, kept_mlps
from tests import cases, tiny

ROWS, TOKENS = 3, 6


def mlp_outputs(name: str, keep: torch.Tensor) -> list[torch.Tensor]:
    """`hook_mlp_out` of each layer with every MLP fed the same stream, sparse or not."""
    model, seen = cases.model_of(name), []
    architecture = architecture_of(model)
    draw = torch.Generator().manual_seed(0)
    stream = torch.randn(ROWS, TOKENS, architecture.d_model, generator=draw)
    hooks: Any = []
    for layer in range(architecture.layers):
        block = f"blocks.{layer}."
        hooks.append((block + "hook_mlp_out", lambda value, hook: seen.append(value.clone())))
        hooks.append((block + "hook_resid_post", lambda value, hook: stream))
    tokens = torch.tensor([tiny.token_ids(TOKENS, seed) for seed in range(ROWS)])
    with kept_mlps(model, keep):
        last_logits(model, architecture, tokens, hooks=hooks)
    return seen


@pytest.mark.parametrize("name", cases.NAMES)
def test_kept_tokens_have_the_values_of_the_whole_mlp(name: str) -> None:
    architecture = cases.architecture(name)
    if not architecture.pointwise_mlps:
        pytest.skip(f"{name} runs its MLPs whole")
    draw = torch.Generator().manual_seed(1)
    keep = torch.rand(architecture.layers, ROWS, TOKENS, generator=draw) < 0.4
    whole, sparse = mlp_outputs(name, keep[:0]), mlp_outputs(name, keep)
    # Every layer but the first reads the same stream in both runs.
    for layer in range(1, architecture.layers):
        kept = keep[layer]
        torch.testing.assert_close(sparse[layer][kept], whole[layer][kept], atol=1e-5, rtol=1e-4)
        # A norm turns zeros to others; transformers hooks Mixtral's router, so it runs whole.
        if not architecture.post_norm and name != "mixtral":
            assert not torch.equal(sparse[layer][~kept], whole[layer][~kept])


def test_no_token_kept_and_no_trace_left() -> None:
    model = cases.fresh_bridge("llama")
    architecture = architecture_of(model)
    nothing = torch.zeros(architecture.layers, 1, TOKENS, dtype=torch.bool)
    tokens = torch.tensor([tiny.token_ids(TOKENS)])
    before = last_logits(model, architecture, tokens)
    with kept_mlps(model, nothing):
        assert not torch.allclose(last_logits(model, architecture, tokens), before)
    torch.testing.assert_close(last_logits(model, architecture, tokens), before, atol=0, rtol=0)
    with pytest.raises(KeyError), kept_mlps(model, nothing):
        raise KeyError
    torch.testing.assert_close(last_logits(model, architecture, tokens), before, atol=0, rtol=0)


def test_an_mlp_that_is_watched_runs_whole() -> None:
    model: Any = cases.fresh_bridge("llama")
    architecture = architecture_of(model)
    nothing = torch.zeros(architecture.layers, 1, TOKENS, dtype=torch.bool)
    tokens = torch.tensor([tiny.token_ids(TOKENS)])
    shapes = []
    handle = model.blocks[0].mlp.original_component.register_forward_hook(
        lambda module, given, out: shapes.append(tuple(given[0].shape[:2]))
    )
    with kept_mlps(model, nothing):
        last_logits(model, architecture, tokens)
    handle.remove()
    assert shapes == [(1, TOKENS)]


def test_what_is_run_sparsely_is_found_out() -> None:
    assert cases.architecture("llama").pointwise_mlps
    assert not cases.architecture("bloom").pointwise_mlps  # its MLP takes the stream too
    assert not cases.architecture("opt").pointwise_mlps  # it has no module for its MLP


@pytest.mark.parametrize("name", ["opt", "llama"])
def test_only_hooks_of_somebody_else_count(name: str) -> None:
    model = cases.model_of(name)
    assert not has_hooks(model)  # the bridge of OPT has some of its own
    point = model.hook_dict["blocks.0.hook_mlp_out"]
    point.add_hook(lambda value, hook: value, is_permanent=True)
    try:
        assert has_hooks(model)
    finally:
        point.remove_hooks(including_permanent=True)
    assert not has_hooks(model)


@pytest.mark.parametrize("name", ["opt", "llama"])
def test_hooks_of_torch_count_at_every_point(name: str) -> None:
    model = cases.model_of(name)
    points = [p for p in model.modules() if isinstance(p, HookPoint)]
    own = [p for p in points if p._forward_hooks]  # of the bridge of OPT in version 4
    for point in [*own, points[0]]:
        handle = point.register_forward_hook(lambda module, given, written: None)
        assert has_hooks(model)
        handle.remove()
    assert not has_hooks(model)
