"""Noise on embeddings: it reaches everything downstream on every architecture, as much as asked."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from strace_lens.model.forward import Hook, last_logits
from strace_lens.traces.masked_run import embedding_noise
from tests import cases, oracle, tiny
from tests.cases import NAMES, architecture, model_of, random_mask, relative_error, rows, run

TOKENS = tiny.token_ids(7)


def noise_of(name: str, **options) -> Hook:
    return embedding_noise(len(TOKENS), architecture(name).d_model, **options)


@pytest.fixture
def noisy_oracle(monkeypatch):
    """The slow forward pass of a model with a hook's noise on what it embeds."""

    def logits(name: str, hook: Hook, keep) -> torch.Tensor:
        plain = oracle.plain(name)
        noisy = dataclasses.replace(
            plain, embed=lambda ids: hook[1](plain.embed(ids)[None], None)[0]
        )
        with monkeypatch.context() as patch:
            patch.setattr(oracle, "plain", lambda _: noisy)
            return oracle.masked_logits(name, TOKENS, keep)

    return logits


@pytest.mark.parametrize("name", NAMES)
def test_noisy_masked_runs_equal_the_slow_forward_on_noisy_embeddings(name, noisy_oracle) -> None:
    hook = noise_of(name, seed=3)
    shape = cases.shape(name, len(TOKENS))
    masks = [shape.full(1.0, torch.bool), random_mask(shape, 0.6, seed=1)]
    ours = run(name, rows(TOKENS, shape, masks), hooks=[hook])
    truth = torch.stack([noisy_oracle(name, hook, keep) for keep in masks])
    assert relative_error(ours, truth) < 2e-5
    # The full mask under noise is the untouched model under noise, and the noise is felt.
    tokens = torch.tensor([TOKENS])
    untouched = last_logits(model_of(name), architecture(name), tokens, hooks=[hook])[0]
    assert relative_error(ours[0], untouched) < 1e-5
    assert relative_error(untouched, cases.full_logits(name, TOKENS)) > 1e-3


def test_the_norm_of_the_noise_is_its_share_of_the_embedding() -> None:
    embedding = torch.randn(2, 50, 400, generator=torch.Generator().manual_seed(0))
    embedding *= torch.linspace(0.1, 9, 50)[:, None]
    point, add = embedding_noise(50, 400, share=0.2, seed=1)
    assert point == "blocks.0.hook_resid_pre"
    noise = add(embedding, None) - embedding
    share = noise.norm(dim=-1) / embedding.norm(dim=-1)
    assert float(share.square().mean().sqrt()) == pytest.approx(0.2, rel=0.02)
    assert share.min() > 0.17
    assert share.max() < 0.23
    # The same in every row but for the norm of what it is added to, and another for each token.
    drawn = noise / embedding.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-3, atol=1e-6)
    assert (drawn[0, 0] * drawn[0, 1]).sum().abs() < 0.2 * drawn[0, 0].norm() * drawn[0, 1].norm()


def test_a_seed_gives_the_same_noise_and_another_seed_another() -> None:
    embedding = torch.ones(1, 7, 32)
    draws = [embedding_noise(7, 32, seed=seed)[1](embedding, None) for seed in (4, 4, 5)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.allclose(draws[0], draws[2])


def test_no_noise_changes_nothing_and_an_impossible_share_is_refused() -> None:
    embedding = torch.randn(1, 7, 32)
    assert torch.equal(embedding_noise(7, 32, share=0.0)[1](embedding, None), embedding)
    for share in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="share of noise must be finite"):
            embedding_noise(7, 32, share=share)
