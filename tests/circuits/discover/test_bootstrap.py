"""Effects on single pairs, resampled and by size, against effects known exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.circuits.discover.bootstrap import consistent_first, positive_share
from strace_lens.circuits.discover.methods import METHODS
from strace_lens.circuits.discover.run_method import discover
from strace_lens.circuits.experiment import make_experiment
from strace_lens.ground_truth.linear import linear_task, linear_weights
from strace_lens.ground_truth.weights import model_of
from tests import cases
from tests.circuits.made import tiny_task
from tests.ground_truth.exact_effects import exact_effects


def shares_by_hand(
    values: Float[Tensor, "pair edge"], resamples: int, seed: int
) -> Float[Tensor, " edge"]:
    """In how many resamples, drawn one by one, the mean is positive."""
    draws = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    count = torch.zeros(values.shape[1], dtype=torch.float64)
    for draw in draws.tolist():
        for edge in range(values.shape[1]):
            mean = sum(float(values[pair, edge]) for pair in draw)
            count[edge] += 0.5 if mean == 0 else mean > 0
    return count / resamples


def drawn(pairs: int, edges: int, seed: int = 0) -> Tensor:
    """Values whose means are as large as their spread, of both signs, one always 0."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-6, 8, (pairs, edges), generator=generator).double()
    values[:, 0] = 0
    return values


def test_shares_are_those_of_resamples_drawn_one_by_one() -> None:
    values = drawn(5, 12)
    found = positive_share(values, 60, seed=3)
    torch.testing.assert_close(found, shares_by_hand(values, 60, 3))
    assert found[0] == 0.5
    assert len(found.unique()) > 4


@pytest.mark.parametrize("sign", ["any", "positive"])
def test_edges_whose_sign_does_not_hold_rank_behind_the_others(sign: str) -> None:
    values, share = drawn(5, 40, seed=1), 0.9
    found = consistent_first(values, share=share, sign=sign, resamples=80, seed=2)
    mean, positive = values.mean(0), shares_by_hand(values, 80, 2)
    held = torch.where(mean > 0, positive, 1 - positive)
    kept = (held >= share) & ((mean > 0) | (sign == "any")) & (mean != 0)
    assert 0 < int(kept.sum()) < 40
    torch.testing.assert_close(found[kept], mean[kept])
    assert float(found[~kept].abs().max()) <= float(found[kept].abs().min()) / 2
    # Those behind keep their signs and their order.
    rest = ~kept
    torch.testing.assert_close(
        found[rest] / found[rest].abs().max(), mean[rest] / mean[rest].abs().max()
    )


def test_the_method_filters_the_exact_effects_of_a_linear_model() -> None:
    weights, task = linear_weights(seed=3), linear_task(pairs=6, seed=4)
    model, exact = model_of(weights, "linear"), exact_effects(weights, task).double()
    found = discover(model, task, "bootstrap", member="eap", share=0.9, resamples=70, seed=5)
    exists = found.graph.exists
    wanted = torch.zeros(exists.shape, dtype=torch.float64)
    wanted[exists] = consistent_first(exact[:, exists], share=0.9, resamples=70, seed=5)
    assert cases.relative_error(found.values.double(), wanted) < 1e-4
    assert cases.relative_error(wanted, exact.mean(0)) > 1e-2  # something is filtered


def test_sizes_are_averaged_over_the_exact_effects_of_a_linear_model() -> None:
    weights, task = linear_weights(seed=3), linear_task(pairs=6, seed=4)
    model, exact = model_of(weights, "linear"), exact_effects(weights, task)
    found = discover(model, task, "pair-magnitude", member="eap")
    assert cases.relative_error(found.values, exact.abs().mean(0)) < 1e-4
    assert cases.relative_error(exact.abs().mean(0), exact.mean(0).abs()) > 1e-2  # some cancel
    assert (found.forwards, found.backwards) == (3, 1)  # EAP, and the clean run
    assert found.metadata["member"] == "eap"


def test_on_one_pair_sizes_are_those_of_the_member() -> None:
    model, task = cases.model_of("gpt2"), tiny_task(1, 4)
    found, whole = (discover(model, task, name) for name in ("pair-magnitude", "eap-ig"))
    torch.testing.assert_close(found.values, whole.values.abs())


EXTENDED = pytest.mark.extended


@pytest.mark.parametrize(
    ("member", "ablation"),
    [
        ("eap", "mean"),
        pytest.param("eap", "resample", marks=EXTENDED),
        pytest.param("eap-ig", "zero", marks=EXTENDED),
        pytest.param("clean-corrupted", "mean", marks=EXTENDED),
        pytest.param("edge-patching", "mean", marks=EXTENDED),
        pytest.param("edge-patching", "resample", marks=EXTENDED),
    ],
)
def test_a_share_of_nothing_keeps_the_scores_of_the_member(member: str, ablation: str) -> None:
    model, task = cases.model_of("gpt2"), tiny_task(3, 5)
    options: dict[str, Any] = {"ablation": ablation}
    found = discover(model, task, "bootstrap", member=member, share=0.0, **options)
    whole = discover(model, task, member, **options)
    assert cases.relative_error(found.values.double(), whole.values.double()) < 1e-4
    assert found.metadata["member"] == member


def test_passes_are_those_of_the_member_and_one_over_each_prompt() -> None:
    found = discover(cases.model_of("gpt2"), tiny_task(3, 5), "bootstrap", resamples=9)
    assert (found.forwards, found.backwards) == (7, 5)  # EAP-IG: five steps, two runs


def test_an_experiment_of_some_pairs_has_the_replacements_of_all() -> None:
    task = tiny_task(4, 5)
    whole = make_experiment(cases.model_of("gpt2"), task, ablation="mean")
    part = whole.take([2, 0])
    assert part.task.clean.tolist() == task.clean[[2, 0]].tolist()
    assert torch.equal(part.clean.logits, whole.clean.logits[[2, 0]])
    assert torch.equal(part.replaced.embed, whole.replaced.embed[[2, 0]])
    own = make_experiment(cases.model_of("gpt2"), task.take([2, 0]), ablation="mean")
    assert cases.relative_error(own.replaced.embed, part.replaced.embed) > 1e-2
    assert part.passes is whole.passes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"member": "bootstrap"}, "scores are effects, as eap-ig or relp; got 'bootstrap'"),
        ({"member": "acdc"}, "got 'acdc'"),
        ({"member": "eep"}, "got 'eep'"),
        ({"share": 1.5}, r"share must lie in \[0, 1\]; got 1.5"),
        ({"sign": "negative"}, "unknown sign 'negative'; choose from any, positive"),
        ({"resamples": 0}, "resamples must be at least 1; got 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        discover(cases.model_of("gpt2"), tiny_task(2, 4), "bootstrap", **options)


@pytest.mark.parametrize("member", ["bootstrap", "acdc", "eep"])
def test_sizes_of_what_is_no_effect_are_refused(member: str) -> None:
    with pytest.raises(ValueError, match=f"as eap-ig or relp; got '{member}'"):
        discover(cases.model_of("gpt2"), tiny_task(2, 4), "pair-magnitude", member=member)


def test_one_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two; give the task more pairs"):
        discover(cases.model_of("gpt2"), tiny_task(1, 4), "bootstrap")
    assert METHODS["bootstrap"].signed
