from __future__ import annotations

import pytest

from strace_lens.ground_truth.models import GROUND_TRUTHS, ground_truth
from strace_lens.ground_truth.tracr import PROGRAMS


def test_every_program_and_the_trained_and_linear_models_are_known() -> None:
    assert set(GROUND_TRUTHS) == {
        *(f"tracr-{name}" for name in PROGRAMS),
        "siit-detect-ab",
        "siit-pair-balance",
        "induction-trained",
        "linear",
    }
    assert len(PROGRAMS) >= 8


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="'tracr-rot13'; choose from tracr-reverse"):
        ground_truth("tracr-rot13")


def test_a_task_needs_a_pair() -> None:
    with pytest.raises(ValueError, match="at least one pair; got pairs=0"):
        ground_truth("linear", pairs=0)


def test_the_truth_of_an_unknown_ablation_is_refused() -> None:
    with pytest.raises(ValueError, match="'noise'; choose from resample, mean, mean-over-"):
        ground_truth("linear", pairs=2).truth("noise")


def test_the_number_of_pairs_and_the_seed_reach_the_task() -> None:
    made = ground_truth("linear", seed=3, pairs=7)
    assert len(made.task) == 7
    assert made.task.metadata["seed"] == 3
    assert made.model.cfg.model_name == "linear"
