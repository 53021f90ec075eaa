"""What the options of a task and of its model say, checked without importing torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, NamedTuple

from strace_lens.cli.options import expect_choice, option
from strace_lens.utils.choices import DTYPES, GROUND_TRUTHS, METRICS, TASKS

PAIRS = 16
"""Pairs of a generated task unless told otherwise."""

PairsAndOthers = Annotated[
    int | None,
    option(
        "Number of pairs that methods see, and of other pairs that circuits are evaluated on. "
        f"Default: {PAIRS}, or all pairs of a file. Pairs of a file are drawn by the seed."
    ),
]

_DATA_SET = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?")  # of the hub


class ModelOptions(NamedTuple):
    """What the options that load a model say."""

    model: str | None
    device: str | None
    dtype: str
    allow_pickle: bool
    revision: str | None


class TaskOptions(NamedTuple):
    """What the options that draw a task and load its model say.

    Attributes:
        task: key of `TASKS` or `GROUND_TRUTHS`, the path of a file, or a data set of the hub as
            `owner/name` or `owner/name:configuration`, of which the split `train` is read.
        model: options of the model.
        pairs: how many; `PAIRS` if None, or all those of a file.
        seed: of the pairs that are drawn.
        metric: of a generated task or a file; the task's own if None.
        prepend_bos: as `read_task`; only for files and data sets.
    """

    task: str
    model: ModelOptions
    pairs: int | None
    seed: int
    metric: str | None
    prepend_bos: bool


def check_task(options: TaskOptions) -> None:
    """Refuse a task that cannot be: see `tasks.task_on_model`.

    Raises:
        ValueError: fewer than one pair, an unknown task or one that takes no BOS, options of a
            model that the task brings itself, an unknown dtype or metric.
    """
    task, loaded, pairs, _, metric, prepend_bos = options
    if pairs is not None and pairs < 1:
        raise ValueError(f"a task needs at least one pair; got --pairs {pairs}")
    if prepend_bos and (task in TASKS or task in GROUND_TRUTHS):
        raise ValueError(f"--prepend-bos is for tasks of files; {task} makes its own prompts")
    if task in GROUND_TRUTHS:
        model, device, dtype, _, revision = loaded
        if (model, device, revision, dtype) != (None, None, None, "float32"):
            raise ValueError(
                f"task {task} brings its own model, in float32 on the CPU: leave out --model, "
                "--device, --dtype and --revision"
            )
    elif (
        task not in TASKS
        and not Path(task).is_file()
        and (Path(task).is_dir() or not _DATA_SET.fullmatch(task))
    ):
        raise ValueError(
            f"unknown task {task!r}; choose from {', '.join([*TASKS, *GROUND_TRUTHS])}, or "
            "give the path of a JSONL or CSV file"
        )
    expect_choice(loaded.dtype, DTYPES, "dtype")
    if metric is not None:
        expect_choice(metric, METRICS, "metric")
