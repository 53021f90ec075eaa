"""Geometry of hidden states against formulas written out, on single rows of tiny models."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from strace_lens.corpus.hidden import ActivationRecorder, path, stream_of
from strace_lens.model.checks import architecture_of
from strace_lens.model.forward import last_logits
from strace_lens.traces.graph import token_graph
from strace_lens.traces.masked_run import masked_logits
from strace_lens.traces.masks import mask_hooks
from strace_lens.traces.rows import MaskedRows
from tests import cases, tiny

NAMES = ("llama", "gpt2", "gptj")


def states_of(name: str, group: MaskedRows, row: int) -> list[np.ndarray]:
    """The stream before the first block and after each, of one row run alone."""
    model, seen = cases.model_of(name), []
    architecture = architecture_of(model)
    points = ["blocks.0.hook_resid_pre"]
    points += [f"blocks.{layer}.hook_resid_post" for layer in range(architecture.layers)]
    keep = [(point, lambda value, hook: seen.append(value[0].double().numpy())) for point in points]
    hooks: Any = [*mask_hooks(model, architecture, [group.rows(slice(row, row + 1))]), *keep]
    last_logits(model, architecture, group.tokens[None], hooks=hooks)
    return seen


def final_state_of(name: str, group: MaskedRows, row: int) -> np.ndarray:
    """The final norm by its formula, applied to the end of the stream of one row run alone."""
    model: Any = cases.model_of(name)
    end = states_of(name, group, row)[-1][-1]
    norm = model.original_model.get_submodule(
        {"llama": "model.norm", "gpt2": "transformer.ln_f", "gptj": "transformer.ln_f"}[name]
    )
    component = norm.original_component
    weight = component.weight.detach().double().numpy()
    if name == "llama":
        return weight * end / np.sqrt((end**2).mean() + component.variance_epsilon)
    centred = end - end.mean()
    unit = centred / np.sqrt((centred**2).mean() + component.eps)
    return weight * unit + component.bias.detach().double().numpy()


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear CKA by its definition with features, not with Gram matrices."""
    x, y = x - x.mean(0), y - y.mean(0)
    scale = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(x.T @ y) ** 2 / scale) if scale else 0.0


def angle(a: np.ndarray, b: np.ndarray) -> float:
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    return math.acos(np.clip(a @ b / scale, -1, 1)) if scale else math.nan


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [2**20, 2**27])
def test_watched_rows_against_single_runs(name: str, budget: int) -> None:
    model = cases.model_of(name)
    architecture = architecture_of(model)
    groups, prompts = [], []
    for number, length in enumerate((5, 7)):
        shape = cases.shape(name, length)
        ranks, _ = cases.ranks_that_keep(cases.random_mask(shape, 0.6, number), shape)
        stop = torch.tensor([0, shape.edges // 3, shape.edges], dtype=torch.int32)
        tokens = torch.tensor(tiny.token_ids(length, number))
        groups.append(MaskedRows(tokens, shape, ranks, torch.zeros_like(stop), stop))
        prompts.append(tokens)
    streams = [stream_of(token_graph(model, prompt)) for prompt in prompts]
    recorder = ActivationRecorder(architecture, streams, [0, 0, 0, -1, -1, -1, 1, 1, 1])
    order = [groups[0], groups[0], groups[1]]
    masked_logits(model, architecture, order, watch=recorder.hooks, memory_budget=budget)
    found = recorder.geometry()
    row = 0
    for group, stream in zip(groups, streams, strict=True):
        truth = [s.double().numpy() for s in stream]
        for which in range(3):
            ours = states_of(name, group, which)
            for layer in range(architecture.layers):
                h, f = ours[layer + 1][-1], truth[layer + 1][-1]
                if layer == architecture.layers - 1:
                    truth_of_end = final_state_of(name, group, which)
                    np.testing.assert_allclose(found.final_state[row], truth_of_end, atol=1e-4)
                norms = np.linalg.norm(h) * np.linalg.norm(f)
                cosine = h @ f / norms if norms else 0.0
                step = h - ours[layer][-1]
                assert float(found.cosine[row, layer]) == pytest.approx(cosine, abs=1e-5)
                assert float(found.l2[row, layer]) == pytest.approx(np.linalg.norm(h - f), abs=1e-4)
                assert float(found.velocity[row, layer]) == pytest.approx(
                    np.linalg.norm(step), abs=1e-4
                )
                if layer == architecture.layers - 1:
                    assert math.isnan(found.cka[row, layer])
                else:
                    assert float(found.cka[row, layer]) == pytest.approx(
                        cka(ours[layer + 1], truth[layer + 1]), abs=1e-4
                    )
                if layer:
                    before = ours[layer][-1] - ours[layer - 1][-1]
                    assert float(found.curvature[row, layer]) == pytest.approx(
                        angle(step, before), abs=1e-3, nan_ok=True
                    )
                else:
                    assert math.isnan(found.curvature[row, layer])
            row += 1


def test_full_runs_are_the_untouched_model() -> None:
    model = tiny.bridge("llama")
    architecture = architecture_of(model)
    prompts = [torch.tensor(tiny.token_ids(n)) for n in (4, 6)]
    for prompt in prompts:
        graph = token_graph(model, prompt)
        stream = stream_of(graph)
        alone = last_logits(model, architecture, prompt[None])[0]
        torch.testing.assert_close(graph.activations.logits, alone, atol=1e-5, rtol=1e-5)
        assert stream.shape == (architecture.layers + 1, len(prompt), architecture.d_model)
        _, cache = model.run_with_cache(prompt[None])
        torch.testing.assert_close(
            stream[1], cache["blocks.0.hook_resid_post"][0], atol=1e-5, rtol=1e-5
        )


def test_a_straight_path_has_no_curvature_and_a_standing_one_none_to_tell() -> None:
    straight = torch.arange(4.0)[None, :, None] * torch.ones(1, 4, 3)
    velocity, curvature = path(straight)
    assert velocity[0].tolist() == pytest.approx([3**0.5] * 3)
    assert curvature[0, 1:].tolist() == pytest.approx([0.0, 0.0], abs=1e-3)
    assert path(torch.ones(1, 4, 3))[1].isnan().all()
