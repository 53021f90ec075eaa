"""Tokens drawn against exact nucleus distributions, written out and on a tiny model."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from strace_lens.corpus.sampling import generator_for, next_token
from strace_lens.model.checks import architecture_of
from strace_lens.model.forward import last_logits
from tests import tiny
from tests.corpus import made

DRAWS = 5_000


def frequencies(logits: torch.Tensor, temperature: float, top_p: float) -> np.ndarray:
    generator = generator_for("a text", 0)
    drawn = [next_token(logits, temperature, top_p, generator) for _ in range(DRAWS)]
    return np.bincount(drawn, minlength=len(logits)) / DRAWS


def logits_of(name: str) -> torch.Tensor:
    model = tiny.bridge(name)
    return last_logits(model, architecture_of(model), torch.tensor([tiny.token_ids(6)]))[0]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (1.0, 0.6), (0.5, 0.9), (2.0, 0.3)])
def test_draws_have_the_distribution_of_transformers_warpers(
    temperature: float, top_p: float
) -> None:
    logits = logits_of("llama")
    ids: Any = torch.zeros(1, 1, dtype=torch.long)
    warped = TemperatureLogitsWarper(temperature)(ids, logits[None].double())
    if top_p < 1:
        warped = TopPLogitsWarper(top_p)(ids, warped)
    exact = warped.softmax(-1)[0].numpy()
    found = frequencies(logits, temperature, top_p)
    assert set(np.flatnonzero(found)) <= set(np.flatnonzero(exact))
    # Of so many draws a share is off by five standard errors once in two million times.
    assert (np.abs(found - exact) <= 5 * np.sqrt(exact * (1 - exact) / DRAWS) + 1e-12).all()
    assert np.abs(found - exact).sum() / 2 < 0.1


def test_the_nucleus_is_the_smallest_set_that_holds_so_much() -> None:
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()
    assert set(np.flatnonzero(frequencies(logits, 1.0, 0.7))) == {1, 3}
    assert frequencies(logits, 1.0, 0.7)[1] == pytest.approx(2 / 3, abs=0.03)
    assert set(np.flatnonzero(frequencies(logits, 1.0, 0.49))) == {1}


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e-9])
def test_no_temperature_is_greedy(temperature: float) -> None:
    for seed in range(5):
        logits = torch.randn(50, generator=torch.Generator().manual_seed(seed))
        assert next_token(logits, temperature, 1.0, generator_for("", seed)) == logits.argmax()


def test_the_same_text_and_seed_draw_the_same() -> None:
    logits = torch.zeros(1000)
    draws = {
        (text, seed): next_token(logits, 1.0, 1.0, generator_for(text, seed))
        for text in ("one", "two")
        for seed in (0, 1)
    }
    assert len(set(draws.values())) == 4
    assert next_token(logits, 1.0, 1.0, generator_for("one", 0)) == draws["one", 0]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"generate": 1, "temperature": -1.0}, "temperature must be 0 or a positive number"),
        ({"generate": 1, "temperature": float("nan")}, "temperature must be 0 or a positive"),
        ({"generate": 1, "temperature": 1.0, "top_p": 0.0}, "top_p must lie in (0, 1]; got 0.0"),
        ({"generate": 1, "temperature": 1.0, "top_p": 1.1}, "top_p must lie in (0, 1]; got 1.1"),
        ({"temperature": 0.7}, "temperature 0.7 is of generated tokens, and none are"),
        ({"generate": 1, "top_p": 0.9}, "top_p 0.9 has no effect at temperature 0"),
    ],
)
def test_options_that_say_nothing_are_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        made.options(**changed)
