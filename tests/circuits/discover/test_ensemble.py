"""Ensembles against sums and ranks by hand, and their members."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from strace_lens.circuits.discover.ensemble import combined
from strace_lens.circuits.discover.run_method import discover
from strace_lens.ground_truth.linear import linear_task, linear_weights
from strace_lens.ground_truth.weights import model_of
from tests import cases
from tests.circuits.made import tiny_task
from tests.ground_truth.exact_effects import exact_effects

EXISTS = torch.tensor([[True, False], [True, True]])
ONE = torch.tensor([[3.0, 9.0], [-1.0, 2.0]])  # the second cell is no edge
TWO = torch.tensor([[0.0, 9.0], [-40.0, 30.0]])


def both(**options: Any) -> Tensor:
    options = {"signed": [True, True], **options}
    return combined([ONE, TWO], EXISTS, **options)


def rms(values: Tensor) -> Tensor:
    return values / values[EXISTS].square().mean().sqrt()


def test_ranks_have_the_signs_of_the_scores() -> None:
    # By magnitude ONE ranks its edges 3, 1, 2 and TWO 1, 3, 2; a score of zero has no sign.
    wanted = torch.tensor([[3 + 1, 0], [-1 - 3, 2 + 2]]) / 3 / 2
    torch.testing.assert_close(both(how="rank"), wanted)
    weighted = torch.tensor([[3 * 3 + 1, 0], [-3 * 1 - 3, 3 * 2 + 2]]) / 3 / 4
    torch.testing.assert_close(both(how="rank", weights=[3.0, 1.0]), weighted)


def test_an_edge_large_to_all_members_ranks_first_though_their_signs_differ() -> None:
    one, two, three = (torch.tensor([[x, 0.0], [1.0, 2.0]]) for x in (50.0, 60.0, -70.0))
    found = combined([one, two, three], EXISTS, signed=[True] * 3)
    torch.testing.assert_close(found, torch.tensor([[3.0, 0.0], [1.0, 2.0]]) / 3)
    torch.testing.assert_close(
        combined([one, -two, three], EXISTS, signed=[True] * 3)[0, 0], torch.tensor(-1.0)
    )


def test_ranks_of_a_member_that_only_orders_have_no_sign() -> None:
    # TWO by value ranks its edges 2, 1, 3.
    wanted = torch.tensor([[3 + 2, 0], [1 + 1, 2 + 3]]) / 3 / 2
    torch.testing.assert_close(both(signed=[True, False]), wanted)


def test_equal_scores_share_their_rank() -> None:
    tied = torch.tensor([[1.0, 0.0], [1.0, 5.0]])
    wanted = torch.tensor([[1.5, 0], [1.5, 3]]) / 3
    torch.testing.assert_close(combined([tied], EXISTS, signed=[True]), wanted)


@pytest.mark.parametrize("how", ["mean", "min", "max"])
def test_scores_over_their_root_mean_square(how: str) -> None:
    one, two = rms(ONE), rms(TWO)
    wanted = {"mean": (one + two) / 2, "min": one.minimum(two), "max": one.maximum(two)}[how]
    torch.testing.assert_close(both(how=how), wanted * EXISTS)
    larger = combined([ONE * 1e4, TWO], EXISTS, signed=[True, True], how=how)
    torch.testing.assert_close(both(how=how), larger)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"how": "median"}, "how must be one of rank, mean, min, max; got 'median'"),
        ({"how": "min", "weights": [1.0]}, r"a min has no weights; got \[1.0\]"),
        ({"weights": [1.0]}, r"weights must be 2 numbers of at least 0, not all 0; got \[1.0\]"),
        ({"weights": [-1.0, 3.0]}, "at least 0"),
        ({"weights": [0.0, 0.0]}, "not all 0"),
        ({"weights": [1.0, float("nan")]}, "at least 0"),
        ({"how": "mean", "signed": [True, False]}, "use how='rank', not 'mean'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        both(**options)


def test_the_method_is_its_members_made_one() -> None:
    model, task = cases.model_of("gpt2"), tiny_task()
    members = ["eap", "relp", "ifr"]  # the scores of the last only order
    found = discover(model, task, "ensemble", members=members, weights=[1.0, 2.0, 1.0])
    single = [discover(model, task, name) for name in members]
    values, signed = [s.values for s in single], [s.signed for s in single]
    wanted = combined(values, single[0].graph.exists, signed=signed, weights=[1.0, 2.0, 1.0])
    assert torch.equal(found.values, wanted)
    assert found.metadata["members"] == members
    # EAP-IG 7 and 5, clean-corrupted 2 and 2 more, RelP 1 and 1.
    default = discover(model, task, "ensemble")
    assert (default.forwards, default.backwards) == (10, 8)


@pytest.mark.parametrize(
    "members", [["eap"], ["eap", "eap"], ["eap", "eep"], ["eap", "ensemble"], "eap,relp"]
)
def test_members_that_are_no_ensemble_are_refused(members: Any) -> None:
    with pytest.raises(ValueError, match="two or more different methods, no ensemble and none"):
        discover(cases.model_of("gpt2"), tiny_task(), "ensemble", members=members)


def test_a_mean_of_exact_methods_is_exact_but_for_its_scale() -> None:
    weights, task = linear_weights(seed=3), linear_task(pairs=5, seed=4)
    found = discover(model_of(weights, "linear"), task, "ensemble", how="mean").values.double()
    exact = exact_effects(weights, task).mean(0).double()
    scale = (found * exact).sum() / exact.square().sum()
    assert cases.relative_error(found, exact * scale) < 1e-4
