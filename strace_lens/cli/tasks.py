"""The task that a command names, and the model that it is run on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from strace_lens.circuits.task import Task
from strace_lens.circuits.tasks.generate import TASKS, make_task
from strace_lens.circuits.tasks.read import read_task
from strace_lens.ground_truth.models import GROUND_TRUTHS, GroundTruth, ground_truth
from strace_lens.model.architecture import Model
from strace_lens.model.load import DEFAULT, load_model

PAIRS = 16
"""Pairs of a generated task unless told otherwise."""


class ModelOptions(NamedTuple):
    """What the options that load a model say."""

    model: str | None
    device: str | None
    dtype: str
    allow_pickle: bool
    revision: str | None


class TaskOnModel(NamedTuple):
    """A task, the model that it was tokenized for, and that model's circuit where it is known."""

    model: Model
    task: Task
    truth: GroundTruth | None


def task_on_model(
    task: str,
    options: ModelOptions,
    *,
    pairs: int | None,
    times: int,
    seed: int,
    metric: str | None,
    step: Callable[[str], None],
) -> TaskOnModel:
    """Load the model and make or read the task.

    Args:
        task: key of `TASKS` or `GROUND_TRUTHS`, or the path of a file.
        options: of the model.
        pairs: how many; `PAIRS` if not given, or all those of a file.
        times: so many times as many are drawn.
        seed: of the pairs that are drawn.
        metric: of a generated task or a file; the task's own if not given.
        step: told what is being done.

    Raises:
        ValueError: fewer than one pair, an unknown task, or options of a model that the task
            brings itself.
    """
    if pairs is not None and pairs < 1:
        raise ValueError(f"a task needs at least one pair; got --pairs {pairs}")
    wanted = times * (pairs or PAIRS)
    if task in GROUND_TRUTHS:
        model, device, dtype, _, revision = options
        if (model, device, revision, dtype) != (None, None, None, "float32"):
            raise ValueError(
                f"task {task} brings its own model, in float32 on the CPU: leave out --model, "
                "--device, --dtype and --revision"
            )
        step(f"building the model of {task}")
        truth = ground_truth(task, seed=seed, pairs=wanted)
        return TaskOnModel(truth.model, truth.task, truth)
    if task not in TASKS and not Path(task).is_file():
        raise ValueError(
            f"unknown task {task!r}; choose from {', '.join([*TASKS, *GROUND_TRUTHS])}, or give "
            "the path of a JSONL file"
        )
    step(f"loading {options.model or DEFAULT}")
    loaded = load_model(
        options.model or DEFAULT,
        device=options.device,
        dtype=options.dtype,
        allow_pickle=options.allow_pickle,
        revision=options.revision,
    )
    if task in TASKS:
        return TaskOnModel(loaded, make_task(loaded, task, wanted, seed, metric), None)
    read = read_task(loaded, task, metric or "logit_difference")
    return TaskOnModel(loaded, read.sample(None if pairs is None else wanted, seed), None)
