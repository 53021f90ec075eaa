"""Generated tasks: their structure on SmolLM2, how well it does them, and what is refused."""

from __future__ import annotations

import itertools
import random
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from strace_lens.circuits.task import Task, TaskError
from strace_lens.circuits.tasks import generate
from strace_lens.circuits.tasks.accuracy import accuracy
from strace_lens.circuits.tasks.alignment import Example, Vocabulary
from strace_lens.circuits.tasks.generate import TASKS, induction, make_task
from strace_lens.circuits.tasks.words import CAPITALS, MEN, PEOPLE, WOMEN
from strace_lens.model.architecture import Model
from strace_lens.model.prompts import PromptError, own_tokenizer
from tests import cases, real, tiny

# What `known_circuits.md` saw on 50 pairs, rounded towards chance: accuracy, then the mean metric
# on the clean prompts (at least) and on the corrupted ones (at most).
EXPECTED = {
    "ioi": (0.95, 4.0, 1.0),
    "greater-than": (0.95, 0.85, -0.6),
    "agreement": (0.95, 4.5, -4.0),
    "agreement-attractor": (0.85, 2.0, -2.5),
    "gendered-pronoun": (0.95, 4.0, -4.0),
    "docstring": (0.85, 3.5, 1.5),
    "country-capital": (0.95, 8.0, -8.0),
    "induction": (0.9, 7.0, -3.0),
}


def made(name: str, pairs: int = 8, **options: Any) -> Task:
    return make_task(real.smollm2(), name, pairs, **options)


def words(model: Model, ids: torch.Tensor) -> list[str]:
    return [own_tokenizer(model).decode([i]) for i in ids.tolist() if i >= 0]


@pytest.mark.extended
@pytest.mark.parametrize("name", TASKS)
def test_smollm2_does_each_task(name: str) -> None:
    task = made(name)
    assert len(task) == 8
    assert task.dropped == 0
    assert task.equal_lengths
    assert len(set(task.texts)) == 8
    found = accuracy(real.smollm2(), task)
    right, clean, corrupted = EXPECTED[name]
    assert found.accuracy is not None
    assert found.accuracy >= right
    assert found.clean >= clean
    assert found.corrupted <= corrupted


@pytest.mark.extended
@pytest.mark.parametrize("name", TASKS)
def test_tokens_are_those_of_the_texts_and_differ_only_where_they_must(name: str) -> None:
    task, tokenizer = made(name), own_tokenizer(real.smollm2())
    for pair, texts in enumerate(task.texts):
        for ids, text in zip((task.clean, task.corrupted), texts, strict=True):
            assert tokenizer(text).input_ids == ids[pair].tolist()
    changed = (task.clean != task.corrupted).sum(-1)
    most = {"ioi": 3, "docstring": 4, "induction": 4}.get(name, 1)
    assert int(changed.min()) >= 1
    assert int(changed.max()) <= most
    assert task.metric == (
        "probability_difference" if name == "greater-than" else "logit_difference"
    )


def test_the_seed_decides() -> None:
    for name in ("ioi", "induction"):
        one, again, other = made(name, seed=3), made(name, seed=3), made(name, seed=4)
        assert torch.equal(one.clean, again.clean)
        assert one.texts == again.texts
        assert one.texts != other.texts
        assert made(name, pairs=5, seed=3).texts == one.texts[:5]
    assert made("ioi", seed=3, metric="kl_divergence").metric == "kl_divergence"


def test_indirect_objects_come_in_both_orders() -> None:
    task = made("ioi", pairs=40)
    orders = set()
    for pair, (clean, corrupted) in enumerate(task.texts):
        names = [n for n in re.findall(r"[A-Z]\w+", clean) if n in MEN + WOMEN]
        others = [n for n in re.findall(r"[A-Z]\w+", corrupted) if n in MEN + WOMEN]
        receiver = words(real.smollm2(), task.answers[pair])[0].strip()
        giver = words(real.smollm2(), task.incorrect[pair])[0].strip()
        assert names[2] == giver
        assert {names[0], names[1]} == {receiver, giver}
        assert len({*names, *others}) == 5  # two and three others
        orders.add(names.index(giver))
    assert orders == {0, 1}


def test_agreement_is_about_the_subject() -> None:
    for name in ("agreement", "agreement-attractor"):
        task = made(name, pairs=20)
        plurals = 0
        for pair, texts in enumerate(task.texts):
            subjects = [next(w for w in t.split() if w.rstrip("s") in dict(PEOPLE)) for t in texts]
            plural = [s in dict(PEOPLE).values() for s in subjects]
            assert plural[0] != plural[1]
            assert (" are" in words(real.smollm2(), task.answers[pair])) == plural[0]
            assert (" are" in words(real.smollm2(), task.incorrect[pair])) != plural[0]
            plurals += plural[0]
            if name == "agreement-attractor":
                assert texts[0].split()[-1].endswith("s") != plural[0]
        assert 0 < plurals < 20


def test_each_remaining_answer_is_the_true_one() -> None:
    model = real.smollm2()
    for pair, texts in enumerate((task := made("country-capital")).texts):
        country, other = (text.split()[3] for text in texts)
        assert words(model, task.answers[pair]) == [f" {CAPITALS[country]}"]
        assert words(model, task.incorrect[pair]) == [f" {CAPITALS[other]}"]
    for pair, texts in enumerate((task := made("gendered-pronoun")).texts):
        assert words(model, task.answers[pair]) == [
            " she" if texts[0].split()[1] in WOMEN else " he"
        ]
        assert words(model, task.incorrect[pair]) == [
            " she" if texts[1].split()[1] in WOMEN else " he"
        ]
    for pair, (clean, corrupted) in enumerate((task := made("docstring")).texts):
        names, others = (re.findall(r", (\w+)", text) for text in (clean, corrupted))
        assert len({*names, *others}) == 8
        assert [f":param {name}" in clean for name in names] == [True, True, False, False]
        assert words(model, task.answers[pair]) == [f" {names[2]}"]
        assert words(model, task.incorrect[pair]) == [f" {names[i]}" for i in (0, 1, 3)]
    for pair, ids in enumerate((task := made("induction")).clean.tolist()):
        last = ids[-1]
        follows = [b for a, b in itertools.pairwise(ids) if a == last]
        assert follows == [int(task.answers[pair, 0])] * 2
        ids = task.corrupted[pair].tolist()
        follows = [b for a, b in itertools.pairwise(ids) if a == last]
        assert follows == [int(task.incorrect[pair, 0])] * 2
        assert sorted(ids) == sorted(task.clean[pair].tolist())


def test_induction_needs_no_tokenizer_and_takes_its_bos(tmp_path: Path) -> None:
    tf.AutoTokenizer.from_pretrained(
        tiny.tokenizer().name_or_path, add_bos_token=True
    ).save_pretrained(tmp_path)
    adds_bos = tf.AutoTokenizer.from_pretrained(tmp_path)
    for tokenizer, first in ((None, []), (tiny.tokenizer(), []), (adds_bos, [1])):
        model = types.SimpleNamespace(tokenizer=tokenizer)
        example = induction(random.Random(0), Vocabulary(model, cases.architecture("llama")))
        for prompt in (example.clean, example.corrupted):
            assert len(prompt) == 26 + len(first)
            assert list(prompt[: len(first)]) == first
            assert (1 in prompt) == bool(first) or tokenizer is None
    task = make_task(cases.model_of("llama"), "induction", 4, seed=1)
    assert task.clean.shape == (4, 26)
    assert int(task.clean.min()) >= len(tiny.SPECIAL)


def counting(total: int) -> Callable[[random.Random, Vocabulary], Example]:
    """A task of so many different pairs, of which every other one aligns."""

    def draw(generator: random.Random, vocabulary: Vocabulary) -> Example:
        i = generator.randrange(total)
        corrupted = "the city of Rome" if i % 2 else "the city of Rome ?"
        return Example(f"the king of {tiny.WORDS[i]}", corrupted, (" is",), (" are",))

    return draw


def test_what_does_not_align_is_dropped_counted_and_drawn_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = cases.model_of("llama")
    monkeypatch.setitem(TASKS, "counted", counting(60))
    task = make_task(model, "counted", 20)
    assert len(task) == 20
    assert task.dropped > 0
    assert task.metadata == {"seed": 0, "pairs": 20, "model": "tiny-llama"}
    everything = make_task(model, "counted", 50)  # only 30 of 60 align
    assert (len(everything), everything.dropped) == (30, 30)
    assert everything.metadata["pairs"] == 50
    monkeypatch.setitem(TASKS, "counted", counting(2))
    assert len(make_task(model, "counted", 1)) == 1
    with pytest.raises(TaskError, match=r"of 2 pairs of counted, 1 align on .* tiny-llama; give"):
        make_task(model, "counted", 4)


def test_what_cannot_be_made_is_refused() -> None:
    model = cases.model_of("llama")  # its tokenizer knows no names
    for arguments, message in (
        (("iio",), "unknown task 'iio'; choose from ioi, greater-than"),
        (("ioi", 0), "at least one pair; got pairs=0"),
        (("ioi", 4, 0, "ld"), "unknown metric 'ld'; choose from logit_difference"),
        (("ioi", 4), "of 200 pairs of ioi, 0 align on the tokenizer of tiny-llama"),
    ):
        with pytest.raises(TaskError, match=message):
            make_task(model, *arguments)
    with pytest.raises(PromptError, match="splits years like 1739"):
        make_task(model, "greater-than", 4)
    assert set(generate.DEFAULT_METRIC) <= set(TASKS)
