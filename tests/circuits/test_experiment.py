"""A task made ready: replacements by a plain loop over prompts, runs made once, refusals."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from strace_lens.circuits.experiment import make_experiment, objective_of
from strace_lens.circuits.task import Task
from strace_lens.circuits.wiring import wiring_of
from strace_lens.ground_truth.linear import linear_weights
from strace_lens.ground_truth.weights import model_of as model_of_weights
from strace_lens.model.architecture import UnsupportedModelError
from tests import cases, tiny
from tests.cases import fresh_bridge, model_of, relative_error
from tests.circuits.made import tiny_task, uneven_task
from tests.families import family

TASK = tiny_task(3)


def one_at_a_time(name: str, prompts: Tensor) -> list[dict[str, Tensor]]:
    """Values at the hook points by TransformerLens' own cache, prompt by prompt."""
    found = []
    for tokens in prompts:
        with torch.no_grad():
            _, cache = model_of(name).run_with_cache(tokens[None])
        found.append({key: cache[key][0] for key in ("blocks.0.hook_resid_pre", *POINTS)})
    return found


POINTS = ("blocks.1.attn.hook_z", "blocks.1.hook_mlp_out")


@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
@pytest.mark.parametrize("name", ["llama", "gptj"])
def test_replacements_are_the_other_prompt_the_mean_or_zero(name: str, ablation: str) -> None:
    replaced = make_experiment(model_of(name), TASK, ablation=ablation).replaced
    corrupted = one_at_a_time(name, TASK.corrupted)
    every = [*one_at_a_time(name, TASK.clean), *corrupted]
    for pair in range(3):
        ours = (replaced.embed[pair], replaced.z[1][pair], replaced.mlp[1][pair])
        for value, key in zip(ours, ("blocks.0.hook_resid_pre", *POINTS), strict=True):
            truth = {
                "resample": corrupted[pair][key],
                "mean": sum(run[key] for run in every) / len(every),
                "zero": torch.zeros_like(corrupted[pair][key]),
            }[ablation]
            assert relative_error(value, truth.view_as(value)) < 1e-5


def test_a_run_is_made_once_and_counted() -> None:
    experiment = make_experiment(model_of("gpt2"), TASK)
    assert experiment.passes.forward_rows == 0
    logits = experiment.clean[1]
    assert experiment.passes.forward_rows == 3
    assert experiment.clean[1] is logits
    assert experiment.reference is experiment.reference
    _ = experiment.replaced
    assert experiment.passes.forward_rows == 6
    assert experiment.passes.backward_rows == 0


def test_the_reference_is_the_untouched_model_and_goes_pair_by_pair() -> None:
    model, task = model_of("llama"), uneven_task()
    experiment = make_experiment(model, task)
    index = torch.tensor([2, 0, 2])
    rows = experiment.reference_rows(index)
    with torch.no_grad():
        for prompts, ours in ((task.clean, rows.clean), (task.corrupted, rows.corrupted)):
            alone = [model(prompts[i, : task.lengths[i]][None])[0, -1] for i in index.tolist()]
            assert relative_error(ours[:, 0], torch.stack(alone)) < 1e-5
    assert torch.equal(rows.answers, task.answers[index])
    assert torch.equal(rows.incorrect, task.incorrect[index])


def test_rows_are_cut_to_the_budget() -> None:
    experiment = make_experiment(model_of("llama"), TASK)
    assert list(experiment.chunks(5)) == [slice(0, 5)]
    small = dataclasses.replace(experiment, memory_budget=1)
    assert [s.stop - s.start for s in small.chunks(5)] == [1] * 5
    assert [s.stop - s.start for s in small.gradient_chunks(5)] == [1] * 5
    medium = dataclasses.replace(experiment, memory_budget=2**21)
    sizes = [s.stop - s.start for s in medium.chunks(1000)]
    longer = dataclasses.replace(medium, task=tiny_task(3, 12))
    assert 1 < len(sizes) < 1000
    assert len(list(longer.chunks(1000))) > len(sizes)  # a longer row takes more
    plain, patched = (list(medium.gradient_chunks(1000, patched=p)) for p in (False, True))
    assert len(plain) <= len(patched)


def test_the_metric_is_the_tasks_own_unless_named() -> None:
    model = model_of("llama")
    assert make_experiment(model, TASK).metric == "logit_difference"
    assert make_experiment(model, TASK, metric="kl_divergence").metric == "kl_divergence"


def _wide_task() -> Any:
    task = tiny_task(2)
    task.corrupted[1, 3] = tiny.VOCABULARY
    return task


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (
            TASK,
            {"ablation": "noise"},
            "unknown ablation 'noise'; choose from resample, mean, mean-over-positions, zero, opt",
        ),
        (TASK, {"metric": "loss"}, "unknown metric 'loss'; choose from logit_difference"),
        (TASK, {"memory_budget": 0}, "memory_budget must be positive; got 0 bytes"),
        (uneven_task(), {"ablation": "mean"}, "one length; task 'words' has 3 to 7 tokens"),
        (_wide_task(), {}, "token id 108 lies outside the vocabulary of 108.* for tiny-llama"),
        (tiny_task(2, 65), {}, "prompts of 65 tokens, but tiny-llama reads at most 64"),
    ],
)
def test_what_does_not_fit_the_model_is_an_error(
    task: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_experiment(model_of("llama"), task, **options)


def test_padding_is_refused_where_attention_would_read_it() -> None:
    weights = linear_weights()
    model = model_of_weights(dataclasses.replace(weights, causal=False), "both-ways")
    wiring_of(model)  # bidirectional attention is fine
    task = uneven_task()
    for prompts in (task.clean, task.corrupted):
        prompts.remainder_(len(weights.W_E))
    with pytest.raises(ValueError, match="both-ways attends in both directions"):
        make_experiment(model, dataclasses.replace(task, metric="recovered"))


def test_a_model_that_cannot_be_patched_is_refused_by_name() -> None:
    model = fresh_bridge("gpt2")
    with torch.no_grad():
        next(model.blocks[1].attn.v.parameters())[3] = float("nan")
    with pytest.raises(UnsupportedModelError, match="tiny-gpt2"):
        make_experiment(model, TASK)


def test_pairs_that_padding_would_change_are_refused_and_a_wide_row_is_not_changed() -> None:
    """LongRoPE, whose positions change beyond eight tokens."""
    model = family("phi3_longrope")
    task = tiny_task(2)
    assert task.clean.shape[1] == 6
    padded = dataclasses.replace(
        task,
        clean=torch.nn.functional.pad(task.clean, (0, 6)),
        corrupted=torch.nn.functional.pad(task.corrupted, (0, 6)),
    )
    narrow, wide = make_experiment(model, task), make_experiment(model, padded)
    assert relative_error(wide.clean[1], narrow.clean[1]) < 1e-5
    assert relative_error(wide.corrupted[0].z[1][:, :6], narrow.corrupted[0].z[1]) < 1e-5
    straddling = dataclasses.replace(padded, lengths=torch.tensor([6, 12]))
    with pytest.raises(ValueError, match=r"prompts of 6 and of 12 tokens, .* beyond 8 tokens"):
        make_experiment(model, straddling)
    assert make_experiment(model_of("llama"), straddling).clean[1].shape[0] == 2


def test_the_default_is_the_divergence_of_distributions() -> None:
    experiment = make_experiment(cases.model_of("llama"), tiny_task())
    assert objective_of(experiment, None) == "kl_divergence"
    assert objective_of(experiment, "task") == "logit_difference"
    assert objective_of(experiment, "recovered") == "recovered"
    with pytest.raises(ValueError, match="unknown objective 'loss'; choose from task, logit_diff"):
        objective_of(experiment, "loss")


def test_a_single_number_has_no_distribution() -> None:
    weights = linear_weights()
    one = model_of_weights(dataclasses.replace(weights, W_U=weights.W_U[:, :1]), "one output")
    none = torch.full((2, 1), -1)
    clean, corrupted = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[7, 2, 3], [4, 8, 6]])
    task = Task("number", clean, corrupted, torch.tensor([3, 3]), none, none, "recovered")
    assert objective_of(make_experiment(one, task), None) == "recovered"
