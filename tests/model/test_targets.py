"""Targets: tokens found as the tokenizer reads them, values worked out by hand, refusals."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from strace_lens.model.checks import architecture_of
from strace_lens.model.prompts import tokenize
from strace_lens.model.targets import (
    Target,
    TargetError,
    TargetLike,
    make_target,
    recovered,
    target_of,
)
from tests import cases, real, tiny

IDS = tiny.tokenizer().convert_tokens_to_ids


def made(target: TargetLike) -> Target:
    model, arch = cases.model_of("llama"), cases.architecture("llama")
    return make_target(model, arch, tokenize(model, arch, tiny.PROMPT), target)


def test_texts_and_ids_name_the_same_tokens() -> None:
    rome, paris, tokyo = IDS(["Rome", "Paris", "Tokyo"])
    assert made("Rome") == made(rome) == made(made("Rome"))
    assert (made("Rome").ids, made("Rome").against) == ((rome,), ())
    assert made(("Rome", paris)) == Target((rome,), (paris,), ("Rome",), ("Paris",))
    sets = made((["Rome", "Tokyo"], "Paris"))
    assert (sets.ids, sets.against) == ((rome, tokyo), (paris,))
    assert sets.quantity == "logit difference of 'Rome', 'Tokyo' against 'Paris'"
    assert made("Rome").quantity == "probability of 'Rome'"
    assert target_of(json.loads(json.dumps(sets.facts()))) == sets


def test_values_are_the_probability_and_the_mean_logits_apart() -> None:
    logits = torch.randn(3, tiny.VOCABULARY, dtype=torch.float64)
    log_probs = logits.log_softmax(-1)
    rome, paris, tokyo = IDS(["Rome", "Paris", "Tokyo"])
    assert torch.allclose(made("Rome").value(log_probs), logits.softmax(-1)[:, rome])
    expected = (logits[:, rome] + logits[:, tokyo]) / 2 - logits[:, paris]
    assert torch.allclose(made((["Rome", "Tokyo"], "Paris")).value(log_probs), expected)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("capital of", r"'capital of' is not one token of .* but 2: 'capital', 'of'"),
        ("", "'' is not one token of .* but 0: no tokens"),
        ("Atlantis", "'Atlantis' is not in the vocabulary"),
        (tiny.VOCABULARY, f"token id {tiny.VOCABULARY} of the target lies outside"),
        (-1, "token id -1 of the target lies outside"),
        (("Rome",), "a pair of tokens or of lists of tokens.*got 1 parts"),
        (("Rome", "Paris", "Tokyo"), "got 3 parts"),
        (("Rome", []), "the second part of the target .* names no token"),
        (("Rome", "Rome"), "names the token 'Rome' twice"),
        ((["Rome", "Rome"], "Paris"), "names the token 'Rome' twice"),
    ],
)
def test_what_names_no_tokens_is_refused(target: Any, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        made(target)


def test_a_target_made_for_a_larger_vocabulary_is_refused() -> None:
    with pytest.raises(TargetError, match="outside the vocabulary"):
        made(Target((10**6,), (), ("Rome",), ()))


def test_the_share_recovered_is_linear_and_unknown_where_nothing_is_to_recover() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    full, empty = torch.tensor(3.0), torch.tensor(1.0)
    assert recovered(values, full, empty).tolist() == [0, 0.5, 1, 1.5]
    assert all(map(math.isnan, recovered(values, full, full).tolist()))


@pytest.mark.extended
def test_a_word_keeps_its_space_as_the_prompt_goes_on() -> None:
    model = real.smollm2()
    arch = architecture_of(model)
    prompt = tokenize(model, arch, "The capital of Italy is")
    target = make_target(model, arch, prompt, (" Rome", " Paris"))
    assert (target.strings, target.against_strings) == ((" Rome",), (" Paris",))
    with pytest.raises(
        TargetError, match=r"' Rome is' is not one token of .* but 2: ' Rome', ' is'"
    ):
        make_target(model, arch, prompt, " Rome is")
