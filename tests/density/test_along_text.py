"""Densities along a text: each is that of its prefix as a prompt of its own."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch

import strace_lens as sl
from strace_lens.density.along_text import text_density
from tests import cases, tiny

SIZES = (0.001, 0.05, 0.2, 1.0)


@pytest.mark.extended
@pytest.mark.parametrize(
    ("name", "estimator", "keep"),
    [("llama", "greedy", ()), ("llama", "fisher", ("attention",)), ("gpt2", "scheduled", ())],
)
def test_each_token_is_measured_by_the_curve_of_its_prefix(
    name: str, estimator: str, keep: tuple[str, ...]
) -> None:
    model = tiny.bridge(name)
    ids = tiny.token_ids(12)
    told: list[tuple[int, int, str]] = []
    tokens = text_density(
        model,
        ids,
        sizes=SIZES,
        small=0.2,
        estimator=estimator,
        keep=keep,
        progress=lambda *said: told.append(said),
    )
    assert told == [(done, 10, "tokens") for done in range(1, 11)]
    assert tokens["position"].tolist() == list(range(12))
    assert tokens["token"].tolist() == [tiny.tokenizer().decode([i]) for i in ids]
    assert tokens["density"].isna().tolist() == [True] * 2 + [False] * 10
    assert tokens["alternatives"].tolist()[:2] == [(), ()]
    for position in range(2, 12):
        row = tokens.iloc[position]
        prefix = ids[:position]
        trace = sl.estimate(model, sl.token_graph(model, prefix), estimator, keep=keep)
        curve = sl.density_curve(model, trace, sizes=SIZES, refine=0, controls=False, keep=keep)
        assert row["density"] == pytest.approx(curve.density, abs=1e-5)
        full = cases.full_logits(name, prefix).double().softmax(-1)
        assert row["probability"] == pytest.approx(float(full[ids[position]]), abs=1e-6)
        entropy = -float((full * full.log()).sum())
        assert row["entropy"] == pytest.approx(entropy, abs=1e-5)
        shown = {one.token: one for one in row["alternatives"]}
        best = tiny.tokenizer().decode([int(full.argmax())])
        assert shown[best].model == pytest.approx(float(full.max()), abs=1e-6)
        for one in curve.top_tokens[SIZES.index(0.2)]:
            assert shown[one.token].trace == pytest.approx(one.trace, abs=1e-5)


def test_context_can_be_longer_and_a_bos_be_asked_for() -> None:
    model = tiny.bridge("llama")
    tokens = text_density(
        model, "the king of Japan", sizes=SIZES, small=1.0, min_context=3, bos=True
    )
    assert tokens["token"].tolist() == ["<s>", "the", "king", "of", "Japan"]
    assert tokens["density"].notna().tolist() == [False] * 3 + [True] * 2
    # The trace of all edges is the model.
    for one in tokens["alternatives"].iloc[-1]:
        assert math.isclose(one.model, one.trace, abs_tol=1e-5)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"small": 0.3}, "small must be one of the sizes; got 0.3, of 0.001, 0.05, 0.2, 1"),
        ({"sizes": (0.2,)}, "a density needs at least two sizes"),
        ({"sizes": (0.2, 0.1)}, "sizes must"),
        ({"min_context": 1}, "min_context must be at least 2, as a trace needs; got 1"),
        ({"min_context": 4}, "the text has 4 tokens, and the first to be measured is number 5"),
        ({"keep": ("head",)}, "'head'"),
        ({"estimator": "none"}, "unknown estimator 'none'"),
    ],
)
def test_what_cannot_be_measured_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        text_density(
            tiny.bridge("llama"),
            torch.tensor(tiny.token_ids(4)),
            **{"sizes": SIZES, "small": 0.2, **changed},
        )
