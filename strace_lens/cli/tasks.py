"""The task that a command names, and the model that it is run on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from strace_lens.circuits.task import Task
from strace_lens.circuits.tasks.generate import make_task
from strace_lens.circuits.tasks.read import read_task, task_of_rows
from strace_lens.cli.common import Bar
from strace_lens.cli.task_options import PAIRS, TaskOptions, check_task
from strace_lens.ground_truth.models import GroundTruth, ground_truth
from strace_lens.model.architecture import Model
from strace_lens.model.load import load_model
from strace_lens.model.skeleton import Skeleton, skeleton, skeleton_of
from strace_lens.utils.choices import DEFAULT_MODEL, GROUND_TRUTHS, TASKS


class TaskOnModel(NamedTuple):
    """A task, the model that it was tokenized for, and that model's circuit where it is known."""

    model: Model
    task: Task
    truth: GroundTruth | None


def task_on_model(options: TaskOptions, *, times: int, bar: Bar) -> TaskOnModel:
    """Load the model and make or read the task.

    Args:
        options: what the command was told.
        times: so many times as many pairs are drawn.
        bar: shows what is being done.

    Raises:
        ValueError: see `check_task`, or a data set that cannot be loaded.
    """
    check_task(options)
    task, of_model, pairs, seed, _, _ = options
    wanted = times * (pairs or PAIRS)
    if task in GROUND_TRUTHS:
        bar.step(f"building the model of {task}")
        truth = ground_truth(task, seed=seed, pairs=wanted)
        return TaskOnModel(truth.model, truth.task, truth)
    rows = _data_set(task, bar)
    name = of_model.model or DEFAULT_MODEL
    with bar.loading(name, of_model.dtype, of_model.device, of_model.revision):
        loaded = load_model(
            name,
            device=of_model.device,
            dtype=of_model.dtype,
            allow_pickle=of_model.allow_pickle,
            revision=of_model.revision,
        )
    return TaskOnModel(loaded, _drawn(options, loaded, rows, wanted), None)


def task_on_skeleton(options: TaskOptions, *, times: int, bar: Bar) -> tuple[Skeleton, Task]:
    """Read the configuration of the model, and make or read the task with its tokenizer alone.

    A model that the task brings is built, since it has no configuration.

    Args:
        options: what the command was told.
        times: so many times as many pairs are drawn.
        bar: shows what is being done.

    Raises:
        ValueError: see `task_on_model`, or a configuration without a tokenizer.
    """
    check_task(options)
    of_model = options.model
    if options.task in GROUND_TRUTHS:
        model, task, _ = task_on_model(options, times=times, bar=bar)
        return skeleton_of(model), task
    rows = _data_set(options.task, bar)
    name = of_model.model or DEFAULT_MODEL
    bar.step(f"reading the configuration of {name}")
    known = skeleton(name, dtype=of_model.dtype, revision=of_model.revision)
    return known, _drawn(options, known, rows, times * (options.pairs or PAIRS))


def _drawn(
    options: TaskOptions,
    model: Model | Skeleton,
    rows: Iterable[Mapping[str, Any]] | None,
    wanted: int,
) -> Task:
    """The task of a name or of a file, or of the rows of a data set."""
    task, _, pairs, seed, metric, prepend_bos = options
    if task in TASKS:
        return make_task(model, task, wanted, seed, metric)
    metric = metric or "logit_difference"
    if rows is None:
        read = read_task(model, task, metric, prepend_bos=prepend_bos)
    else:
        read = task_of_rows(model, rows, Path(task).name, metric, prepend_bos=prepend_bos)
    return read.sample(None if pairs is None else wanted, seed)


def _data_set(name: str, bar: Bar) -> Iterable[Mapping[str, Any]] | None:
    """The rows of a data set of the hub; None where the name is a task's or a file's.

    Raises:
        ValueError: it cannot be loaded.
    """
    if name in TASKS or Path(name).is_file():
        return None
    if Path(name).suffix in (".csv", ".json", ".jsonl"):
        raise ValueError(f"there is no file {name}")
    bar.step(f"loading {name}")
    from strace_lens.corpus.read import load_split  # pyarrow takes a while

    try:
        return load_split(name, None)
    except ImportError as error:
        raise ValueError(
            f"{name} is no file, and data sets of the hub need the package datasets; install it or "
            "give a file"
        ) from error
