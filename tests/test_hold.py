"""Our work leaves the caller's modes and the model's as they were, and does not depend on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import strace_lens as sl
from strace_lens.hold import hold
from tests import cases, tiny
from tests.component_graph.made import tiny_task


def training_flags(model: Any) -> list[bool]:
    original = model.original_model.modules()
    return [part.training for part in (*model.modules(), *original)]


@pytest.mark.parametrize("before_use", [True, False])
def test_dropout_is_off_in_a_model_that_is_being_trained(before_use: bool) -> None:
    """GPT-2 drops its embeddings in a module that no module of the bridge holds."""
    quiet, model = cases.fresh_bridge("gpt2"), cases.fresh_bridge("gpt2")
    if not before_use:
        sl.component_graph(model)
        sl.token_graph(model, tiny.PROMPT)
    model.train()
    model.original_model.train()
    model.blocks[1].eval()  # what a user has frozen
    flags = training_flags(model)

    expected, found = (
        sl.density_curve(m, sl.extract(sl.token_graph(m, tiny.PROMPT))) for m in (quiet, model)
    )
    assert found.table["tv"].tolist() == expected.table["tv"].tolist()
    assert float(found.table["tv"].iloc[-1]) < 1e-5
    scores = [sl.discover(m, tiny_task(), "eap-ig").values for m in (quiet, model)]
    assert torch.equal(*scores)
    assert training_flags(model) == flags


def test_training_mode_is_back_after_an_error() -> None:
    model = cases.fresh_bridge("gpt2").train()
    seen = []

    def fail() -> None:
        with hold(model):
            seen.append(model.training)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [False]
    assert model.training
