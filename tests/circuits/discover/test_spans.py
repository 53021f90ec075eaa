"""Edges by span against derivatives at each token; what attention carries against single writes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import strace_lens as sl
from strace_lens.circuits.discover.attribution import eap
from strace_lens.circuits.discover.spans import crossing_scores, peap
from tests import cases
from tests.circuits.discover.oracle_attribution import plain_scores
from tests.circuits.made import double_experiment, double_model, tiny_task, uneven_task

TASK = tiny_task(2, 6)
SPANS = {"first": 0, "middle": 1, "rest": 4}


def test_every_token_is_a_span_by_default() -> None:
    experiment = double_experiment("llama", TASK)
    assert torch.equal(peap(experiment), eap(experiment, positions=True))


@pytest.mark.parametrize("how", ["sum", "mean"])
def test_a_span_has_the_scores_of_its_tokens(how: str) -> None:
    truth = plain_scores("gpt2", TASK, positions=True)
    found = peap(double_experiment("gpt2", TASK), spans=[0, 1, 4], how=how)
    for tokens in (slice(0, 1), slice(1, 4), slice(4, 6)):
        whole = getattr(truth[..., tokens], how)(-1, keepdim=True).expand_as(truth[..., tokens])
        assert cases.relative_error(found[..., tokens].double(), whole) < 1e-5


def single_writes(name: str) -> dict[tuple[int, int, str], np.ndarray]:
    """The effect of each key and value alone, by layer, head and kind, `[source, destination]`.

    One token of one head is written at a time, and the head's own output read behind it.
    """
    model: Any = double_model(name)
    layers, heads = model.cfg.n_layers, model.cfg.n_heads
    z = [f"blocks.{layer}.attn.hook_z" for layer in range(layers)]
    kept: dict[str, Tensor] = {}

    def leaf(value: Tensor, hook: Any) -> Tensor:
        kept[hook.name] = value.view_as(value)
        return kept[hook.name]

    with torch.enable_grad():
        hooks = [("blocks.0.hook_resid_pre", lambda x, hook: x.detach().requires_grad_())]
        hooks += [(point, leaf) for point in z]
        last = model.run_with_hooks(TASK.clean, fwd_hooks=hooks, return_type="logits")[:, -1]
        rows = torch.arange(len(TASK))[:, None]
        score = (last[rows, TASK.answers].mean(1) - last[rows, TASK.incorrect].mean(1)).sum()
        gradients = torch.autograd.grad(score, [kept[point] for point in z])
    others = model.run_with_cache(TASK.corrupted, return_type="logits")[1]
    found = {}
    for layer in range(layers):
        for kind in "kv":
            point = f"blocks.{layer}.attn.hook_{kind}"
            for token in range(6):

                def write(value: Tensor, hook: Any, token: int = token) -> Tensor:
                    value = value.clone()
                    value[:, token] = others[hook.name][:, token]
                    return value

                seen: list[Tensor] = []
                hooks = [(point, write), (z[layer], lambda x, hook, seen=seen: seen.append(x))]
                with torch.no_grad():
                    model.run_with_hooks(TASK.clean, fwd_hooks=hooks, return_type="logits")
                moved = (kept[z[layer]].detach() - seen[0]).reshape(2, 6, heads, -1)
                effect = (moved * gradients[layer].reshape(moved.shape)).sum((0, 3)) / len(TASK)
                for head in range(heads):
                    table = found.setdefault((layer, head, kind), np.zeros((6, 6)))
                    table[token] = effect[:, head].numpy()
    return found


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "bloom"])
def test_crossing_scores_are_the_effects_of_single_writes(name: str) -> None:
    table = crossing_scores(double_model(name), TASK)
    truth = single_writes(name)
    assert len(table) == len(truth) * 21
    assert (table["source"] <= table["destination"]).all()
    largest = max(np.abs(t).max() for t in truth.values())
    assert largest > 0
    for row in table.itertuples():
        wanted = truth[row.layer, row.head, row.input][row.source, row.destination]
        assert row.score == pytest.approx(wanted, abs=2e-5 * largest)


def test_spans_sum_what_their_tokens_carry() -> None:
    model = double_model("llama")
    tokens, spans = crossing_scores(model, TASK), crossing_scores(model, TASK, SPANS)
    name = np.array(["first", "middle", "middle", "middle", "rest", "rest"])
    keys = ["layer", "head", "input", "source", "destination"]
    summed = (
        tokens.assign(source=name[tokens["source"]], destination=name[tokens["destination"]])
        .groupby(keys)["score"]
        .sum()
    )
    assert len(summed) == len(spans)
    np.testing.assert_allclose(spans.set_index(keys)["score"].sort_index(), summed, atol=1e-12)


@pytest.mark.parametrize("spans", [[], [1, 3], [0, 3, 3], [0, 6], [0, 2, -1], {"late": 2}], ids=str)
def test_spans_that_do_not_rise_from_the_first_token_are_refused(spans: Any) -> None:
    model = cases.model_of("mistral")
    with pytest.raises(ValueError, match="spans must begin at token 0 and rise within the 6"):
        sl.discover(model, TASK, "peap", spans=spans)
    with pytest.raises(ValueError, match="spans must begin at token 0"):
        crossing_scores(model, TASK, spans)


def test_spans_need_prompts_of_one_length_and_a_known_sum() -> None:
    model = cases.model_of("mistral")
    with pytest.raises(ValueError, match="edges by token position need prompts of one length"):
        crossing_scores(model, uneven_task())
    with pytest.raises(ValueError, match="unknown how 'most'; choose from sum, mean"):
        sl.discover(model, TASK, "peap", how="most")
