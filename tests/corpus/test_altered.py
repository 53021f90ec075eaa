"""Prompts altered by draws: shuffled, replaced and extended, each by its own text and seed."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

import strace_lens as sl
from strace_lens.corpus.altered import next_token, replaced, shuffled
from strace_lens.corpus.analyses.all import on_shared_prompts
from strace_lens.corpus.batches import items_of
from strace_lens.corpus.prompts import CorpusPrompt, generator_for
from strace_lens.corpus.sweep import sweep
from strace_lens.model.checks import architecture_of
from strace_lens.model.forward import last_logits
from strace_lens.model.prompts import PromptError, text_ids
from strace_lens.report.corpus import corpus_report
from strace_lens.utils.manifest import OtherResultsError
from tests import cases, tiny
from tests.corpus import made
from tests.corpus.made import SIZES, model, options, prompts, words

TEXTS = st.lists(st.sampled_from(["a", "b", "cd", "é,"]), min_size=2, max_size=8).filter(
    lambda parts: len(set(parts)) > 1
)


@given(parts=TEXTS, rate=st.floats(0.01, 1.0), seed=st.integers(0, 5))
def test_shuffled_words_are_the_same_words_in_another_order(
    parts: list[str], rate: float, seed: int
) -> None:
    blanks = [" ", "  ", "\n"]
    text = "".join(part + blanks[i % 3] for i, part in enumerate(parts))
    found = shuffled(text, rate, generator_for(text, seed))
    assert found.split() != parts
    assert Counter(found.split()) == Counter(parts)
    assert re.findall(r"\s+", found) == re.findall(r"\s+", text)
    moved = sum(a != b for a, b in zip(found.split(), parts, strict=True))
    assert moved <= max(2, round(rate * len(parts)))
    assert found == shuffled(text, rate, generator_for(text, seed))


def test_every_word_can_come_to_every_place() -> None:
    seen = {shuffled("a b c", 1.0, generator_for("a b c", seed)) for seed in range(60)}
    assert seen == {"a c b", "b a c", "b c a", "c a b", "c b a"}


@pytest.mark.parametrize("text", ["one", "one one  one", " one "])
def test_a_text_of_one_word_cannot_be_shuffled(text: str) -> None:
    with pytest.raises(PromptError, match="no two different words to shuffle; leave it out"):
        shuffled(text, 1.0, generator_for(text, 0))


@pytest.mark.parametrize(("rate", "count"), [(1.0, 10), (0.3, 3), (0.01, 1)])
def test_tokens_are_replaced_by_others_at_the_rate(rate: float, count: int) -> None:
    tokenizer, ids = tiny.tokenizer(), [1, *tiny.token_ids(10)]
    found = replaced(tokenizer, tiny.VOCABULARY + 20, ids, rate, generator_for("text", 0))
    assert found[0] == 1  # a BOS stays
    assert sum(a != b for a, b in zip(found, ids, strict=True)) == count
    assert all(len(tiny.SPECIAL) <= i < tiny.VOCABULARY for i in found[1:])


def test_tokens_are_drawn_evenly_from_the_whole_vocabulary() -> None:
    generator = generator_for("text", 0)
    drawn = [
        replaced(tiny.tokenizer(), tiny.VOCABULARY, [10], 1.0, generator)[0] for _ in range(20_000)
    ]
    counts = np.bincount(drawn, minlength=tiny.VOCABULARY)
    ordinary = np.array([i for i in range(4, tiny.VOCABULARY) if i != 10])
    assert counts.sum() == counts[ordinary].sum()
    expected = 20_000 / len(ordinary)
    assert np.abs(counts[ordinary] - expected).max() < 5 * np.sqrt(expected)


@pytest.mark.parametrize("corrupt", ["shuffle", "random"])
def test_what_is_done_to_a_prompt_depends_on_its_text_and_the_seed_alone(corrupt: str) -> None:
    def traced(given: list[CorpusPrompt], seed: int = 0) -> dict[str, Any]:
        chosen = options(corrupt=corrupt, seed=seed)
        items = items_of(model(), architecture_of(model()), given, chosen)
        return {item.text: item.prompt for item in items}

    whole = traced(prompts(5))
    assert traced(prompts(5)[::-1]) == whole
    assert traced(prompts(5)[1:2]).items() <= whole.items()
    assert traced(prompts(5), seed=1) != whole
    for text, prompt in whole.items():
        assert prompt.text != text
        assert list(prompt.ids) == text_ids(tiny.tokenizer(), prompt.text)


@pytest.mark.extended
@pytest.mark.parametrize("corrupt", ["shuffle", "random"])
def test_a_corrupted_run_is_compared_with_a_clean_one_by_the_texts_given(
    corrupt: str, tmp_path: Path
) -> None:
    given = [*prompts(4), CorpusPrompt(words(1) + " " + words(1))]
    clean = sweep(model(), given, tmp_path / "clean", options(controls="none"))
    chosen = options(controls="none", corrupt=corrupt, corrupt_rate=0.9)
    run = sweep(model(), given, tmp_path / "corrupted", chosen)
    assert run.prompts["text"].tolist()[:4] == [one.text for one in given[:4]]
    for row in run.prompts.to_dict("records"):
        assert row["sha256"] == hashlib.sha256(row["text"].encode()).hexdigest()
        trace = sl.extract(sl.token_graph(model(), row["corrupted"]))
        curve = sl.density_curve(model(), trace, sizes=SIZES, controls=False)
        assert row["density"] == pytest.approx(curve.density, abs=1e-5)
    assert run.prompts["next"].isna().all()
    assert run.prompts["loss"].isna().all()
    assert clean.prompts["loss"][:4].notna().all()
    assert "corrupted" not in clean.prompts
    # Two words that are the same cannot be shuffled, and the others of the run go on.
    failed = ["PromptError" in str(e) or "two different words" in e for e in run.failures["error"]]
    assert failed == [True] * (corrupt == "shuffle")
    one, other = on_shared_prompts([clean, run])
    assert one.prompts["text"].tolist() == other.prompts["text"].tolist()
    assert len(one.prompts) == 5 - len(failed)
    # The unigram distribution is that of the texts as they were given.
    texts = [one.text for one in given[: 5 - len(failed)]]
    ids = [i for text in texts for i in text_ids(tiny.tokenizer(), text)]
    unigram = torch.bincount(torch.tensor(ids), minlength=model().cfg.d_vocab) / len(ids)
    for row in run.prompts.to_dict("records"):
        output = cases.full_logits("llama", text_ids(tiny.tokenizer(), row["corrupted"])).softmax(
            -1
        )
        far = float((output - unigram).abs().sum()) / 2
        assert row["unigram_tv"] == pytest.approx(far, abs=1e-4)
    page = corpus_report([clean, run], sl.analyse([clean, run]))
    said = {"shuffle": "90% of the words change places", "random": "90% of the tokens are replaced"}
    assert page.count(f"corrupted: {said[corrupt]}") == 1
    with pytest.raises(OtherResultsError, match=r"corrupt_rate was 0.9 and is 1.0"):
        sweep(model(), given, tmp_path / "corrupted", options(controls="none", corrupt=corrupt))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"corrupt": "reverse"}, "a sweep has no corruption 'reverse'; choose from none, shuffle"),
        ({"corrupt": "random", "corrupt_rate": 0.0}, "corrupt_rate must lie in (0, 1]; got 0.0"),
        ({"corrupt_rate": 0.5}, "corrupt_rate 0.5 has no effect where texts are not corrupted"),
        ({"corrupt": "random", "generate": 1}, "cannot both corrupt texts and add tokens to them"),
    ],
)
def test_options_that_say_nothing_are_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        options(**changed)


DRAWS = 5_000


def frequencies(logits: torch.Tensor, temperature: float, top_p: float) -> np.ndarray:
    generator = generator_for("a text", 0)
    drawn = [next_token(logits, temperature, top_p, generator) for _ in range(DRAWS)]
    return np.bincount(drawn, minlength=len(logits)) / DRAWS


def logits_of(name: str) -> torch.Tensor:
    model = tiny.bridge(name)
    return last_logits(model, architecture_of(model), torch.tensor([tiny.token_ids(6)]))[0]


@pytest.mark.extended
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


@pytest.mark.extended
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
def test_sampling_options_that_say_nothing_are_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        made.options(**changed)
