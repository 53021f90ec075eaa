"""The cost of a comparison before it runs, against what the comparison then takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from strace_lens.circuits.discover.methods import METHODS, method
from strace_lens.circuits.tasks.generate import make_task
from strace_lens.circuits.tasks.read import read_task
from strace_lens.comparison import compare as comparing
from strace_lens.comparison.compare import compare, split
from strace_lens.comparison.plan import ComparisonPlan, MethodPlan, plan_comparison
from strace_lens.model.load import load_model
from strace_lens.model.skeleton import Skeleton, skeleton, skeleton_of
from tests import cases
from tests.circuits.made import tiny_task


@pytest.fixture(scope="module")
def known() -> Skeleton:
    """The default model by its configuration."""
    return skeleton("smollm2")


@pytest.fixture(scope="module")
def default() -> Any:
    """The default model."""
    return load_model()


def plan_of(plan: ComparisonPlan, name: str) -> MethodPlan:
    (found,) = (own for own in plan.methods if own.method == name)
    return found


def test_a_comparison_runs_no_more_circuits_than_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = cases.model_of("llama"), tiny_task(8, 6)
    rows: dict[str, int] = {}
    measure = comparing._measure

    def counting(setting, scores, *rest):
        passes = setting.experiment.passes
        before = passes.forward_rows
        result = measure(setting, scores, *rest)
        rows[scores.method] = passes.forward_rows - before
        return result

    monkeypatch.setattr(comparing, "_measure", counting)
    seen, others = split(task)
    found = compare(model, seen, ["eap-ig", "strace"], evaluation=others)
    known = skeleton_of(model)
    plan = plan_comparison(known, task, ["eap-ig", "strace"])
    assert [own.method for own in plan.methods] == ["eap-ig", "strace", "random"]
    for result in found.results:
        own = plan_of(plan, result.method)
        assert own.forwards == result.scores.forwards
        assert own.backwards == result.scores.backwards
        assert rows[result.method] <= 4 * own.circuits <= 2 * rows[result.method]
    signed, plain = (plan_of(plan, name).circuits for name in ("eap-ig", "strace"))
    assert signed - plain == 9  # once more by sign
    alike = plan_comparison(known, task, ["eap-ig"], ranking="absolute")
    assert plan_of(alike, "eap-ig").circuits == plain


def test_what_is_left_out_costs_nothing() -> None:
    known, task = skeleton_of(cases.model_of("llama")), tiny_task(8, 6)
    whole = plan_comparison(known, task, ["eap"])
    less = plan_comparison(known, task, ["eap"], minimality=False, completeness=False)
    assert plan_of(whole, "eap").circuits - plan_of(less, "eap").circuits == 17


def test_seconds_and_bytes_grow_with_the_task(known: Skeleton) -> None:
    few, many, long = (
        plan_comparison(known, tiny_task(pairs, tokens), ["eap-ig", "edge-pruning"])
        for pairs, tokens in ((8, 6), (32, 6), (8, 24))
    )
    for more in (many, long):
        assert more.seconds > few.seconds
        assert more.peak_bytes > few.peak_bytes
    assert few.edges == 70_651
    assert few.weights_bytes == many.weights_bytes == known.weights_bytes


def test_methods_that_a_comparison_skips_are_skipped_in_its_plan(known: Skeleton) -> None:
    task = tiny_task(8, 6)
    plan = plan_comparison(known, task, ["peap", "edge-patching", "node-patching"])
    assert [own.skipped for own in plan.methods] == [True, True, False, False]
    allowed = plan_comparison(
        known, task, ["edge-patching"], {"edge-patching": {"max_rows": 10**6}}
    )
    assert plan_of(allowed, "edge-patching").forwards == 2 + 70_651


def test_the_passes_of_a_method_of_ones_own_are_not_known(known: Skeleton) -> None:
    before = dict(METHODS)
    method("mine")(lambda experiment, *, seed=0: torch.ones(()))
    try:
        plan = plan_comparison(known, tiny_task(4, 5), ["mine"])
    finally:
        METHODS.clear()
        METHODS.update(before)
    own = plan_of(plan, "mine")
    assert (own.forwards, own.seconds) == (None, None)
    assert own.evaluation_seconds > 0


@pytest.mark.parametrize("name", ["ioi", "induction"])
def test_a_configuration_draws_the_pairs_that_its_model_draws(
    name: str, known: Skeleton, default: Any
) -> None:
    one, other = (make_task(source, name, pairs=3) for source in (known, default))
    for part in ("clean", "corrupted", "answers", "incorrect", "lengths"):
        assert torch.equal(getattr(one, part), getattr(other, part))


def test_a_configuration_reads_the_pairs_that_its_model_reads(
    tmp_path: Path, known: Skeleton, default: Any
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        '{"clean": "Paris is in", "corrupted": "Rome is in", "answers": " France", '
        '"wrong_answers": " Italy"}\n'
    )
    one, other = (read_task(source, path) for source in (known, default))
    assert torch.equal(one.clean, other.clean)
    assert torch.equal(one.answers, other.answers)
    assert one.metadata == other.metadata


def test_the_skeleton_of_a_loaded_model_is_that_of_its_configuration(
    known: Skeleton, default: Any
) -> None:
    loaded = skeleton_of(default)
    assert loaded.weights_bytes == known.weights_bytes
    assert loaded.architecture == known.architecture
    assert loaded.dtype == known.dtype
