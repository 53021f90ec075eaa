"""Mean and resample ablation against the slow forward pass with replaced edges."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.model.prompts import Prompt, PromptError, tokenize
from strace_lens.traces import ablation
from strace_lens.traces.ablation import Replacement, replacement
from strace_lens.traces.edges import EdgeTensors
from strace_lens.traces.masked_run import masked_logits
from tests import cases, tiny
from tests.cases import NAMES, architecture, as_tensor, model_of, random_mask, relative_error, rows
from tests.oracle_weighted import weighted_logits

TOKENS = tiny.token_ids(7)
OTHER = tiny.token_ids(7, seed=1)
THIRD = tiny.token_ids(7, seed=2)


def slow_logits(
    name: str, tokens: Sequence[int], keep: EdgeTensors, references: Sequence[Sequence[int]]
) -> Float[Tensor, " vocab"]:
    """The slow pass in which a dropped edge carries its mean over full runs of the references."""
    return weighted_logits(name, tokens, keep.map(Tensor.double), references)


def ours(name: str, masks: Sequence[EdgeTensors], instead: Replacement) -> Tensor:
    shape = cases.shape(name, len(TOKENS))
    return cases.run(name, rows(TOKENS, shape, masks, replacement=instead))


@pytest.mark.parametrize("name", NAMES)
def test_resampling_every_edge_gives_the_other_prompts_logits(name: str) -> None:
    shape = cases.shape(name, len(TOKENS))
    instead = ablation.resample(model_of(name), architecture(name), as_tensor(OTHER))
    nothing, everything = (shape.full(x, torch.bool) for x in (0.0, 1.0))
    none_kept, all_kept = ours(name, [nothing, everything], instead)
    assert relative_error(none_kept, cases.full_logits(name, OTHER)) < 1e-5
    assert relative_error(all_kept, cases.full_logits(name, TOKENS)) < 1e-5


@pytest.mark.parametrize("references", [[OTHER], [OTHER, THIRD]], ids=["resample", "mean of two"])
@pytest.mark.parametrize("name", NAMES)
def test_replaced_edges_equal_the_slow_forward(name: str, references: list[list[int]]) -> None:
    model, arch = model_of(name), architecture(name)
    if len(references) == 1:
        instead = ablation.resample(model, arch, as_tensor(references[0]))
    else:
        instead = ablation.mean(model, arch, [as_tensor(r) for r in references])
    shape = cases.shape(name, len(TOKENS))
    masks = [random_mask(shape, density, seed=3) for density in (0.0, 0.3, 0.7)]
    truth = torch.stack([slow_logits(name, TOKENS, keep, references) for keep in masks])
    assert relative_error(ours(name, masks, instead), truth) < 2e-5
    zeroed = cases.run(name, rows(TOKENS, shape, masks))
    assert relative_error(zeroed, truth) > 1e-2


@pytest.mark.parametrize("name", ["gpt2", "gptj", "opt", "olmo2"])
def test_rows_with_different_replacements_and_lengths_share_a_batch(name: str) -> None:
    model, arch = model_of(name), architecture(name)
    long, short = TOKENS, TOKENS[:4]
    groups = []
    for tokens, instead in (
        (long, ablation.resample(model, arch, as_tensor(OTHER))),
        (short, ablation.mean(model, arch, [as_tensor(OTHER[:4]), as_tensor(THIRD[:4])])),
        (long, ablation.ZERO),
    ):
        shape = cases.shape(name, len(tokens))
        groups += rows(tokens, shape, [random_mask(shape, 0.5, 0)], replacement=instead)
    alone = torch.cat([cases.run(name, [group]) for group in groups])
    assert relative_error(cases.run(name, groups), alone) < 1e-5


@pytest.mark.parametrize("name", tiny.BRIDGES)
def test_replacing_works_in_half_precision(name: str) -> None:
    model = cases.fresh_bridge(name, torch.bfloat16)
    arch = cases.architecture_of(model)
    shape = cases.shape(name, len(TOKENS))
    instead = ablation.mean(model, arch, [as_tensor(OTHER), as_tensor(THIRD)])
    keep = random_mask(shape, 0.7, 0)
    got = masked_logits(model, arch, rows(TOKENS, shape, [keep], replacement=instead))[0]
    assert relative_error(got.double(), slow_logits(name, TOKENS, keep, [OTHER, THIRD])) < 0.3


def test_a_replacement_of_another_length_is_refused() -> None:
    model, arch = model_of("llama"), architecture("llama")
    instead = ablation.resample(model, arch, as_tensor(OTHER[:5]))
    assert instead.length == 5
    assert ablation.ZERO.length is None
    with pytest.raises(ValueError, match=r"5 tokens.*7"):
        ours("llama", [cases.shape("llama", 7).full(1.0, torch.bool)], instead)


@pytest.mark.parametrize(("lengths", "shown"), [([], r"\[\]"), ([5, 7], r"\[5, 7\]")])
def test_mean_needs_references_of_one_length(lengths: list[int], shown: str) -> None:
    references = [as_tensor(OTHER[:n]) for n in lengths]
    with pytest.raises(ValueError, match=f"one length; got lengths {shown}"):
        ablation.mean(model_of("llama"), architecture("llama"), references)


def prompt(text_or_ids: str | list[int], bos: bool = False) -> Prompt:
    return tokenize(model_of("llama"), architecture("llama"), text_or_ids, bos)


def test_replacement_of_kind_zero_is_nothing() -> None:
    assert replacement(model_of("llama"), prompt(TOKENS)) is ablation.ZERO


@pytest.mark.parametrize("bos", [False, True])
def test_replacement_resamples_with_the_bos_of_the_prompt(bos: bool) -> None:
    model = model_of("llama")
    made = replacement(
        model, prompt("the capital of France", bos), "resample", corrupted="the queen of Japan"
    )
    ids = prompt("the queen of Japan", bos).tensor
    assert len(ids) == 4 + bos
    truth = ablation.resample(model, architecture("llama"), ids)
    assert made.kind == "resample"
    assert torch.equal(made.references[0][0], truth.references[0][0])


def test_replacement_by_the_mean_uses_windows_of_the_prompts_length() -> None:
    model = model_of("llama")
    texts = ["the capital of France is Paris", "the king of England"]
    with_bos = prompt("a river of Italy", bos=True)
    made = replacement(model, with_bos, "mean", references=texts)
    stream = [i for t in texts for i in prompt(t).ids]
    truth = ablation.mean(
        model, architecture("llama"), [as_tensor([1, *stream[i : i + 4]]) for i in range(7)]
    )
    assert len(made.references) == len(truth.references) == 7
    assert made.residual is not None
    torch.testing.assert_close(made.residual, truth.residual)
    torch.testing.assert_close(made.mlp, truth.mlp)
    by_default = replacement(model, with_bos, "mean")
    assert len(by_default.references) == ablation.REFERENCES
    assert by_default.length == 5


def test_replacement_says_what_it_lacks() -> None:
    model, made = model_of("llama"), prompt("the capital of France")
    with pytest.raises(ValueError, match="unknown ablation 'noise'; choose from zero, mean"):
        replacement(model, made, "noise")
    with pytest.raises(ValueError, match="second prompt"):
        replacement(model, made, "resample")
    with pytest.raises(PromptError, match="3 tokens, the prompt 4"):
        replacement(model, made, "resample", corrupted="the capital of")
    with pytest.raises(PromptError, match="longer reference"):
        replacement(model, made, "mean", references=["the capital"])


def test_a_replacement_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ablation.ZERO.kind = "mean"  # pyright: ignore[reportAttributeAccessIssue]
